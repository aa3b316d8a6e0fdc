"""From one base model to the next: warm or fresh, judged on the same rows, released together or not at all."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import ConflictError, InvalidInputError, RefusedError
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.job_place import FROM_TOKENS, QUICK, JobPlace, write_tiny_model
from promptstore.tuning.gate import GatePolicy
from promptstore.tuning.job_open import run_tune_job
from promptstore.tuning.job_plan import plan_task
from promptstore.tuning.job_upgrade import UpgradeRequest, run_upgrade_job
from promptstore.tuning.task_file import read_task
from promptstore.tuning.upgrade_plan import start_of
from promptstore.tuning.upgrade_release import Upgrade, release_upgrade
from promptstore.wiring import open_prompt_store

# So few steps teach random models little: here sst2 does a third worse on the new one, mood a little better.
LENIENT = GatePolicy(max_drop=1, alpha=1e-9)
STRICT = GatePolicy(max_drop=0.15, alpha=1e-9)
NAMES = ("sst2", "mood")


@dataclass(frozen=True)
class Place:
    """A store whose prompts in production stand on one base model, and another base of equal width."""

    jobs: JobPlace
    old: Path
    new: Path

    def settings(self, model: Path) -> Settings:
        changed = {"model": str(model), "device": "cpu", "dtype": "float32", "mlflow_uri": ""}
        return self.jobs.settings.model_copy(update=changed)

    def store(self) -> PromptStore:
        return open_prompt_store(self.settings(self.old))

    def judge(self, *aliases: str, policy: GatePolicy = LENIENT) -> Upgrade:
        files = [str(self.jobs.folder / f"{name}.toml") for name in NAMES]
        request = UpgradeRequest(str(self.old), files, aliases or ("production",), dict(QUICK), policy)
        return run_upgrade_job(request, settings=self.settings(self.new), store=self.store())


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Upgrade]:
    """Both tasks tuned on the old base and in production; tuned on the new base and judged; nothing released."""
    folder = tmp_path_factory.mktemp("judged")
    jobs = JobPlace(folder / "place")
    place = Place(jobs, write_tiny_model(folder / "old"), write_tiny_model(folder / "new", seed=1))
    files = [str(jobs.task_file(name, rows=80, seed=seed)) for seed, name in enumerate(NAMES)]
    run_tune_job(
        files,
        job="first",
        settings=place.settings(place.old),
        store=place.store(),
        overrides=FROM_TOKENS,
    )
    for name in NAMES:
        place.store().promote(f"{name}:1", force=True, reason="first")
    return place, place.judge()


@pytest.fixture
def upgrade(judged: tuple[Place, Upgrade]) -> Upgrade:
    return judged[1]


@pytest.fixture
def place(judged: tuple[Place, Upgrade], tmp_path: Path) -> Place:
    """A copy, for one test alone, on a machine that has nothing but the store and the task files."""
    shutil.copytree(judged[0].jobs.folder, tmp_path / "place", ignore=shutil.ignore_patterns("state", "cache"))
    return replace(judged[0], jobs=JobPlace(tmp_path / "place"))


def test_prompts_start_warm_and_every_alias_moves_in_one_commit(place: Place, upgrade: Upgrade) -> None:
    assert [each.start for each in upgrade.tasks] == ["warm, from sst2:1", "warm, from mood:1"]
    assert [place.store().resolve(name).number for name in NAMES] == [1, 1]
    result = release_upgrade(place.store(), upgrade)
    assert result.released == ("sst2@production -> sst2:2", "mood@production -> mood:2")
    store = place.store()
    (commit,) = {move.commit for move in store.history() if move.after == 2}
    for name in NAMES:
        old, new = (store.manifest(store.resolve(f"{name}:{number}").digest) for number in (1, 2))
        assert new.provenance.parent == old.digest
        assert new.fingerprint.weights_digest != old.fingerprint.weights_digest
        (gate,) = (each for each in store.resolve(name).attestations if each.kind == "gate")
        assert gate.commit == commit, "the verdict stands in the commit that rests on it"
        said = (gate.body["alias"], gate.body["against"], gate.body["candidate"], gate.body["production"])
        assert said == ("production", 1, new.metrics["accuracy"], old.metrics["accuracy"])


def test_what_was_published_is_found_where_nothing_else_is_left_of_the_first_run(
    place: Place, upgrade: Upgrade
) -> None:
    commit = place.store().state.number
    assert place.judge().tasks == upgrade.tasks
    assert place.store().state.number == commit


def test_an_upgrade_that_is_done_does_nothing_again(place: Place, upgrade: Upgrade) -> None:
    release_upgrade(place.store(), upgrade)
    commit = place.store().state.number
    release_upgrade(place.store(), upgrade)
    again = release_upgrade(place.store(), place.judge())
    assert place.store().state.number == commit
    assert (again.upgrade.tasks, again.released, again.refused) == ((), (), ())
    assert str(again).startswith("nothing stands on the old base; sst2@production is sst2:2, of new")


def test_one_that_fails_holds_back_all_and_is_named(place: Place) -> None:
    result = release_upgrade(place.store(), place.judge(policy=STRICT))
    assert result.released == ()
    (refusal,) = result.refused
    assert refusal.startswith("gate of sst2:2 for production, compared with sst2:1: fail (accuracy")
    with pytest.raises(RefusedError, match="nothing was released on new: gate of sst2:2"):
        result.require_released()
    store = place.store()
    assert [store.resolve(name).number for name in NAMES] == [1, 1]
    assert [store.resolve(f"{name}:2").attestations[-1].body["verdict"] for name in NAMES] == ["fail", "pass"]
    assert release_upgrade(store, place.judge(policy=STRICT)) == result
    assert place.store().state.number == store.state.number, "verdicts are said once"


def test_those_that_pass_may_be_released_without_the_others(place: Place) -> None:
    upgrade = place.judge(policy=STRICT)
    result = release_upgrade(place.store(), upgrade, allow_partial=True)
    result.require_released()
    assert result.released == ("mood@production -> mood:2",)
    (left,) = place.judge(policy=STRICT).tasks
    assert left.version == "sst2:2", "what failed is not tuned again for nothing"


def test_every_alias_is_judged_against_what_it_names(place: Place) -> None:
    place.store().promote("sst2:1", "staging", reason="test")
    commits = set()
    for _ in range(2):
        strict = place.judge("staging", "production", policy=STRICT)
        assert len(release_upgrade(place.store(), strict).refused) == 2
        commits.add(place.store().state.number)
    assert len(commits) == 1, "verdicts are said once"
    upgrade = place.judge("staging", "production", "missing")
    aliases = {each.task: [outcome.alias for outcome in each.outcomes] for each in upgrade.tasks}
    assert aliases == {"sst2": ["staging", "production"], "mood": ["production"]}
    assert len(release_upgrade(place.store(), upgrade).released) == 3


def test_an_alias_moved_meanwhile_is_a_conflict_and_none_moves(place: Place, upgrade: Upgrade) -> None:
    place.store().delete_alias("mood", "production", reason="somebody else")
    with pytest.raises(ConflictError, match="mood@production points at nothing, expected version 1"):
        release_upgrade(place.store(), upgrade)
    assert place.store().resolve("sst2").number == 1


def test_one_model_is_no_upgrade(place: Place) -> None:
    with pytest.raises(InvalidInputError, match="are the same base model"):
        replace(place, new=place.old).judge()


@pytest.mark.parametrize(
    ("changed", "overrides", "said"),
    [
        ({}, {}, "warm, from sst2:1"),
        ({"architecture": "Other"}, {}, "warm, from sst2:1"),
        ({}, {"num_virtual_tokens": 8}, "warm, from sst2:1"),
        ({"hidden_size": 64}, {}, "examples: hidden size 64, was 32"),
        ({"tokenizer_digest": "a" * 64}, {}, "examples: another tokenizer"),
        ({}, {"num_virtual_tokens": 12}, "examples: 12 virtual tokens, were 8"),
        ({}, {"initialise": "labels"}, "labels: asked for"),
    ],
)
def test_a_prompt_starts_warm_where_its_values_mean_the_same(
    place: Place, changed: dict[str, Any], overrides: dict[str, Any], said: str
) -> None:
    old = place.store().pull("sst2:1", for_model=None)
    new: BaseModelFingerprint = replace(old.manifest.fingerprint, weights_digest="b" * 64, **changed)
    plan = plan_task(read_task(place.jobs.folder / "sst2.toml"), overrides, settings=place.settings(place.new))
    start, why = start_of(old, plan, overrides, new)
    assert why == said
    assert (start is not None) == said.startswith("warm")
    if start is not None:
        assert start.prompt.fingerprint == new
        assert (start.prompt.embeddings == old.prompt.embeddings).all()


def test_slices_and_latencies_are_compared_across_base_models(place: Place) -> None:
    policy = replace(LENIENT, slices=("label",), max_latency_ms=60_000, max_latency_ratio=1000)
    for task in place.judge(policy=policy).tasks:
        (outcome,) = task.outcomes
        found = {check.name: check.figures for check in outcome.verdict.checks}
        assert found["no worse where label is yes"]["gained"] == found["no worse on yes"]["gained"]
        ratio = found["time to first token against production"]
        assert ratio["candidate_ms"] == found["time to first token"]["value"] != ratio["production_ms"]
