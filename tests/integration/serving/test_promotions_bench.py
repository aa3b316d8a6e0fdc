"""The benchmark of promotions on a small scale: a server, a writer and clients, each a process, and a store on disk."""

import pytest

from infra.bench.serving_promotions import promotions, replicas


@pytest.mark.slow
def test_promotions_from_another_process_fail_and_mislabel_nothing() -> None:
    rows = {row.name.rpartition(": ")[2]: row for row in promotions(60, versions=5, calm=20)}
    assert rows["made"].value == 60
    assert rows["answers meanwhile"].value > 0
    assert (rows["failed requests"].value, rows["mislabelled answers"].value) == (0, 0)
    assert {"< 0.3", "== 0", ">= 60"} <= {row.target for row in rows.values()}


@pytest.mark.slow
def test_two_server_processes_switch_and_fail_and_mislabel_nothing() -> None:
    rows = {row.name.rpartition(": ")[2]: row for row in replicas(20, versions=5)}
    assert rows["made"].value == 20
    assert rows["answers meanwhile"].value > 0
    assert (rows["failed requests"].value, rows["mislabelled answers"].value) == (0, 0)
