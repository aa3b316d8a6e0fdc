"""From one base model to the next: every prompt tuned again, and judged against what its old self says."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptstore.core.ref import DEFAULT_ALIAS
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import source_weights_digest
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore, PulledPrompt
from promptstore.tuning.data import load_rows
from promptstore.tuning.evaluate import evaluate_all
from promptstore.tuning.evaluation import Evaluation, EvaluationCase
from promptstore.tuning.gate import GatePolicy
from promptstore.tuning.gate_rules import decide
from promptstore.tuning.job import tune_tasks
from promptstore.tuning.job_gate import GateOutcome
from promptstore.tuning.job_names import find_task, task_names
from promptstore.tuning.job_open import open_base, opened_tools
from promptstore.tuning.job_plan import TaskPlan, WarmStart, plan_tasks
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.latency import measure_latency
from promptstore.tuning.rows import Rows
from promptstore.tuning.settings_device import settings_device
from promptstore.tuning.slices import slice_columns
from promptstore.tuning.upgrade_plan import HeldTask, published_before, start_of, survey, upgrade_name
from promptstore.tuning.upgrade_release import Upgrade, UpgradedTask

DEFAULT_POLICY = GatePolicy()


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What to bring from `old_model` to the model of the settings, and what each prompt must show there.

    tasks: as `task_names` takes them; all of the store if empty. overrides: tuning settings that win over the tasks'.
    policy: its comparisons are with what the old version says, on the old model, to the same held-out rows; and how
    fast, each model at its own time.
    """

    old_model: str
    tasks: Sequence[str] = ()
    aliases: Sequence[str] = (DEFAULT_ALIAS,)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    policy: GatePolicy = DEFAULT_POLICY


def run_upgrade_job(
    request: UpgradeRequest, *, settings: Settings, store: PromptStore, actor: str | None = None
) -> Upgrade:
    """Tune on the new base what the aliases name on the old one, and judge it; moves no alias.

    Repeated, it goes on where it was; what it published is found, not tuned again. One model is in memory at a time.

    Raises:
        InvalidInputError: old and new base are one model, or bad tasks, data or settings.
        NotFoundError: no such model, data or task.
    """
    store.refresh()
    sources = (request.old_model, settings.model)
    old, new = (source_weights_digest(each, cache_dir=settings.cache_dir) for each in sources)
    if old == new:
        raise InvalidInputError(
            f"{request.old_model} and {settings.model} are the same base model; name the new one with --model or in "
            "PROMPTSTORE_MODEL"
        )
    given = {task.name: task for task in (find_task(name, store) for name in task_names(request.tasks))}
    found = survey(store, old, aliases=request.aliases, tasks=list(given) or None)
    if not found.held:
        return Upgrade(settings.model, (), found.others)
    tasks = [given.get(each.task) or find_task(each.task, store) for each in found.held]
    work = _Work(request, settings, store, {each.task: each for each in found.held}, tasks, actor)
    with settings_device(settings, f"upgrade from {request.old_model}"):
        name, upgraded = work.run()
    return Upgrade(name, upgraded, found.others)


@dataclass(frozen=True, slots=True)
class _Work:
    """One upgrade at work. tasks: as they are tuned, in the order of `held`."""

    request: UpgradeRequest
    settings: Settings
    store: PromptStore
    held: Mapping[str, HeldTask]
    tasks: Sequence[TaskSpec]
    actor: str | None

    def run(self) -> tuple[str, tuple[UpgradedTask, ...]]:
        pulled = self._pulled()
        rows = {task.name: self._rows(task, pulled) for task in self.tasks}
        before = self._judge_old(pulled, rows)
        model = open_base(self.settings.model, self.settings)
        plans, starts, why = self._plan(pulled, model)
        versions, failures = self._tune(plans, starts, model)
        after = self._judge_new(versions, rows, model)
        upgraded = []
        for name, start in why.items():
            if name in failures:
                upgraded.append(UpgradedTask(name, start, failure=failures[name]))
                continue
            outcomes = self._outcomes(*after[name], before, rows[name])
            upgraded.append(UpgradedTask(name, start, str(versions[name]), outcomes))
        return model.fingerprint.name, tuple(upgraded)

    def _pulled(self) -> dict[str, PulledPrompt]:
        """Every old version once, by name."""
        versions = {str(version) for each in self.held.values() for version in each.held.values()}
        return {name: self.store.pull(name, for_model=None) for name in sorted(versions)}

    def _rows(self, task: TaskSpec, pulled: Mapping[str, PulledPrompt]) -> Rows:
        """The held-out rows, with what the new template, the old ones and the slices read."""
        read = [task, *(each.manifest.task for each in pulled.values() if each.version.task == task.name)]
        fields = {name for each in read for name in (*each.template_fields, each.target_field)}
        fields |= {*self.request.policy.slices}
        rows = load_rows(task.data.validation, fields=fields, settings=self.settings)
        return split_validation(rows, by={*task.template_fields, task.target_field})[1]

    def _judge_old(self, pulled: Mapping[str, PulledPrompt], rows: Mapping[str, Rows]) -> dict[str, Evaluation]:
        """What every old version says on its own base. That model has left memory when this returns."""
        metrics = {task.name: task.metric for task in self.tasks}
        cases = {}
        for version, each in pulled.items():
            name = each.version.task
            cases[version] = EvaluationCase(replace(each.manifest.task, metric=metrics[name]), each.prompt, rows[name])
        model = open_base(self.request.old_model, self.settings)
        found = self._judge(model, cases)
        del model
        gc.collect()  # networks refer to themselves, and the next one needs the memory
        return found

    def _plan(
        self, pulled: Mapping[str, PulledPrompt], model: FrozenModel
    ) -> tuple[list[TaskPlan], dict[str, WarmStart], dict[str, str]]:
        """What each task will do, which of them start warm, and why each begins as it does."""
        plans, starts, why = [], {}, {}
        for plan in plan_tasks(self.tasks, self.request.overrides, settings=self.settings):
            old = pulled[str(self.held[plan.name].first)]
            start, why[plan.name] = start_of(old, plan, self.request.overrides, model.fingerprint)
            if start is not None:
                starts[plan.name] = start
            plans.append(plan if start is None else plan.started_by(start))
        return plans, starts, why

    def _tune(
        self, plans: Sequence[TaskPlan], starts: Mapping[str, WarmStart], model: FrozenModel
    ) -> tuple[dict[str, PromptVersion], dict[str, str]]:
        """A version for each task, found or made, or why there is none."""
        known = [published_before(self.store, plan, model.fingerprint) for plan in plans]
        if all(known):
            return {version.task: version for version in known if version is not None}, {}
        job = upgrade_name(plans, model.fingerprint)
        with opened_tools(self.settings, self.store, job, actor=self.actor, model=model) as tools:
            result = tune_tasks(self.tasks, job=job, tools=tools, overrides=self.request.overrides, starts=starts)
        versions = {each.task: self.store.resolve(each.version) for each in result.tasks if each.version is not None}
        return versions, {each.task: each.failure or "no version" for each in result.tasks if each.version is None}

    def _judge_new(
        self, versions: Mapping[str, PromptVersion], rows: Mapping[str, Rows], model: FrozenModel
    ) -> dict[str, tuple[PulledPrompt, Evaluation]]:
        """As they lie in the store, so that what is released has been read from there."""
        pulled = {name: self.store.pull(str(each), for_model=model.fingerprint) for name, each in versions.items()}
        cases = {name: EvaluationCase(each.manifest.task, each.prompt, rows[name]) for name, each in pulled.items()}
        found = self._judge(model, cases)
        return {name: (each, found[name]) for name, each in pulled.items()}

    def _judge(self, model: FrozenModel, cases: Mapping[str, EvaluationCase]) -> dict[str, Evaluation]:
        """All evaluated together; timed one by one, if the policy asks."""
        found = evaluate_all(model, [*cases.values()]) if cases else []
        if self.request.policy.bounds_latency:
            for at, case in enumerate(cases.values()):
                found[at] = replace(found[at], latency=measure_latency(model, [case])[0])
        return dict(zip(cases, found, strict=True))

    def _outcomes(
        self, candidate: PulledPrompt, said: Evaluation, before: Mapping[str, Evaluation], rows: Rows
    ) -> tuple[GateOutcome, ...]:
        """The verdict for each alias of the task, against the version behind it."""
        version, base = candidate.version, candidate.manifest.fingerprint
        policy, found = self.request.policy, []
        slices = slice_columns(rows, policy.slices)
        for alias, old in self.held[version.task].held.items():
            verdict = decide(said, before[str(old)], policy, prompt=candidate.prompt, base=base, slices=slices)
            found.append(GateOutcome(version.task, version.number, version.digest, alias, old.number, verdict))
        return tuple(found)
