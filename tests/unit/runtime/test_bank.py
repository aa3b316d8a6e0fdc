import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import Budgets, PromptBank
from promptstore.runtime.cached import CachedDecoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import PreparedPrompt
from promptstore.runtime.spill import DiskSpill
from promptstore.testing.engine_rig import RigSource, digest_of, random_prompt
from promptstore.testing.tiny_models import tiny_llama

DIGESTS = [digest_of(str(number)) for number in range(6)]


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


def _source(model: FrozenModel, digest: str) -> RigSource:
    return RigSource(random_prompt(model, 4, seed=DIGESTS.index(digest)))


def _bank(
    model: FrozenModel, *, on_device: int, on_host: int = 0, spill: DiskSpill | None = None
) -> PromptBank[RigSource]:
    """A bank with room for so many prepared prompts; host room comes on top of what six sources take."""
    prepared = CachedDecoding(model).prepare(torch.zeros(4, model.hidden_size), ()).size_bytes
    sources = 6 * _source(model, DIGESTS[0]).prompt.embeddings.nbytes
    budgets = Budgets(on_device * prepared, sources + on_host * prepared)
    return PromptBank(model, CachedDecoding(model), budgets=budgets, spill=spill)


def _hold_all(bank: PromptBank[RigSource], model: FrozenModel, *, pinned: str = "") -> None:
    for digest in DIGESTS:
        bank.hold(digest, lambda digest=digest: _source(model, digest), pin=digest == pinned)  # type: ignore[misc]


def test_a_prompt_is_prepared_once_and_found_on_the_device_afterwards(model: FrozenModel) -> None:
    bank = _bank(model, on_device=6)
    _hold_all(bank, model)
    first = bank.prepared(DIGESTS[0])
    assert bank.prepared(DIGESTS[0]) is first
    assert bank.counts == Counter(computed=1, device=1)
    assert bank.tier(DIGESTS[0]) == "device"
    assert bank.tier(DIGESTS[1]) == "source"
    assert bank.tier(digest_of("unknown")) is None


def test_many_threads_load_a_prompt_once(model: FrozenModel) -> None:
    bank = _bank(model, on_device=6)
    loads = []
    all_wait = threading.Barrier(8)

    def load() -> RigSource:
        loads.append(1)
        return _source(model, DIGESTS[0])

    def hold() -> None:
        all_wait.wait()
        bank.hold(DIGESTS[0], load)

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_threads_that_need_a_prompt_at_a_time_compute_it_once_and_find_others_meanwhile(model: FrozenModel) -> None:
    bank = _bank(model, on_device=6)
    _hold_all(bank, model)
    there = bank.prepared(DIGESTS[1])
    computing, go_on = threading.Event(), threading.Event()
    compute = bank._decoding.prepare

    def slow(*arguments: Any, **options: Any) -> PreparedPrompt:
        computing.set()
        assert go_on.wait(10)
        return compute(*arguments, **options)

    bank._decoding.prepare = slow  # type: ignore[method-assign]
    found: list[PreparedPrompt] = []
    threads = [threading.Thread(target=lambda: found.append(bank.prepared(DIGESTS[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert computing.wait(10)
    assert bank.prepared(DIGESTS[1]) is there
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(each) for each in found}) == 1
    assert bank.counts == Counter(computed=2, device=4)


def test_a_load_that_fails_holds_nothing_and_may_be_tried_again(model: FrozenModel) -> None:
    bank = _bank(model, on_device=6)

    def fail() -> RigSource:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        bank.hold(DIGESTS[0], fail)
    assert bank.tier(DIGESTS[0]) is None
    bank.hold(DIGESTS[0], lambda: _source(model, DIGESTS[0]))
    assert bank.tier(DIGESTS[0]) == "source"


def test_the_least_recently_used_leaves_the_device_first_and_pinned_ones_last(model: FrozenModel) -> None:
    bank = _bank(model, on_device=3, on_host=10)
    _hold_all(bank, model, pinned=DIGESTS[0])
    for digest in DIGESTS[:3]:
        bank.prepared(digest)
    bank.prepared(DIGESTS[1])
    bank.prepared(DIGESTS[3])
    assert [bank.tier(digest) for digest in DIGESTS] == ["device", "device", "host", "device", "source", "source"]
    bank.prepared(DIGESTS[4])
    assert [bank.tier(digest) for digest in DIGESTS] == ["device", "host", "host", "device", "device", "source"]


def test_what_comes_back_from_host_and_disk_is_what_left(model: FrozenModel, tmp_path: Path) -> None:
    spill = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30)
    bank = _bank(model, on_device=1, on_host=1, spill=spill)
    _hold_all(bank, model)
    before = {digest: bank.prepared(digest) for digest in DIGESTS}
    tiers = Counter(bank.tier(digest) for digest in DIGESTS)
    assert tiers == Counter(device=1, host=1, disk=4)
    for digest in DIGESTS:
        after = bank.prepared(digest)
        for name, tensor in before[digest].tensors.items():
            assert torch.equal(after.tensors[name], tensor)
    assert bank.counts["computed"] == 6
    assert bank.counts["disk"] >= 4


def test_what_nobody_holds_is_forgotten_when_memory_is_short(model: FrozenModel) -> None:
    bank = PromptBank[RigSource](model, CachedDecoding(model), budgets=Budgets(host_bytes=1))
    for digest in DIGESTS[:2]:
        bank.hold(digest, lambda digest=digest: _source(model, digest))  # type: ignore[misc]
    bank.release(DIGESTS[0])
    assert bank.tier(DIGESTS[0]) is None
    assert bank.tier(DIGESTS[1]) == "source"


def test_the_bytes_reported_are_those_of_what_is_kept(model: FrozenModel) -> None:
    bank = _bank(model, on_device=2, on_host=1)
    _hold_all(bank, model, pinned=DIGESTS[5])
    for digest in DIGESTS:
        bank.prepared(digest)
    entries = list(bank._entries.values())
    assert bank.size_bytes["device"] == sum(each.device.size_bytes for each in entries if each.device is not None)
    host_bytes = sum(each.host.size_bytes for each in entries if each.host is not None)
    source_bytes = sum(each.source.result().prompt.embeddings.nbytes for each in entries)
    assert bank.size_bytes["host"] == host_bytes + source_bytes
    full = bank.size_bytes["host"]
    bank._budgets = Budgets(device_bytes=0, host_bytes=full // 2)
    for digest in DIGESTS[:5]:
        bank.release(digest)
    assert bank.size_bytes["host"] <= full // 2
    assert set(bank._entries) >= {DIGESTS[5]}


def test_a_prompt_that_is_let_go_while_it_is_prepared_leaves_nothing_behind(model: FrozenModel) -> None:
    class LeavingMeanwhile(CachedDecoding):
        def prepare(self, *given: Any, **named: Any) -> PreparedPrompt:
            bank.release(DIGESTS[0])
            return super().prepare(*given, **named)

    bank = PromptBank[RigSource](model, LeavingMeanwhile(model), budgets=Budgets(host_bytes=1))
    bank.hold(DIGESTS[0], lambda: _source(model, DIGESTS[0]))
    assert bank.prepared(DIGESTS[0]).size_bytes > 0
    assert bank.tier(DIGESTS[0]) is None
    assert bank.size_bytes == {"device": 0, "host": 0, "disk": 0}


def test_a_hold_looks_at_no_other_prompt(model: FrozenModel) -> None:
    """With thousands of prompts in a server, what each request does must not go through them all."""
    bank = PromptBank[RigSource](model, CachedDecoding(model), budgets=Budgets(host_bytes=1))
    source = _source(model, DIGESTS[0])
    for number in range(3):
        bank.hold(digest_of(f"pinned {number}"), lambda: source, pin=True)

    class Counted(type(bank._entries)):  # type: ignore[misc]
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("every prompt was looked at")

        values = items = keys = __iter__

    bank._entries = Counted(bank._entries.copy())
    bank.hold(DIGESTS[0], lambda: source)
    bank.release(DIGESTS[0])
    assert bank.tier(DIGESTS[0]) is None


def test_a_disk_that_takes_nothing_costs_no_answer(model: FrozenModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    spill = DiskSpill(tmp_path / "file" / "folder", model, CachedDecoding(model), budget_bytes=1 << 30)
    bank = _bank(model, on_device=1, on_host=0, spill=spill)
    _hold_all(bank, model)
    for digest in DIGESTS * 2:
        bank.prepared(digest)
    assert spill.unwritten > 0
    assert bank.tier(DIGESTS[0]) == "source"


def test_what_a_killed_process_left_half_written_is_removed_in_time(model: FrozenModel, tmp_path: Path) -> None:
    prepared = CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ())
    torn = [tmp_path / f".{name}.safetensors.{name}" for name in ("old", "new")]
    for path in torn:
        path.write_bytes(b"half")
    os.utime(torn[0], (0, 0))
    DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).put(DIGESTS[0], prepared)
    assert [path.exists() for path in torn] == [False, True]


def test_what_another_model_left_unused_for_a_month_is_removed(model: FrozenModel, tmp_path: Path) -> None:
    day = 86_400
    names = {age: f"{str(age)[0] * 64}.{'0' * 16}.{'a' * 64}.safetensors" for age in (40, 5)}
    for age, name in names.items():
        (tmp_path / name).write_bytes(b"of another model")
        os.utime(tmp_path / name, (time.time() - age * day,) * 2)
    spill = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30)
    spill.put(DIGESTS[0], CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ()))
    own = next(path for path in tmp_path.glob("*.safetensors") if path.name not in names.values())
    os.utime(own, (time.time() - 40 * day,) * 2)
    assert DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).get(DIGESTS[0]) is not None
    assert [(tmp_path / names[age]).exists() for age in (40, 5)] == [False, True]


def test_a_spill_of_an_earlier_process_is_used_again(model: FrozenModel, tmp_path: Path) -> None:
    prepared = CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), (5, 6))
    DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).put(DIGESTS[0], prepared)
    found = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).get(DIGESTS[0])
    assert found is not None
    assert found.prefix_ids == (5, 6)
    assert torch.equal(found.tensors["keys"], prepared.tensors["keys"])


def test_a_spill_is_never_read_for_another_model(model: FrozenModel, tmp_path: Path) -> None:
    prepared = CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ())
    DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).put(DIGESTS[0], prepared)
    other = tiny_llama(seed=1)
    assert DiskSpill(tmp_path, other, CachedDecoding(other), budget_bytes=1 << 30).get(DIGESTS[0]) is None


def test_a_spill_is_read_by_the_code_that_wrote_it_and_no_other(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors of one way of decoding, or of one release, mean nothing to another, whatever their names."""
    prepared = CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ())
    DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).put(DIGESTS[0], prepared)
    assert DiskSpill(tmp_path, model, RecomputedDecoding(model), budget_bytes=1 << 30).get(DIGESTS[0]) is None
    monkeypatch.setattr("promptstore.runtime.spill.installed_version", lambda _: "0.0.1")
    assert DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30).get(DIGESTS[0]) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_spill_is_dropped_and_computed_again(model: FrozenModel, tmp_path: Path, damage: str) -> None:
    spill = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30)
    spill.put(DIGESTS[0], CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ()))
    (path,) = tmp_path.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-8])
    else:
        path.unlink()
    assert spill.get(DIGESTS[0]) is None
    assert DIGESTS[0] not in spill
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_spill_keeps_within_its_budget_and_drops_the_least_recently_used(model: FrozenModel, tmp_path: Path) -> None:
    prepared = CachedDecoding(model).prepare(torch.ones(4, model.hidden_size), ())
    spill = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30)
    spill.put(DIGESTS[0], prepared)
    small = DiskSpill(tmp_path / "small", model, CachedDecoding(model), budget_bytes=int(2.5 * spill.size_bytes))
    for digest in DIGESTS[:2]:
        small.put(digest, prepared)
    assert small.get(DIGESTS[0]) is not None
    small.put(DIGESTS[2], prepared)
    assert [digest in small for digest in DIGESTS[:3]] == [True, False, True]
    assert len(list((tmp_path / "small").glob("*.safetensors"))) == 2
