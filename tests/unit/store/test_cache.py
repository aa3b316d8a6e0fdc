"""The cache of pulled bytes."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from promptstore.core.digest import sha256_hex
from promptstore.store.cache import PromptCache

MANY_BYTES = 16_000


def blob(number: int, size: int = 1000) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def put(cache: PromptCache, number: int, *, age_s: int = 0, folder: Path | None = None) -> str:
    data = blob(number)
    digest = sha256_hex(data)
    cache.put(digest, data)
    if folder is not None:
        path = folder / digest[:2] / digest
        if path.exists():
            then = path.stat().st_mtime - age_s
            os.utime(path, (then, then))
    return digest


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10_000)
    digest = put(cache, 1)
    assert cache.get(digest) == blob(1)
    assert cache.get(sha256_hex(b"other")) is None


def test_it_stays_within_its_bound(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10_000)
    for number in range(100):
        put(cache, number)
        assert size(tmp_path) <= 10_000 + 10_000 // 16 + 1000


def test_a_new_process_counts_what_the_old_one_left(tmp_path: Path) -> None:
    for number in range(30):
        put(PromptCache(tmp_path, 10_000), number)
        assert size(tmp_path) <= 10_000


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 4000)
    digests = [put(cache, number, age_s=100 - number, folder=tmp_path) for number in range(4)]
    assert cache.get(digests[0]) is not None
    put(cache, 9)
    assert [cache.get(digest) is not None for digest in digests] == [True, False, True, True]


def test_a_damaged_entry_is_dropped(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10_000)
    digest = put(cache, 1)
    path = tmp_path / digest[:2] / digest
    path.write_bytes(b"damaged")
    assert cache.get(digest) is None
    assert not path.exists()


def test_something_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 100)
    assert cache.get(put(cache, 1)) is None


@pytest.mark.parametrize("obstacle", ["file in the way", "missing device"])
def test_a_cache_that_cannot_be_written_is_an_empty_one(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / "cache").write_text("in the way")
    folder = tmp_path / "cache" if obstacle == "file in the way" else Path("/dev/full/cache")
    cache = PromptCache(folder, 10_000)
    assert cache.get(put(cache, 1)) is None


def test_a_full_disk_is_not_an_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes every write beyond 500 bytes fail, as a full disk does."""
    program = f"""
import resource, signal, sys
from pathlib import Path
from promptstore.core.digest import sha256_hex
from promptstore.store.cache import PromptCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
cache = PromptCache(Path({str(tmp_path)!r}), 10_000)
data = b"x" * 1000
cache.put(sha256_hex(data), data)
assert cache.get(sha256_hex(data)) is None
small = b"y" * 100
cache.put(sha256_hex(small), small)
assert cache.get(sha256_hex(small)) == small
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()] == [100]


def test_many_threads_and_caches_share_a_folder(tmp_path: Path) -> None:
    caches = [PromptCache(tmp_path, 8000) for _ in range(4)]

    def use(step: int) -> None:
        cache = caches[step % 4]
        data = blob(step % 20)
        cache.put(sha256_hex(data), data)
        assert cache.get(sha256_hex(data)) in (data, None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(400)))
    assert not list(tmp_path.rglob(".*"))


def use_as_a_process(folder: Path, first: int) -> None:
    cache = PromptCache(folder, MANY_BYTES)
    for step in range(first, first + 300):
        data = blob(step % 100)
        cache.put(sha256_hex(data), data)
        found = cache.get(sha256_hex(data))
        assert found in (data, None)


def test_many_processes_share_a_folder_within_the_bound(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    users = [fork.Process(target=use_as_a_process, args=(tmp_path, 25 * at)) for at in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert [user.exitcode for user in users] == [0] * 4
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert sum(path.stat().st_size for path in kept) <= MANY_BYTES * (1 + len(users) / 16)
    assert all(sha256_hex(path.read_bytes()) == path.name for path in kept)
