"""Stores on disks that are full, or that may only be read."""

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from promptstore.core.ref import PromptRef
from promptstore.errors import StoreUnavailableError
from promptstore.objects.local import LocalObjectStore
from promptstore.store.cache import PromptCache
from promptstore.store.garbage import collect_garbage
from promptstore.store.ledger import Ledger
from promptstore.store.memory import HeadMemory
from promptstore.store.promotion import Promotion
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.store_samples import IMPATIENT, sample_prompt, sample_store, sample_task

NOBODY = 65534


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a process of its own, which it may harm; its assertions count."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("largest_file", [10, 150, 1000])
def test_a_publish_on_a_full_disk_changes_nothing_and_can_be_repeated(folder: Path, largest_file: int) -> None:
    """Room for nothing, for the payload alone, for all but the commit. A limit on file size stands for the disk's."""
    objects = LocalObjectStore(folder)
    prompts = sample_store(objects)
    prompts.publish(sample_prompt(0), sample_task())
    before = prompts.state

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        with pytest.raises(StoreUnavailableError, match="free some space"):
            prompts.publish(sample_prompt(1), sample_task(), reason="why " * 500)
        assert prompts.pull("sst2:1", for_model=None).prompt.embeddings.any()

    in_child(work)
    found = verify(objects)
    assert found.problems == ()
    assert prompts.refresh() == before
    assert prompts.publish(sample_prompt(1), sample_task()).number == 2
    assert verify(objects).problems == ()


CHANGES: dict[str, Callable[[PromptStore], object]] = {
    "promote": lambda prompts: prompts.promote("sst2:2", "staging", reason="why " * 500),
    "release": lambda prompts: prompts.release(
        [Promotion(PromptRef("sst2", number=2), "staging"), Promotion(PromptRef("sst2", number=2), "canary")],
        reason="why " * 500,
    ),
    "gc": lambda prompts: collect_garbage(prompts.ledger, grace=timedelta(0), dry_run=False, reason="why " * 500),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("largest_file", [10, 1000])
def test_no_other_change_is_half_done_on_a_full_disk(folder: Path, change: str, largest_file: int) -> None:
    objects = LocalObjectStore(folder)
    prompts = sample_store(objects)
    for seed in range(2):
        prompts.publish(sample_prompt(seed), sample_task())
    prompts.expire(["sst2:1"])
    before = prompts.state

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        with pytest.raises(StoreUnavailableError, match="free some space"):
            CHANGES[change](prompts)

    in_child(work)
    assert verify(objects).problems == ()
    assert prompts.refresh() == before
    CHANGES[change](prompts)
    assert prompts.refresh() != before
    assert verify(objects).problems == ()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_store_that_may_only_be_read_is_read_and_says_why_it_cannot_be_written(folder: Path) -> None:
    objects = LocalObjectStore(folder / "store")
    sample_store(objects).publish(sample_prompt(0), sample_task())
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        elsewhere = folder / "not mine"
        ledger = Ledger.open(objects, actor="reader", memory=HeadMemory(elsewhere / "heads"), patience=IMPATIENT)
        prompts = PromptStore(ledger, objects, cache=PromptCache(elsewhere / "cache", 1 << 20))
        prompts.pull("sst2:1", for_model=None)
        assert prompts.refresh().number == 1
        assert verify(objects).is_clean
        writes: list[Callable[[], object]] = [
            lambda: prompts.publish(sample_prompt(1), sample_task()),
            lambda: prompts.promote("sst2:1", "staging"),
        ]
        for write in writes:
            with pytest.raises(StoreUnavailableError, match="permission"):
                write()

    in_child(work)
    assert verify(objects).is_clean
