"""Deleting what no version needs, while others publish."""

from datetime import datetime, timedelta

import pytest

from flows.parameters import MaintainParameters
from promptstore.cli.care import DEFAULT_GRACE_HOURS
from promptstore.core.operation import Condemn
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.garbage import DEFAULT_GRACE, collect_garbage
from promptstore.store.layout import CHECKPOINTS, CLOCK, BlobKey, checkpoint_key
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.scripted_objects import Call, CrashError, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, START, sample_prompt, sample_store, sample_task

GRACE = timedelta(days=1)


class World:
    """A store whose own clock is set by hand, apart from those of its writers."""

    def __init__(self) -> None:
        self.now = START
        self.objects = ScriptedObjects(MemoryObjectStore(clock=lambda: self.now))
        self.prompts = sample_store(self.objects, clock=self.wrong_clock)

    def wrong_clock(self) -> datetime:
        """Writers' clocks are off by a day, and must not matter."""
        return self.now - timedelta(days=1)

    def wait(self, time: timedelta) -> None:
        self.now += time

    def publish(self, seed: int = 0) -> None:
        self.prompts.publish(sample_prompt(seed), sample_task())

    def leave_orphan(self, seed: int = 0) -> None:
        """A writer dies before its commit."""
        self.objects.script = lambda call: Fault.CRASH_BEFORE if call.key.startswith("commits/") else None
        with pytest.raises(CrashError):
            self.publish(seed)
        self.objects.script = lambda _: None
        self.prompts = self.another()

    def another(self) -> PromptStore:
        return PromptStore(Ledger.open(self.objects, actor="other", patience=IMPATIENT), self.objects)

    def collect(self, *, dry_run: bool = False) -> list[tuple[str, str]]:
        found = collect_garbage(self.another().ledger, grace=GRACE, dry_run=dry_run)
        return [(each.key.partition("/")[0], each.reason) for each in found]

    def blobs(self) -> set[str]:
        return {info.key for info in self.objects.list("") if BlobKey.parse(info.key)}


@pytest.fixture
def world() -> World:
    return World()


def test_a_dry_run_says_what_would_go_and_changes_nothing(world: World) -> None:
    world.leave_orphan()
    world.wait(GRACE * 2)
    before = {info.key for info in world.objects.list("")}
    assert sorted(world.collect(dry_run=True)) == [("manifests", "orphan"), ("payloads", "orphan")]
    assert {info.key for info in world.objects.list("")} == before
    assert world.prompts.refresh().number == 0


def test_orphans_go_once_they_are_older_than_the_grace_by_the_stores_clock(world: World) -> None:
    world.publish(1)
    kept = world.blobs()
    world.leave_orphan(2)
    world.wait(GRACE)
    assert world.collect() == []
    world.wait(timedelta(seconds=1))
    assert len(world.collect()) == 2
    assert world.blobs() == kept
    assert world.collect() == []


def test_an_expired_version_stays_for_the_grace_after_its_expiry(world: World) -> None:
    world.publish(1)
    world.publish(2)
    world.wait(timedelta(days=100))
    world.prompts.expire(["sst2:1"])
    assert world.collect() == []
    world.wait(GRACE + timedelta(seconds=1))
    assert sorted(world.collect()) == [("manifests", "expired"), ("payloads", "expired")]
    world.another().pull("sst2:2", for_model=None)
    assert verify(world.objects).is_clean


def test_a_payload_that_another_version_shares_stays(world: World) -> None:
    world.publish(1)
    world.prompts.publish(sample_prompt(1), sample_task("other"))
    world.prompts.expire(["sst2:1"])
    world.wait(GRACE * 2)
    assert world.collect() == [("manifests", "expired")]
    world.another().pull("other:1", for_model=None)


def test_what_was_collected_can_be_published_again_and_collected_again(world: World) -> None:
    for round_ in range(1, 4):
        world.publish(1)
        assert world.prompts.state.task("sst2").versions[-1].number == round_
        world.another().pull(f"sst2:{round_}", for_model=None)
        assert verify(world.objects).is_clean
        world.prompts.expire([f"sst2:{round_}"])
        world.wait(GRACE * 2)
        assert world.collect()
        assert world.blobs() == set()


def test_a_slow_publish_whose_bytes_were_condemned_writes_them_again(world: World) -> None:
    """The collector runs between the payload of a publish and its commit, long after the grace."""

    def collect_before_the_commit(call: Call) -> None:
        if call.verb == "put_if_absent" and call.key.startswith("commits/"):
            world.objects.script = lambda _: None
            world.wait(GRACE * 2)
            assert len(world.collect()) == 2

    world.publish(1)
    world.objects.script = collect_before_the_commit
    world.publish(2)
    pulled = world.another().pull("sst2:2", for_model=None)
    assert (pulled.prompt.embeddings == sample_prompt(2).embeddings).all()
    assert verify(world.objects).is_clean


def _collector_calls() -> int:
    world = World()
    world.leave_orphan()
    world.wait(GRACE * 2)
    world.objects.calls.clear()
    assert len(world.collect()) == 2
    return len(world.objects.calls)


@pytest.mark.parametrize("step", range(_collector_calls()))
def test_a_publish_of_the_same_content_at_any_point_of_a_collection_is_safe(world: World, step: int) -> None:
    world.leave_orphan()
    world.wait(GRACE * 2)
    world.objects.calls.clear()

    def publish_at_that_call(call: Call) -> None:
        if call.number == step:
            world.objects.script = lambda _: None
            world.publish()

    world.objects.script = publish_at_that_call
    world.collect()
    world.objects.script = lambda _: None
    pulled = world.another().pull("sst2:1", for_model=None)
    assert (pulled.prompt.embeddings == sample_prompt().embeddings).all()
    world.wait(GRACE * 2)
    world.collect()
    world.another().pull("sst2:1", for_model=None)
    found = verify(world.objects)
    assert found.is_clean
    assert found.orphans == ()


@pytest.mark.parametrize("step", range(_collector_calls()))
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_a_collector_that_dies_anywhere_is_finished_by_the_next(world: World, step: int, fault: Fault) -> None:
    world.publish(1)
    world.leave_orphan(2)
    world.wait(GRACE * 2)
    world.objects.calls.clear()
    world.objects.script = lambda call: fault if call.number == step else None
    try:
        world.collect()
    except CrashError:
        pass
    else:
        pytest.fail("it was to die")
    world.objects.script = lambda _: None
    assert verify(world.objects).is_clean
    world.publish(2)
    world.wait(GRACE * 2)
    world.collect()
    found = verify(world.objects)
    assert found.is_clean
    assert found.orphans == ()
    assert not list(world.objects.list(CLOCK))
    for number in (1, 2):
        world.another().pull(f"sst2:{number}", for_model=None)


@pytest.mark.parametrize("step", range(_collector_calls()))
def test_two_collectors_at_once_do_no_harm(world: World, step: int) -> None:
    world.publish(1)
    world.leave_orphan(2)
    world.wait(GRACE * 2)
    world.objects.calls.clear()

    def collect_at_that_call(call: Call) -> None:
        if call.number == step:
            world.objects.script = lambda _: None
            world.collect()

    world.objects.script = collect_at_that_call
    world.collect()
    world.objects.script = lambda _: None
    assert len(world.blobs()) == 2
    operations = [operation for commit in world.another().ledger.commits() for operation in commit.operations]
    assert sum(isinstance(operation, Condemn) for operation in operations) == 1
    assert verify(world.objects).is_clean
    world.publish(2)
    world.another().pull("sst2:2", for_model=None)


def test_a_collector_without_grace_does_not_stop_another_that_reads_the_clock(world: World) -> None:
    world.leave_orphan()
    world.wait(GRACE * 2)

    def collect_before_the_clock_is_read(call: Call) -> None:
        if call.verb == "list" and call.key.startswith(CLOCK):
            world.objects.script = lambda _: None
            world.wait(timedelta(seconds=1))
            collect_garbage(world.another().ledger, grace=timedelta(0), dry_run=False)

    world.objects.script = collect_before_the_clock_is_read
    assert world.collect() == []
    assert world.blobs() == set()
    assert not list(world.objects.list(CLOCK))


def test_needless_checkpoints_go_and_cold_starts_stay_short(world: World) -> None:
    for seed in range(1205):
        world.publish(seed)
    world.wait(GRACE * 2)
    assert set(world.collect()) == {("checkpoints", "superseded checkpoint")}
    kept = [info.key for info in world.objects.list(CHECKPOINTS)]
    assert kept[:-1] == [checkpoint_key(number) for number in (900, 1000, 1100, 1200)]
    world.objects.calls.clear()
    state = world.another().state
    assert state == world.prompts.state
    assert len(world.objects.calls) < 30
    assert verify(world.objects).is_clean


def test_the_usual_grace_is_a_week() -> None:
    """For a caller, at the command line and in the flow alike."""
    assert timedelta(days=7) == DEFAULT_GRACE
    assert timedelta(hours=DEFAULT_GRACE_HOURS) == DEFAULT_GRACE
    assert timedelta(hours=MaintainParameters().grace_hours) == DEFAULT_GRACE
