"""The store against a dict, with every fault an object store can have.

Three clients with clocks of their own share one store. Each step is one operation of one of them, met by up to three
faults. Whatever is answered must be true: done, refused for the right reason, surely not done, or not known; and what a
fresh reader finds afterwards must be what the dict says.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from promptstore.core.instant import format_instant
from promptstore.core.manifest import Provenance
from promptstore.core.ref import PromptRef
from promptstore.core.state import StoreState
from promptstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    NotFoundError,
    PromptStoreError,
    RefusedError,
    StoreUnavailableError,
)
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.checkpoints import encode_hint
from promptstore.store.copy import copy_store
from promptstore.store.garbage import collect_garbage
from promptstore.store.layout import HINT_KEY, checkpoint_key
from promptstore.store.ledger import Ledger
from promptstore.store.promotion import ANY, Expected, Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.store.publication import Publication
from promptstore.store.verify import verify
from promptstore.testing.scripted_objects import Call, CrashError, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, START, sample_prompt, sample_task

TASKS = ("a", "b")
ALIASES = ("production", "staging")
GRACE = timedelta(hours=12)


@dataclass
class Version:
    digest: str
    is_expired: bool = False
    said: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class Task:
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)
    moves: list[tuple[str, int | None, int | None, bool]] = field(default_factory=list)


class Model:
    """The rules of a store, told once more in dicts and lists; changes itself or raises."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}

    def version(self, task: str, number: int) -> Version:
        if task not in self.tasks or number > len(self.tasks[task].versions):
            raise NotFoundError
        if self.tasks[task].versions[number - 1].is_expired:
            raise NotFoundError
        return self.tasks[task].versions[number - 1]

    def publish(self, task: str, digest: str) -> int:
        versions = self.tasks.setdefault(task, Task()).versions
        known = [at for at, each in enumerate(versions, 1) if each.digest == digest and not each.is_expired]
        if not known:
            versions.append(Version(digest))
        return (known or [len(versions)])[-1]

    def attest(self, task: str, number: int, kind: str, body: Any) -> None:
        version = self.version(task, number)
        if [each for each in version.said if each[0] == kind][-1:] != [(kind, body)]:
            version.said.append((kind, body))

    def promote(self, task: str, number: int, alias: str, expected: Expected, *, force: bool, reason: str) -> None:
        version = self.version(task, number)
        aliases = self.tasks[task].aliases
        if aliases.get(alias) == number:
            return
        if expected is not ANY and aliases.get(alias) != expected:
            raise ConflictError
        verdicts = [body["verdict"] for kind, body in version.said if kind == "gate"]
        forced = alias == "production" and verdicts[-1:] != ["pass"]
        if forced and not (force and reason):
            raise RefusedError
        self.tasks[task].moves.append((alias, aliases.get(alias), number, forced))
        aliases[alias] = number

    def rollback(self, task: str, alias: str) -> None:
        if task not in self.tasks or alias not in self.tasks[task].aliases:
            raise NotFoundError
        held: list[int] = []
        for name, _, after, _ in self.tasks[task].moves:
            if name == alias and after is not None:
                held = held[: held.index(after) + 1] if after in held else [*held, after]
        current = self.tasks[task].aliases[alias]
        for number in reversed(held):
            if number != current and not self.tasks[task].versions[number - 1].is_expired:
                self.promote(task, number, alias, ANY, force=True, reason="back")
                return
        raise NotFoundError

    def delete_alias(self, task: str, alias: str) -> None:
        if task not in self.tasks or alias not in self.tasks[task].aliases:
            raise NotFoundError
        before = self.tasks[task].aliases.pop(alias)
        self.tasks[task].moves.append((alias, before, None, False))

    def expire(self, task: str, numbers: list[int]) -> None:
        if task not in self.tasks or max(numbers) > len(self.tasks[task].versions):
            raise NotFoundError
        wanted = {number for number in numbers if not self.tasks[task].versions[number - 1].is_expired}
        if wanted & set(self.tasks[task].aliases.values()):
            raise RefusedError
        for number in wanted:
            self.tasks[task].versions[number - 1].is_expired = True

    def facts(self) -> dict[str, Any]:
        return {
            name: (
                [(each.digest, each.is_expired, each.said) for each in task.versions],
                task.aliases,
                task.moves,
            )
            for name, task in self.tasks.items()
        }


def facts_of(state: StoreState) -> dict[str, Any]:
    """What the model's `facts` says, of a real state."""
    return {
        name: (
            [
                (each.digest, each.is_expired, [(said.kind, said.body) for said in each.attestations])
                for each in task.versions
            ],
            task.aliases,
            [(each.alias, each.before, each.after, each.forced) for each in task.moves],
        )
        for name, task in state.tasks.items()
    }


@dataclass(frozen=True)
class Plan:
    """The faults that one operation meets: by the number of the call within it."""

    faults: dict[int, Fault]

    def script(self, start: int) -> Callable[[Call], Fault | None]:
        def fault_of(call: Call) -> Fault | None:
            fault = self.faults.get(call.number - start)
            if fault in {Fault.LATE, Fault.DENIED} and call.verb != "put_if_absent":
                return None
            return fault

        return fault_of


faults = st.sampled_from(
    [fault for fault in Fault if not fault.name.startswith("KILL")]
    + [Fault.LOST, Fault.LATE, Fault.DENIED, Fault.UNAVAILABLE]
)
plans = st.builds(Plan, st.dictionaries(st.integers(0, 9), faults, max_size=3))
no_plan = st.just(Plan({}))
tasks = st.sampled_from(TASKS)
aliases = st.sampled_from(ALIASES)
seeds = st.integers(0, 6)
numbers = st.integers(1, 5)
clients = st.integers(0, 2)
expectations = st.sampled_from([ANY, ANY, ANY, None, 1, 2])
bodies = st.sampled_from([{"verdict": "pass"}, {"verdict": "fail"}])


def digest_of(task: str, seed: int) -> str:
    return Publication(sample_prompt(seed), sample_task(task), Provenance(), {})._digest


def outcome(act: Callable[[PromptStore], object], prompts: PromptStore) -> BaseException | None:
    try:
        act(prompts)
    except (PromptStoreError, CrashError) as error:
        return error
    return None


class StoreMachine(RuleBasedStateMachine):
    """Rules are what people do; faults come with them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.memory = MemoryObjectStore(clock=lambda: self.now)
        self.objects = ScriptedObjects(self.memory)
        self.model = Model()
        self.past: dict[str, dict[str, Any]] = {}
        self.clients: list[PromptStore] = []

    @initialize(age=st.sampled_from([0] * 7 + [97]))
    def create(self, age: int) -> None:
        """age: commits there are already, so that some stores come to their first checkpoint."""
        for number in range(3):
            self.clients.append(self.client(number))
        writer = self.clients[0]
        if age:
            writer.publish(sample_prompt(0), sample_task("a"))
            self.model.publish("a", digest_of("a", 0))
        for turn in range(1, age):
            writer.attest("a:1", "age", {"turn": turn})
            self.model.attest("a", 1, "age", {"turn": turn})

    def client(self, number: int) -> PromptStore:
        """A client whose clock is off by days."""

        def clock() -> datetime:
            self.now += timedelta(seconds=1)
            return self.now + timedelta(days=number - 1)

        ledger = Ledger.create(self.objects, actor=f"client {number}", clock=clock, patience=IMPATIENT)
        return PromptStore(ledger, self.objects)

    def fresh(self) -> PromptStore:
        return PromptStore(Ledger.open(self.memory, actor="reader"), self.memory)

    def perform(
        self, client: int, plan: Plan, act: Callable[[PromptStore], object], change: Callable[[Model], object]
    ) -> None:
        """Do `act` under the faults of `plan`, and `change` to the model if, and only if, it was done."""
        after, expected = copy.deepcopy(self.model), None
        try:
            change(after)
        except PromptStoreError as error:
            expected = type(error)
        self.objects.script = plan.script(len(self.objects.calls))
        answer = outcome(act, self.clients[client])
        self.objects.script = lambda _: None
        self.objects.deliver()
        if isinstance(answer, CommitOutcomeUnknownError | CrashError):
            if facts_of(self.fresh().state) == after.facts():
                self.model = after
            if isinstance(answer, CrashError):
                self.clients[client] = self.client(client)
        elif not isinstance(answer, StoreUnavailableError):
            assert (None if answer is None else type(answer)) is expected, f"answered {answer!r}"
            self.model = after if answer is None else self.model
        self.past[self.fresh().state.at] = copy.deepcopy(self.model.facts())

    @rule(client=clients, plan=plans, task=tasks, seed=seeds, alias=st.none() | aliases, force=st.booleans())
    def publish(self, client: int, plan: Plan, task: str, seed: int, alias: str | None, force: bool) -> None:
        def change(model: Model) -> None:
            number = model.publish(task, digest_of(task, seed))
            if alias is not None:
                model.promote(task, number, alias, ANY, force=force, reason="why")

        self.perform(
            client,
            plan,
            lambda prompts: prompts.publish(
                sample_prompt(seed), sample_task(task), alias=alias, force=force, reason="why"
            ),
            change,
        )

    @rule(
        client=clients,
        plan=plans,
        task=tasks,
        number=numbers,
        alias=aliases,
        expected=expectations,
        force=st.booleans(),
    )
    def promote(
        self, client: int, plan: Plan, task: str, number: int, alias: str, expected: Expected, force: bool
    ) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: prompts.promote(
                PromptRef(task, number=number), alias, expected=expected, force=force, reason="why"
            ),
            lambda model: model.promote(task, number, alias, expected, force=force, reason="why"),
        )

    @rule(client=clients, plan=plans, number=numbers, other=numbers, body=bodies)
    def release(self, client: int, plan: Plan, number: int, other: int, body: dict[str, str]) -> None:
        moves = [
            Promotion(PromptRef("a", number=number), statements=[Statement("gate", body)]),
            Promotion(PromptRef("b", number=other), "staging"),
        ]

        def change(model: Model) -> None:
            model.version("a", number)
            model.version("b", other)
            model.attest("a", number, "gate", body)
            model.promote("a", number, "production", ANY, force=False, reason="new base")
            model.promote("b", other, "staging", ANY, force=False, reason="new base")

        self.perform(client, plan, lambda prompts: prompts.release(moves, reason="new base"), change)

    @rule(client=clients, plan=plans, task=tasks, alias=aliases)
    def roll_back(self, client: int, plan: Plan, task: str, alias: str) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: prompts.rollback(task, alias, reason="back"),
            lambda model: model.rollback(task, alias),
        )

    @rule(client=clients, plan=plans, task=tasks, number=numbers, body=bodies)
    def attest(self, client: int, plan: Plan, task: str, number: int, body: dict[str, str]) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: prompts.attest(PromptRef(task, number=number), "gate", body),
            lambda model: model.attest(task, number, "gate", body),
        )

    @rule(client=clients, plan=plans, task=tasks, alias=aliases)
    def delete_alias(self, client: int, plan: Plan, task: str, alias: str) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: prompts.delete_alias(task, alias),
            lambda model: model.delete_alias(task, alias),
        )

    @rule(client=clients, plan=plans, task=tasks, several=st.lists(numbers, min_size=1, max_size=3))
    def expire(self, client: int, plan: Plan, task: str, several: list[int]) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: prompts.expire([PromptRef(task, number=number) for number in several]),
            lambda model: model.expire(task, several),
        )

    @rule(client=clients, plan=plans)
    def collect(self, client: int, plan: Plan) -> None:
        self.perform(
            client,
            plan,
            lambda prompts: collect_garbage(prompts.ledger, grace=GRACE, dry_run=False),
            lambda model: model,
        )

    @rule(hours=st.integers(1, 48))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(client=clients)
    def look(self, client: int) -> None:
        assert facts_of(self.clients[client].refresh()) == self.model.facts()

    @rule(number=st.sampled_from([100, 200]), data=st.sampled_from([b"", b"damaged", None]))
    def damage_what_is_derived(self, number: int, data: bytes | None) -> None:
        if data is None:
            self.memory.put(HINT_KEY, encode_hint(number))
        elif number == 100:
            self.memory.put(HINT_KEY, data)
        else:
            self.memory.delete(checkpoint_key(100))

    @rule(position=st.integers(0, 10**6))
    def look_back(self, position: int) -> None:
        moments = sorted(each for each in self.past if each)
        if moments:
            moment = moments[position % len(moments)]
            found = self.fresh().at(datetime.fromisoformat(moment))
            assert format_instant(datetime.fromisoformat(moment)) == moment
            assert facts_of(found) == self.past[moment]

    @rule()
    def copy_elsewhere(self) -> None:
        target = MemoryObjectStore()
        copy_store(self.fresh().ledger, target)
        assert verify(target).is_clean
        assert facts_of(Ledger.open(target, actor="reader").state) == self.model.facts()

    @invariant()
    def a_fresh_reader_sees_what_the_model_says(self) -> None:
        if self.clients:
            assert facts_of(self.fresh().state) == self.model.facts()

    def teardown(self) -> None:
        if not self.clients:
            return
        found = verify(self.memory)
        assert [problem for problem in found.problems if not problem.is_movable] == []
        reader = self.fresh()
        for name, task in self.model.tasks.items():
            for number, version in enumerate(task.versions, start=1):
                if not version.is_expired:
                    pulled = reader.pull(f"{name}:{number}", for_model=None)
                    assert pulled.manifest.digest == version.digest
                    seed = next(seed for seed in range(7) if digest_of(name, seed) == version.digest)
                    assert (pulled.prompt.embeddings == sample_prompt(seed).embeddings).all()


StoreMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStore = StoreMachine.TestCase
