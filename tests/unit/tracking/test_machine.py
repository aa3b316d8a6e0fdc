"""System metrics."""

import sys

import pytest

from promptstore.tracking.machine import MachineMonitor


def test_figures_come_once_in_an_interval_under_the_names_of_mlflow() -> None:
    now = 0.0
    monitor = MachineMonitor(interval_s=10, clock=lambda: now)
    first = monitor.look()
    assert 0 < first["system/system_memory_usage_percentage"] <= 100
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage"} <= first.keys()
    now = 9.0
    assert monitor.look() == {}
    now = 10.0
    assert monitor.look().keys() == first.keys()


def test_without_psutil_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert MachineMonitor().look() == {}
