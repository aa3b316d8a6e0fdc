"""What every object store must keep: subclass `ObjectStoreContract` and give it a `store` fixture."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event

import pytest

from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.store.objects import ObjectStore

MEBIBYTE = 1 << 20
ODD_KEYS = (
    "a b/c+d",
    "percent%20sign/100%",
    "ünï/cødé-Ω-日本語-🦜",
    "query?x=1&y=2/hash#3",
    "semi;colon,comma/'quote'",
    "tilde~/(brackets)[]{}",
    "long/" + "x" * 180,
)
BAD_KEYS = ("", "/absolute", "a//b", "trailing/", "..", "a/../b", ".hidden", "a/.b", "a\\b", "a\nb", "x" * 901)


class ObjectStoreContract:
    """The tests of the port `promptstore.store.objects.ObjectStore`.

    A subclass defines a fixture `store` that gives an empty store to every test.

    is_atomic_under_races: `False` for emulators that check create-only without a lock. A race may then have
        more than one winner, so the test of it only requires that somebody wins; never set it for a real store.
    orders_names_that_continue_folders: `False` for servers that list folder by folder (`a/x` before `a-b`). The store
        format has no such names, so the tests with its kinds of names hold for them too.
    race_rounds: how often the create-only race is run.
    listed_objects: how many to list at once; more than the 1,000 of a page of S3.
    clock_tolerance: how far the store's clock may be from this machine's.
    """

    is_atomic_under_races = True
    orders_names_that_continue_folders = True
    race_rounds = 40
    listed_objects = 1_100
    clock_tolerance = timedelta(minutes=5)

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError("a subclass gives the store")

    def test_url_names_the_store(self, store: ObjectStore) -> None:
        assert "://" in store.url

    def test_get_returns_the_bytes_that_put_wrote(self, store: ObjectStore) -> None:
        store.put("a/b.json", b"\x00\xffbytes\r\n")
        assert store.get("a/b.json") == b"\x00\xffbytes\r\n"

    def test_get_of_a_missing_key_says_so(self, store: ObjectStore) -> None:
        store.put("a/present", b"x")
        with pytest.raises(NotFoundError, match="a/missing"):
            store.get("a/missing")

    def test_a_folder_of_keys_is_no_object(self, store: ObjectStore) -> None:
        store.put("a/b/c", b"x")
        with pytest.raises(NotFoundError):
            store.get("a/b")

    def test_put_overwrites_whole(self, store: ObjectStore) -> None:
        store.put("k", b"a long first value")
        store.put("k", b"short")
        assert store.get("k") == b"short"

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * (MEBIBYTE // 256)], ids=["empty", "1B", "1MiB"])
    def test_objects_of_any_size_keep_their_bytes(self, store: ObjectStore, data: bytes) -> None:
        store.put("put", data)
        assert store.put_if_absent("created", data) is True
        assert store.get("put") == data
        assert store.get("created") == data
        assert {info.key: info.size_bytes for info in store.list("")} == {"put": len(data), "created": len(data)}

    def test_put_if_absent_creates_once(self, store: ObjectStore) -> None:
        assert store.put_if_absent("c/1", b"first") is True
        assert store.put_if_absent("c/1", b"second") is False
        assert store.put_if_absent("c/1", b"first") is False
        assert store.get("c/1") == b"first"

    def test_put_if_absent_respects_what_put_wrote(self, store: ObjectStore) -> None:
        store.put("k", b"")
        assert store.put_if_absent("k", b"later") is False
        assert store.get("k") == b""

    def test_put_if_absent_creates_again_after_delete(self, store: ObjectStore) -> None:
        assert store.put_if_absent("k", b"1") is True
        store.delete("k")
        assert store.put_if_absent("k", b"2") is True
        assert store.get("k") == b"2"

    def test_delete_removes_from_get_and_list_and_is_silent_when_repeated(self, store: ObjectStore) -> None:
        store.put("d/1", b"x")
        store.put("d/2", b"y")
        store.delete("d/1")
        store.delete("d/1")
        store.delete("never/was")
        with pytest.raises(NotFoundError):
            store.get("d/1")
        assert [info.key for info in store.list("")] == ["d/2"]

    def test_list_of_an_empty_store_is_empty(self, store: ObjectStore) -> None:
        assert list(store.list("")) == []
        assert list(store.list("commits/")) == []

    def test_list_gives_keys_in_the_order_of_their_bytes(self, store: ObjectStore) -> None:
        keys = [
            "B/1",
            "a0",
            "a1/x",
            "ab",
            "ac/9",
            "ac/A",
            "ac/a",
            "store.json",
            "z/1",
            "é/1",
            "\uffee/1",
            "\U0001f99c/1",
        ]
        for key in reversed(keys):
            store.put(key, b"")
        assert keys == sorted(keys, key=lambda key: key.encode())
        assert [info.key for info in store.list("")] == keys

    def test_list_orders_names_that_continue_a_folder_by_bytes_too(self, store: ObjectStore) -> None:
        keys = ["b-/c", "b.d/e", "b/c", "b/c-d", "b/c0", "b0/c", "bb"]
        for key in reversed(keys):
            store.put(key, b"")
        listed = [info.key for info in store.list("b")]
        assert sorted(listed) == keys
        if self.orders_names_that_continue_folders:
            assert listed == keys
            assert [info.key for info in store.list("", start_after="b")] == keys
            assert [info.key for info in store.list("", start_after="b.d")] == keys[1:]

    def test_list_keeps_to_the_prefix_even_inside_a_name(self, store: ObjectStore) -> None:
        keys = ["checkpoints/1", "commit", "commits/00041", "commits/00042", "manifests/1"]
        for key in keys:
            store.put(key, b"")
        assert [info.key for info in store.list("commits/")] == ["commits/00041", "commits/00042"]
        assert [info.key for info in store.list("commits/00042")] == ["commits/00042"]
        assert [info.key for info in store.list("commit")] == ["commit", "commits/00041", "commits/00042"]
        assert list(store.list("commits/9")) == []

    def test_list_starts_after_a_key_that_need_not_exist(self, store: ObjectStore) -> None:
        store.put("checkpoints/1", b"")
        for number in range(1, 8):
            store.put(f"commits/{number:04}", b"")
        store.put("payloads/ab/cd", b"")

        def after(start: str) -> list[str]:
            return [info.key for info in store.list("commits/", start_after=start)]

        assert after("commits/0005") == ["commits/0006", "commits/0007"]
        assert after("commits/0005x") == ["commits/0006", "commits/0007"]
        assert after("commits/0007") == []
        for below in ("a", "checkpoints/1", "commits", "commits/", "commits/0"):
            assert len(after(below)) == 7, below
        for above in ("commits0", "d", "payloads/ab"):
            assert after(above) == [], above
        assert [info.key for info in store.list("", start_after="commits/0007")] == ["payloads/ab/cd"]

    def test_list_goes_on_beyond_one_page(self, store: ObjectStore) -> None:
        keys = [f"manifests/{number:04}" for number in range(self.listed_objects)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert [info.key for info in store.list("manifests/")] == keys
        assert [info.key for info in store.list("manifests/", start_after=keys[9])] == keys[10:]

    def test_list_tells_size_and_time_by_the_clock_of_the_store(self, store: ObjectStore) -> None:
        store.put("k", b"12345")
        (info,) = store.list("k")
        assert info.size_bytes == 5
        assert info.modified_at.utcoffset() == timedelta(0)
        assert abs(info.modified_at - datetime.now(UTC)) < self.clock_tolerance

    def test_put_again_refreshes_the_modification_time(self, store: ObjectStore) -> None:
        store.put("k", b"same")
        (before,) = store.list("k")
        Event().wait(1.1)  # S3 tells whole seconds
        store.put("k", b"same")
        (after,) = store.list("k")
        assert after.modified_at > before.modified_at

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys_round_trip(self, store: ObjectStore, key: str) -> None:
        assert store.put_if_absent(key, key.encode()) is True
        assert store.put_if_absent(key, b"again") is False
        assert store.get(key) == key.encode()
        assert [info.key for info in store.list("")] == [key]
        assert [info.key for info in store.list(key)] == [key]
        store.delete(key)
        assert list(store.list("")) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_keys_that_not_every_store_can_keep_are_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(InvalidInputError):
            store.put(key, b"x")
        with pytest.raises(InvalidInputError):
            store.put_if_absent(key, b"x")
        with pytest.raises(InvalidInputError):
            store.get(key)
        with pytest.raises(InvalidInputError):
            store.delete(key)
        assert list(store.list("")) == []

    def test_of_sixteen_racing_creators_exactly_one_wins_and_its_bytes_stay(self, store: ObjectStore) -> None:
        winners_seen: Counter[int] = Counter()
        for round_number in range(self.race_rounds):
            key = f"commits/{round_number:020}.json"
            bodies = [f"writer {writer} ".encode() * 200 for writer in range(16)]
            won = [body for body, is_mine in zip(bodies, _race_to_create(store, key, bodies), strict=True) if is_mine]
            winners_seen[len(won)] += 1
            assert won, f"{key}: nobody won"
            if self.is_atomic_under_races:
                assert [store.get(key)] == won
        print(f"{store.url}: {self.race_rounds} races of 16, winners per race {dict(winners_seen)}")  # noqa: T201

    def test_readers_never_see_a_mix_of_two_writes(self, store: ObjectStore) -> None:
        key = "checkpoints/latest.json"
        bodies = [bytes([letter]) * (256 << 10) for letter in b"abcd"]
        store.put(key, bodies[0])
        start = Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            readers = [pool.submit(_read, store, key, start) for _ in range(4)]
            writers = [pool.submit(_overwrite, store, key, body, start, readers) for body in bodies]
            seen = Counter(body for reader in readers for body in reader.result())
            overwrites = sum(writer.result() for writer in writers)
        assert set(seen) <= set(bodies), "a reader saw bytes that nobody wrote"
        assert len(seen) > 1, "the readers saw no write at work"
        print(f"{store.url}: {seen.total()} reads, {overwrites} overwrites, {len(seen)} of 4 values seen")  # noqa: T201

    def test_readers_never_see_half_of_a_created_object(self, store: ObjectStore) -> None:
        body = b"payload " * (32 << 10)
        with ThreadPoolExecutor(4) as pool:
            for number in range(20):
                key = f"payloads/{number:04}"
                reader = pool.submit(_poll, store, key)
                store.put_if_absent(key, body)
                assert reader.result() == body


def _race_to_create(store: ObjectStore, key: str, bodies: Sequence[bytes]) -> list[bool]:
    barrier = Barrier(len(bodies))

    def create(body: bytes) -> bool:
        barrier.wait()
        return store.put_if_absent(key, body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(create, bodies))


def _read(store: ObjectStore, key: str, start: Barrier) -> list[bytes]:
    """At least twenty reads, and as many more as it takes to see a write happen."""
    start.wait()
    seen = [store.get(key) for _ in range(20)]
    deadline = time.monotonic() + 60
    while len(set(seen)) < 2 and time.monotonic() < deadline:
        seen.append(store.get(key))
    return seen


def _overwrite(
    store: ObjectStore, key: str, body: bytes, start: Barrier, readers: Sequence[Future[list[bytes]]]
) -> int:
    """Write until the readers are done; gives how often."""
    start.wait()
    times = 0
    while not all(reader.done() for reader in readers):
        store.put(key, body)
        times += 1
    return times


def _poll(store: ObjectStore, key: str) -> bytes:
    while True:
        try:
            return store.get(key)
        except NotFoundError:
            continue
