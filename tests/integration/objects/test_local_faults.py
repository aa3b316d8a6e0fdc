"""The local driver on disks that are full, read-only, forbidden, or lose their writer."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from promptstore.errors import (
    CommitOutcomeUnknownError,
    InvalidInputError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from promptstore.objects.local import UNFINISHED, UNFINISHED_KEPT_S, LocalObjectStore
from promptstore.store.objects import ObjectStore

FORK = multiprocessing.get_context("fork")
NOBODY = 65534
is_root = os.getuid() == 0


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _in_child(work: Callable[[], None]) -> None:
    """Run `work` in a process of its own, which it may harm; its assertions count."""
    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _refuses_to_write(store: ObjectStore, message: str) -> None:
    with pytest.raises(StoreUnavailableError, match=message):
        store.put("a/put", b"x" * 200_000)
    with pytest.raises(StoreUnavailableError, match=message):
        store.put_if_absent("b/created", b"x" * 200_000)


def test_a_write_cut_short_by_a_limit_leaves_nothing(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    store.put("a/old", b"kept")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        _refuses_to_write(store, "free some space")

    _in_child(work)
    assert _files(tmp_path) == ["a/old"]
    assert store.get("a/old") == b"kept"


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from promptstore.errors import StoreUnavailableError
from promptstore.objects.local import LocalObjectStore

folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
store = LocalObjectStore(folder)
store.put("a/old", b"o" * 100_000)
for write in (store.put, store.put_if_absent):
    for key in ("a/old2", "c/new"):
        try:
            write(key, b"x" * 300_000)
        except StoreUnavailableError as error:
            assert "No space left" in str(error) and "free some space" in str(error), error
        else:
            raise AssertionError("a full disk took a write")
assert [info.key for info in store.list("")] == ["a/old"]
assert not list((folder / ".unfinished").iterdir())
assert store.get("a/old") == b"o" * 100_000
assert store.put_if_absent("c/new", b"x" * 50_000)
"""


def test_a_full_disk_is_told_as_such_and_keeps_what_it_held(tmp_path: Path) -> None:
    private = ["unshare", "--mount"] if is_root else ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*private, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*private, sys.executable, "-c", FULL_DISK, tmp_path], check=False, capture_output=True, text=True
    )
    if "permission denied" in done.stderr.lower() and "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_without_permission_is_told_as_such(open_folder: Path) -> None:
    store = LocalObjectStore(open_folder / "store")
    store.put("a/old", b"kept")
    (open_folder / "store" / "a" / "old").chmod(0o600)
    for folder in ("store/a", f"store/{UNFINISHED}", "store"):
        (open_folder / folder).chmod(0o555)

    def work() -> None:
        if is_root:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        _refuses_to_write(store, "give this user permission")
        _refuses_to_write(LocalObjectStore(open_folder / "another"), "give this user permission")
        with pytest.raises(StoreUnavailableError, match="permission"):
            store.delete("a/old")
        if is_root:
            with pytest.raises(StoreUnavailableError, match="permission"):
                store.get("a/old")

    _in_child(work)
    for folder in ("store", "store/a", f"store/{UNFINISHED}"):
        (open_folder / folder).chmod(0o755)
    assert _files(open_folder) == ["store/a/old"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(source), None, str(target))

    monkeypatch.setattr(os, "link", no_link)
    store = LocalObjectStore(tmp_path)
    with pytest.raises(UnsupportedStoreError, match="without hard links"):
        store.put_if_absent("commits/1", b"x")
    assert _files(tmp_path) == []


def test_a_create_that_may_not_survive_a_crash_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalObjectStore(tmp_path)
    store.put_if_absent("commits/1", b"x")
    sync = os.fsync

    def broken_for_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", broken_for_folders)
    with pytest.raises(CommitOutcomeUnknownError, match="commits/2"):
        store.put_if_absent("commits/2", b"y")
    monkeypatch.undo()
    assert store.get("commits/2") == b"y"


def test_a_key_below_another_key_is_refused(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    store.put("a", b"x")
    store.put("b/c", b"y")
    for key in ("a/b", "b"):
        with pytest.raises(InvalidInputError):
            store.put(key, b"z")
        with pytest.raises(InvalidInputError):
            store.put_if_absent(key, b"z")
    assert _files(tmp_path) == ["a", "b/c"]


def test_what_a_killed_writer_left_is_invisible_and_swept_a_day_later(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    body = os.urandom(4 << 20)

    def write_for_ever() -> None:
        number = 0
        while True:
            number += 1
            store.put_if_absent(f"payloads/{os.getpid()}-{number:06}", body)

    for _ in range(12):
        writer = FORK.Process(target=write_for_ever)
        writer.start()
        time.sleep(0.05)
        _kill(writer)
    left = list((tmp_path / UNFINISHED).iterdir())
    listed = [info.key for info in store.list("")]
    assert listed
    assert all(store.get(key) == body for key in listed), "half an object is visible"
    assert left, "no writer was killed at work: the test shows nothing"
    for path in left:
        os.utime(path, (time.time() - UNFINISHED_KEPT_S - 60,) * 2)
    store.put("store.json", b"{}")
    assert list((tmp_path / UNFINISHED).iterdir()) == []


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def test_of_many_racing_processes_exactly_one_creates_each_object(tmp_path: Path) -> None:
    """Eight processes, sixty keys, everybody tries every key."""
    keys = [f"commits/{number:04}" for number in range(60)]
    start, won = FORK.Barrier(8), FORK.SimpleQueue()

    def race(name: str) -> None:
        store = LocalObjectStore(tmp_path)
        start.wait()
        won.put((name, [key for key in keys if store.put_if_absent(key, name.encode())]))

    racers = [FORK.Process(target=race, args=(str(number),)) for number in range(8)]
    for racer in racers:
        racer.start()
    wins = dict(won.get() for _ in racers)
    for racer in racers:
        racer.join()
    store = LocalObjectStore(tmp_path)
    assert sorted(key for mine in wins.values() for key in mine) == keys
    assert all(store.get(key) == name.encode() for name, mine in wins.items() for key in mine)
    winners = sum(bool(mine) for mine in wins.values())
    print(f"{len(keys) * 7} conflicts, {winners} of 8 processes won some")
    assert winners > 1, "one process ran alone: no race was seen"
