"""Tasks tuned end to end: rows, baseline, fit, judgement, log, version. Repeating a job goes on where it was."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from promptstore.core.manifest import Provenance
from promptstore.core.prompt import SoftPrompt
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.errors import CommitOutcomeUnknownError, NotFoundError, StoreUnavailableError
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import Settings
from promptstore.store.payload import decode_payload, encode_payload
from promptstore.store.prompt_store import PromptStore
from promptstore.tracking.machine import MachineMonitor
from promptstore.tracking.port import RunStatus, Tracker
from promptstore.tuning.evaluate import evaluate_all
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.evaluation_memory import EvaluationMemory
from promptstore.tuning.events import FitFinished, FitResult, Notice, StepReport, ValidationReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.job_baseline import BASELINES, MOST_SEARCHED, known_baseline
from promptstore.tuning.job_checkpoint import checkpoint_slot
from promptstore.tuning.job_folder import Decision, JobFolder, job_folder
from promptstore.tuning.job_log import PromptLog, tags_of
from promptstore.tuning.job_plan import TaskPlan, WarmStart, plan_tasks, request_of, with_warm_start
from promptstore.tuning.job_progress import JobProgress, SilentProgress
from promptstore.tuning.job_result import JobResult, TunedTask, tuned_by
from promptstore.tuning.job_search import with_search
from promptstore.tuning.task_file import without_local_paths
from promptstore.tuning.text_prompt import text_prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobTools:
    """What a job works with. folder: where jobs keep their memory, on a disk that outlives the process.

    memory: takes what is found out about the new prompts, so that the gate need not find it out again.
    """

    store: PromptStore
    model: FrozenModel
    tracker: Tracker
    folder: Path
    settings: Settings
    progress: JobProgress = field(default_factory=SilentProgress)
    git_commit: str | None = None
    actor: str | None = None
    memory: EvaluationMemory | None = None


NO_STARTS: Mapping[str, WarmStart] = {}
MOST_WITH_MACHINE = 16


def tune_tasks(
    tasks: Sequence[TaskSpec],
    *,
    job: str,
    tools: JobTools,
    overrides: Mapping[str, Any],
    starts: Mapping[str, WarmStart] = NO_STARTS,
    searches: bool = False,
) -> JobResult:
    """Fit one prompt for each task, together on one model, and publish what came out with all that led to it.

    starts: by task, first values in place of what its initialiser says; the job's name must stand for them.
    searches: find the learning rate and the initialiser first, as far as they are not given (`with_search`).

    A task whose fit diverges, in one member where it is an ensemble, has its cause in the result and no version; the
    others go on. Called again under the same
    job name, it reuses what is done: the baseline, the fit's checkpoint, a decision made, a version published.
    Closes the tracker.

    Raises:
        InvalidInputError: bad settings or data, or the job was begun with another request.
        ConflictError: the same job is running in another process.
        StoreUnavailableError, CommitOutcomeUnknownError: nothing of the work is lost; call it again.
    """
    try:
        with job_folder(tools.folder, job) as folder:
            plans = plan_tasks(tasks, overrides, settings=tools.settings)
            plans = [
                plan.started_by(starts[plan.name])
                if plan.name in starts
                else with_warm_start(plan, overrides, folder, tools.store, tools.model)
                for plan in plans
            ]
            folder.require_same(request_of(job, plans, tools.model, searches=searches))
            if searches:
                plans = [
                    with_search(
                        plan,
                        {**plan.task.tuning, **overrides},
                        model=tools.model,
                        folder=folder,
                        progress=tools.progress,
                    )
                    for plan in plans
                ]
            done = _Job(job, tools, folder, plans).run()
    finally:
        tracking = tools.tracker.close()
    return JobResult(job, tools.model.fingerprint.name, tuple(done[plan.name] for plan in plans), str(tracking))


class _Job:
    """One job at work. Every step asks first whether it was done before."""

    def __init__(self, job: str, tools: JobTools, folder: JobFolder, plans: Sequence[TaskPlan]) -> None:
        tags = tags_of(tools.model, tools.git_commit)
        self._job = job
        self._tools = tools
        self._folder = folder
        self._plans = {plan.name: plan for plan in plans}
        jobs = {plan.name: plan.fit_jobs() for plan in plans}
        prompts = sum(map(len, jobs.values()))
        self._logs = {
            plan.name: PromptLog(tools.tracker, plan.task, job, tags, jobs=jobs[plan.name], prompts=prompts)
            for plan in plans
        }
        self._jobs = jobs
        self._machine = MachineMonitor()
        self._done: dict[str, TunedTask] = {}

    def run(self) -> dict[str, TunedTask]:
        try:
            for plan in self._plans.values():
                self._logs[plan.name].begin(
                    plan.params(), {"train": plan.train, "validation": plan.selection, "test": plan.held_out}
                )
            waiting = [plan for plan in self._plans.values() if self._folder.decision(plan.name) is None]
            if waiting:
                self._judge_baselines(waiting)
                self._fit(waiting)
            for name in self._plans.keys() - self._done.keys():
                self._publish(name)
        except BaseException as error:
            status: RunStatus = "FAILED" if isinstance(error, Exception) else "KILLED"
            for name in self._plans.keys() - self._done.keys():
                self._logs[name].failed(f"{type(error).__name__}: {error}", status)
            raise
        return self._done

    def _judge_baselines(self, plans: Sequence[TaskPlan]) -> None:
        """How the bare model does, and one that is told and shown what to do; all tasks in one batch.

        Only what no earlier version of the task tells already.
        """
        names = BASELINES if self._tools.settings.text_prompt_baseline else BASELINES[:1]
        missing = []
        for plan, name in ((plan, name) for name in names for plan in plans):
            if self._folder.note(plan.name, name) is not None:
                continue
            if known := known_baseline(name, plan, self._tools.model, self._tools.store):
                self._logs[plan.name].figures(name, known, step=0)
                self._folder.write_note(plan.name, name, known)
            else:
                missing.append((plan, name))
        if not missing:
            return
        for plan, name in missing:
            self._tools.progress.say(plan.name, f"{name.replace('_', ' ')}: held-out rows")
        model = self._tools.model
        prompts = [None if name == "untuned" else text_prompt(model, plan.task, plan.train) for plan, name in missing]
        # A written prompt stands before the input wherever the tuned one will.
        cases = [
            EvaluationCase(replace(plan.task, placement="before"), prompt, plan.held_out)
            for (plan, _), prompt in zip(missing, prompts, strict=True)
        ]
        for (plan, name), evaluation in zip(missing, evaluate_all(model, cases), strict=True):
            self._logs[plan.name].evaluation(name, evaluation, step=0)
            self._folder.write_note(plan.name, name, _finite(evaluation.metrics))

    def _fit(self, plans: Sequence[TaskPlan]) -> None:
        of = {job.name: plan for plan in plans for job in self._jobs[plan.name]}
        fits = {name: fit for plan in plans for name, fit in self._logs[plan.name].fits.items()}
        jobs = [job for plan in plans for job in self._jobs[plan.name]]
        results: dict[str, FitResult] = {}
        slot = checkpoint_slot(self._folder, self._job, self._tools.settings)
        settings = self._tools.settings
        options = FitOptions(
            recompute_activations=settings.recompute_activations, compile_layers=settings.compile_layers
        )
        for event in fit(self._tools.model, jobs, options=options, checkpoint=slot):
            match event:
                case Notice(task, message):
                    log.warning("%s: %s", task or self._job, message)
                case StepReport():
                    fits[event.job].step(event)
                    self._look_at_machine(of, event.step)
                    self._tools.progress.step(event.job, step=event.step, last_step=event.steps, loss=event.loss)
                case ValidationReport():
                    fits[event.job].validation(event)
                case FitFinished(name, result):
                    fits[name].fitted(result)
                    results[name] = result
                    members = [results.get(job.name) for job in self._jobs[of[name].name]]
                    if None not in members:
                        self._finish(of[name], [each for each in members if each is not None])

    def _look_at_machine(self, plans: Mapping[str, TaskPlan], step: int) -> None:
        """Told to the first tasks alone: it is one machine, whatever the number of prompts."""
        if figures := self._machine.look():
            for name in list(dict.fromkeys(plan.name for plan in plans.values()))[:MOST_WITH_MACHINE]:
                self._logs[name].machine(figures, step=step)

    def _finish(self, plan: TaskPlan, results: Sequence[FitResult]) -> None:
        """All prompts of a task left the fit: judge them, decide, publish them while other tasks go on."""
        seconds = max(result.seconds for result in results)
        for job, result in zip(self._jobs[plan.name], results, strict=True):
            if result.cause is not None:
                cause = result.cause if len(results) == 1 else f"{job.name}: {result.cause}"
                self._logs[plan.name].failed(cause)
                self._done[plan.name] = TunedTask(plan.name, metric=result.metric, seconds=seconds, failure=cause)
                return
        self._tools.progress.say(plan.name, "held-out rows")
        self._folder.decide(plan.name, self._decision(plan, results))
        try:
            self._publish(plan.name)
        except (StoreUnavailableError, CommitOutcomeUnknownError) as error:
            log.warning("%s could not be published yet, it is tried again at the end: %s", plan.name, error)

    def _decision(self, plan: TaskPlan, results: Sequence[FitResult]) -> Decision:
        prompt = results[0].prompt
        if len(results) > 1:
            prompt = SoftPrompt.together([result.prompt for result in results], plan.config.combination)
            self._logs[plan.name].combined(encode_payload(prompt))
        case = EvaluationCase(plan.task, prompt, plan.held_out)
        (tuned,) = evaluate_all(self._tools.model, [case])
        if self._tools.memory is not None:
            self._tools.memory.keep(self._tools.model.fingerprint, case, tuned)
        self._logs[plan.name].evaluation("tuned", tuned, step=max(result.steps for result in results))
        beside = {
            f"{baseline}_{name}": value
            for baseline in BASELINES
            for name, value in (self._folder.note(plan.name, baseline) or {}).items()
        }
        provenance = Provenance(
            mlflow_run=self._logs[plan.name].run_id(),
            git_commit=self._tools.git_commit,
            config_digest=plan.config.digest,
            data_digest=plan.data_digest,
            parent=plan.parent,
        )
        metrics = {**_finite(tuned.metrics), **tuned.member_metrics, **beside}
        seconds = max(result.seconds for result in results)
        return Decision(encode_payload(prompt), provenance, metrics, tuned.metric, seconds)

    def _publish(self, name: str) -> None:
        plan, decision = self._plans[name], self._folder.decision(name)
        if decision is None:
            raise NotFoundError(
                f"job {self._job} has no result for {name}; its checkpoint was removed, so start another"
            )
        self._tools.progress.say(name, "publish")
        prompt = decode_payload(decision.payload, self._tools.model.fingerprint)
        version = self._published_before(name, decision) or self._tools.store.publish(
            prompt,
            without_local_paths(plan.task),
            provenance=decision.provenance,
            metrics=decision.metrics,
            reason=tuned_by(self._job),
            actor=self._tools.actor,
        )
        self._logs[name].published(version)
        self._tools.progress.say(name, str(version))
        self._done[name] = _tuned_task(version, decision, prompt)

    def _published_before(self, name: str, decision: Decision) -> PromptVersion | None:
        """What an earlier try published, if the job's folder was lost since: the version of the same MLflow run."""
        if decision.provenance.mlflow_run is None or name not in self._tools.store.refresh().tasks:
            return None
        versions = self._tools.store.state.task(name).versions
        for version in reversed(versions[-MOST_SEARCHED:]):
            if not version.is_expired:
                provenance = self._tools.store.manifest(version.digest).provenance
                if provenance.mlflow_run == decision.provenance.mlflow_run:
                    return version
        return None


def _tuned_task(version: PromptVersion, decision: Decision, prompt: SoftPrompt) -> TunedTask:
    return TunedTask(
        task=version.task,
        metric=decision.metric,
        untuned=decision.metrics.get(f"untuned_{decision.metric}"),
        text_prompt=decision.metrics.get(f"text_prompt_{decision.metric}"),
        tuned=decision.metrics.get(decision.metric),
        version=str(version),
        digest=version.digest,
        mlflow_run=decision.provenance.mlflow_run,
        num_virtual_tokens=prompt.num_virtual_tokens,
        parameters=prompt.embeddings.size,
        payload_bytes=len(decision.payload),
        members=len(prompt.members),
        member_average=decision.metrics.get(f"member_average_{decision.metric}"),
        member_best=decision.metrics.get(f"member_best_{decision.metric}"),
        seconds=decision.seconds,
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what JSON cannot say: the perplexity of a model that is sure of the wrong answer."""
    return {name: value for name, value in metrics.items() if isfinite(value)}
