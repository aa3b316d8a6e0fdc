"""SIGKILL before and after every single call of an operation, in a process of its own."""

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from promptstore.core.ref import PromptRef
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.copy import copy_store
from promptstore.store.garbage import collect_garbage
from promptstore.store.layout import CHECKPOINTS, HINT_KEY, checkpoint_key
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.scripted_objects import Fault, ScriptedObjects, nth
from promptstore.testing.servers import S3Server
from promptstore.testing.store_samples import sample_prompt, sample_task

PASS = Statement("gate", {"verdict": "pass"})
NO_GRACE = timedelta(0)
Act = Callable[[PromptStore], object]
Place = Callable[[], ObjectStore]
# Every turn reads all of the log some ten times: one store for all turns would take the square of their number.
TURNS_OF_A_STORE = 4


@pytest.fixture(params=["local", pytest.param("seaweedfs", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Gives one empty place for a store after the other."""
    if request.param == "local":
        return lambda: LocalObjectStore(tmp_path / uuid4().hex)
    server: S3Server = request.getfixturevalue("seaweedfs")
    return lambda: S3ObjectStore(server.bucket, f"kills/{uuid4().hex}", S3Options(endpoint=server.endpoint))


@pytest.fixture
def objects(place: Place) -> ObjectStore:
    return place()


def open_(objects: ObjectStore) -> PromptStore:
    return PromptStore(Ledger.open(objects, actor="me"), objects)


def dies(objects: ObjectStore, act: Act, fault: Fault, call: int) -> bool:
    """Whether a child process is killed at that call of `act`, counted from its beginning; it is done otherwise."""
    child = os.fork()
    if child == 0:
        exit_code = 1
        try:
            scripted = ScriptedObjects(objects)
            prompts = open_(scripted)
            start = len(scripted.calls)
            scripted.script = nth(fault, start + call)
            act(prompts)
            exit_code = 0
        finally:
            os._exit(exit_code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def publish(seed: int, task: str = "a") -> Act:
    return lambda prompts: prompts.publish(sample_prompt(seed), sample_task(task))


def release(number: int) -> Act:
    moves = [Promotion(PromptRef(task, number=number), statements=[PASS]) for task in ("a", "b")]
    return lambda prompts: prompts.release(moves, reason="both")


def promote(number: int) -> Act:
    return lambda prompts: prompts.promote(f"a:{number}", "staging", reason="try")


def collect(prompts: PromptStore) -> None:
    collect_garbage(prompts.ledger, grace=NO_GRACE, dry_run=False)


def prepare_release(prompts: PromptStore, turn: int) -> None:
    for task in ("a", "b"):
        prompts.publish(sample_prompt(turn), sample_task(task))


def prepare_garbage(prompts: PromptStore, turn: int) -> None:
    version = prompts.publish(sample_prompt(turn), sample_task("a"))
    prompts.publish(sample_prompt(turn), sample_task("b"))
    prompts.expire([PromptRef("a", number=version.number)])


@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_AFTER])
@pytest.mark.parametrize(
    ("prepare", "act"),
    [
        (lambda _prompts, _turn: None, publish),
        (prepare_release, lambda turn: promote(turn + 1)),
        (prepare_release, lambda turn: release(turn + 1)),
        (prepare_garbage, lambda _turn: collect),
    ],
    ids=["publish", "promote", "release", "gc"],
)
def test_a_process_killed_at_any_call_leaves_a_clean_store(
    place: Place,
    fault: Fault,
    prepare: Callable[[PromptStore, int], None],
    act: Callable[[int], Act],
) -> None:
    """Several turns on the same store, so that what earlier deaths left behind is there, too."""
    objects = place()
    Ledger.create(objects, actor="me")
    for killed in range(50):
        turn = killed % TURNS_OF_A_STORE
        if killed and turn == 0:
            require_whole(objects)
            objects = place()
            Ledger.create(objects, actor="me")
        if not survives(objects, prepare, act(turn), fault, turn, killed):
            break
    require_whole(objects)
    print(f"{killed} kills")
    assert 1 < killed < 50


def survives(
    objects: ObjectStore, prepare: Callable[[PromptStore, int], None], act: Act, fault: Fault, turn: int, call: int
) -> bool:
    """Whether there was a death at that call of `act`; whatever it left is sound, and repeating the act ends well."""
    prepare(open_(objects), turn)
    before = open_(objects).state
    if not dies(objects, act, fault, call):
        return False
    after = open_(objects).state
    assert after.number - before.number in (0, 1), "more than the one commit, or an acknowledged one is gone"
    assert verify(objects).problems == ()
    again = open_(objects)
    act(again)
    assert again.state.number - before.number <= 2
    act(again)
    assert open_(objects).state.number == again.state.number, "repeating what is done changes nothing"
    return True


def require_whole(objects: ObjectStore) -> None:
    assert verify(objects).problems == ()
    for name, task in open_(objects).state.tasks.items():
        for version in task.versions:
            if not version.is_expired:
                open_(objects).pull(f"{name}:{version.number}", for_model=None)


def test_a_copy_killed_at_any_call_goes_on(objects: ObjectStore, tmp_path: Path) -> None:
    Ledger.create(objects, actor="me")
    for seed in range(3):
        publish(seed)(open_(objects))
    killed = 0
    for turn in range(0, 200, 3):
        place = tmp_path / "copies" / str(turn)

        def copy_with_a_death(prompts: PromptStore, place: Path = place, turn: int = turn) -> None:
            copy_store(prompts.ledger, ScriptedObjects(LocalObjectStore(place), nth(Fault.KILL_AFTER, turn)))

        if not dies(objects, copy_with_a_death, Fault.KILL_AFTER, -1):  # the call is one of the copy's own
            break
        killed += 1
        copy_store(open_(objects).ledger, LocalObjectStore(place))
        assert open_(LocalObjectStore(place)).state == open_(objects).state
        assert verify(LocalObjectStore(place)).problems == ()
    assert killed > 4


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Folders of one store, as it was after each of these commits."""
    folder, stages = tmp_path_factory.mktemp("grown"), {}
    objects = LocalObjectStore(folder / "store")
    Ledger.create(objects, actor="me")
    prompts = open_(objects)
    for turn in range(2):
        publish(turn)(prompts)
    for turn in range(99):
        promote(1 + turn % 2)(prompts)
        number = prompts.state.number
        if number >= 99:
            stages[number] = shutil.copytree(folder / "store", folder / str(number))
    return stages


@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_AFTER])
@pytest.mark.parametrize(
    ("commits", "left"), [(99, None), (100, checkpoint_key(100)), (101, HINT_KEY)], ids=["99", "100", "101"]
)
def test_a_publish_killed_around_a_checkpoint_or_its_hint_leaves_a_clean_store(
    grown: Mapping[int, Path], tmp_path: Path, fault: Fault, commits: int, left: str | None
) -> None:
    """Commit 101 leaves the checkpoint of commit 100 after it, commit 102 the hint: the last call of a publish.

    left: what the publish leaves after its commit.
    """
    is_left = []
    for call in range(50):
        objects = LocalObjectStore(shutil.copytree(grown[commits], tmp_path / str(call), copy_function=os.link))
        if not dies(objects, publish(commits), fault, call):
            break
        again, found = open_(objects), verify(objects)
        assert again.state == found.state
        assert again.state.number - commits in (0, 1)
        assert found.problems == ()
        if again.state.number > commits and left is not None:
            is_left.append(left in {info.key for info in objects.list(CHECKPOINTS)})
        for seed in range(commits, 102):
            publish(seed)(again)
        found = verify(objects)
        assert found.problems == ()
        assert open_(objects).state == found.state == again.state
        assert again.state.number == 102
    print(f"{call} kills; after the commit, whether {left} was left: {is_left}")
    assert 3 < call < 50
    if left is not None:
        assert is_left == ([False] if fault is Fault.KILL_BEFORE else [False, True]), "no kill hit that put"
