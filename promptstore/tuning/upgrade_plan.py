"""Which prompts stand on an old base model, and what each begins with on the new one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion
from promptstore.store.prompt_store import PromptStore, PulledPrompt
from promptstore.tuning.job_plan import TaskPlan, WarmStart

# Of a task's newest versions, how many are looked at for what an earlier run published.
MOST_SEARCHED = 20


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task with aliases on the old base. held: the version behind each, in the order the aliases were asked for."""

    task: str
    held: Mapping[str, PromptVersion]

    @property
    def first(self) -> PromptVersion:
        """The version that the new one starts from, if it can."""
        return next(iter(self.held.values()))


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found behind the aliases. others: those that point at versions of another base, for people."""

    held: tuple[HeldTask, ...]
    others: tuple[str, ...]


def survey(store: PromptStore, weights: str, *, aliases: Sequence[str], tasks: Sequence[str] | None) -> Survey:
    """What `aliases` name of the base model with these `weights` (their digest), in the state last seen.

    tasks: look at no others.
    """
    held, others = [], []
    for name in sorted(store.state.tasks) if tasks is None else tasks:
        behind: dict[str, PromptVersion] = {}
        pointers = store.state.tasks[name].aliases if name in store.state.tasks else {}
        for alias in (each for each in dict.fromkeys(aliases) if each in pointers):
            version = store.resolve(PromptRef(name, alias=alias))
            fingerprint = store.manifest(version.digest).fingerprint
            if fingerprint.weights_digest == weights:
                behind[alias] = version
            else:
                others.append(f"{name}@{alias} is {version}, of {fingerprint.name}")
        if behind:
            held.append(HeldTask(name, behind))
    return Survey(tuple(held), tuple(others))


def start_of(
    old: PulledPrompt, plan: TaskPlan, overrides: Mapping[str, Any], new: BaseModelFingerprint
) -> tuple[WarmStart | None, str]:
    """What a prompt begins with on the `new` base, and why, for people.

    The old values are of use where they mean something like the same there: equal width, and a tokenizer that cuts
    texts alike. They are first values only; what serves is what was fitted from them.
    """
    was = old.manifest.fingerprint
    asked = {**plan.task.tuning, **overrides}.get("num_virtual_tokens", old.prompt.num_virtual_tokens)
    if "initialise" in overrides:
        why = "asked for"
    elif was.hidden_size != new.hidden_size:
        why = f"hidden size {new.hidden_size}, was {was.hidden_size}"
    elif was.tokenizer_digest != new.tokenizer_digest:
        why = "another tokenizer"
    elif asked != old.prompt.num_virtual_tokens:
        why = f"{asked} virtual tokens, were {old.prompt.num_virtual_tokens}"
    else:
        moved = replace(old.prompt, fingerprint=new)
        return WarmStart(moved, old.version.digest), f"warm, from {old.version}"
    return None, f"{plan.config.initialise}: {why}"


def upgrade_name(plans: Sequence[TaskPlan], new: BaseModelFingerprint) -> str:
    """The job's name: the same for the same work, so that a crashed upgrade is gone on with by the next."""
    work = {plan.name: _work(plan) for plan in plans}
    return f"upgrade-{sha256_hex(canonical_json({'model': list(new.identity), 'work': work}))[:16]}"


def published_before(store: PromptStore, plan: TaskPlan, new: BaseModelFingerprint) -> PromptVersion | None:
    """The newest version on the `new` base that rests on what `plan` rests on, if there is one."""
    for version in reversed(store.state.task(plan.name).versions[-MOST_SEARCHED:]):
        if version.is_expired:
            continue
        manifest = store.manifest(version.digest)
        rests_on = (manifest.provenance.config_digest, manifest.provenance.data_digest, manifest.provenance.parent)
        is_same_task = _told(manifest.task.to_json()) == _told(plan.task.to_json())
        wanted = (plan.config.digest, plan.data_digest, plan.parent)
        if is_same_task and manifest.fingerprint.identity == new.identity and rests_on == wanted:
            return version
    return None


def _work(plan: TaskPlan) -> list[Any]:
    return [_told(plan.task.to_json()), plan.config.to_json(), plan.data_digest, plan.parent]


def _told(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task but for where its data lie: the same on every machine."""
    return {name: value for name, value in task.items() if name != "data"}
