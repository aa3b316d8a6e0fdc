"""A fit that is interrupted anywhere and begun again is the fit that was never interrupted."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from promptstore.errors import CorruptError, InvalidInputError, StoreUnavailableError
from promptstore.lm.frozen import FrozenModel
from promptstore.objects.memory import MemoryObjectStore
from promptstore.settings import load_settings
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import echo_job, sentiment_job, sentiment_rows
from promptstore.tuning.events import FitEvent, FitFinished, Notice, StepReport, ValidationReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_checkpoint import CheckpointSlot, FileSlot, ObjectSlot
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.job_checkpoint import checkpoint_slot
from promptstore.tuning.job_folder import job_folder

OPTIONS = FitOptions(report_every=2, save_every_s=0, max_active=2)


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


def jobs() -> list[FitJob]:
    return [
        sentiment_job("first", steps=6, evaluate_every=3, optimiser="adafactor"),
        sentiment_job("second", steps=11, evaluate_every=4, seed=1),
        echo_job("third", steps=7, evaluate_every=5),
    ]


def facts(events: Iterator[FitEvent]) -> dict[tuple[str, str, int], object]:
    """What is said, without what depends on the machine's speed."""
    found: dict[tuple[str, str, int], object] = {}
    for event in events:
        match event:
            case StepReport():
                found["step", event.job, event.step] = (event.loss, event.learning_rate, event.gradient_norm)
            case ValidationReport():
                found["validation", event.job, event.step] = (event.value, event.loss, event.is_best)
            case FitFinished(job, result):
                figures = (result.best_step, result.steps, result.value, result.reason)
                tensors = (result.prompt.embeddings.tobytes(), result.last.embeddings.tobytes())
                found["finished", job, 0] = (figures, tensors)
    return found


@pytest.mark.parametrize("events_before", range(1, 36, 3))
def test_a_fit_resumed_after_any_event_says_the_same_to_the_last_bit(model: FrozenModel, events_before: int) -> None:
    slot = ObjectSlot(MemoryObjectStore(), "fits/one.safetensors")
    uninterrupted = facts(fit(model, jobs(), options=OPTIONS))
    before = facts(islice(fit(model, jobs(), options=OPTIONS, checkpoint=slot), events_before))
    after = facts(fit(model, jobs(), options=OPTIONS, checkpoint=slot))
    assert before | after == uninterrupted
    for key in before.keys() & after.keys():
        assert before[key] == after[key]


def test_a_finished_fit_is_told_again_without_being_computed(model: FrozenModel, tmp_path: Path) -> None:
    slot = FileSlot(tmp_path / "fit.safetensors")
    first = facts(fit(model, jobs(), options=OPTIONS, checkpoint=slot))
    again = facts(fit(model, jobs(), options=OPTIONS, checkpoint=slot))
    assert {key: value for key, value in first.items() if key[0] == "finished"} == again


def test_a_resumed_fit_does_not_begin_again(model: FrozenModel, tmp_path: Path) -> None:
    slot = FileSlot(tmp_path / "fit.safetensors")
    job = sentiment_job(steps=20, evaluate_every=20)
    events = fit(model, [job], options=OPTIONS, checkpoint=slot)
    while not (isinstance(event := next(events), StepReport) and event.step == 11):
        pass
    resumed = next(fit(model, [job], options=OPTIONS, checkpoint=slot))
    assert isinstance(resumed, StepReport)
    assert resumed.step == 11


def test_a_checkpoint_weighs_what_its_prompts_weigh(model: FrozenModel, tmp_path: Path) -> None:
    """Prompt, best prompt and two moments of AdamW, 4 bytes a number."""
    slot = FileSlot(tmp_path / "fit.safetensors")
    next(events := fit(model, [sentiment_job(num_virtual_tokens=50)], options=OPTIONS, checkpoint=slot))
    for event in events:
        if isinstance(event, StepReport) and event.step == 3:
            break
    assert slot.path.stat().st_size < 4 * (50 * 32 * 4) + 2048


@pytest.mark.parametrize(
    "other",
    [
        sentiment_job(steps=5),
        sentiment_job(seed=3),
        replace(sentiment_job(), train=sentiment_rows(30, seed=9)),
        replace(sentiment_job(), validation=sentiment_rows(20, seed=9)),
        replace(sentiment_job(), task=replace(sentiment_job().task, template="{text}")),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(model: FrozenModel, other: FitJob) -> None:
    slot = ObjectSlot(MemoryObjectStore(), "fit")
    list(fit(model, [sentiment_job()], checkpoint=slot))
    with pytest.raises(InvalidInputError, match="one: the checkpoint is of another fit"):
        fit(model, [other], checkpoint=slot)
    with pytest.raises(InvalidInputError, match="one: the checkpoint is of another fit"):
        fit(tiny_llama(seed=1), [sentiment_job()], checkpoint=slot)


def test_a_store_that_is_away_for_a_while_costs_a_notice_and_no_fit(model: FrozenModel) -> None:
    """Away for the second to fourth save: it is said once, and what was saved before is still there to go on from."""

    class Away(ObjectSlot):
        saves = 0

        def save(self, data: bytes) -> None:
            Away.saves += 1
            if Away.saves in (2, 3, 4):
                raise StoreUnavailableError("no answer from the store")
            super().save(data)

    slot = Away(MemoryObjectStore(), "fit")
    events = list(fit(model, [sentiment_job()], options=OPTIONS, checkpoint=slot))
    said = [event.message for event in events if isinstance(event, Notice)]
    assert len(said) == 1
    assert "goes on without: no answer from the store" in said[0]
    assert facts(iter(events)) == facts(fit(model, [sentiment_job()], options=OPTIONS))
    assert Away.saves > 5
    assert [type(event) for event in fit(model, [sentiment_job()], checkpoint=slot)] == [FitFinished]


def test_a_job_keeps_its_checkpoint_where_the_settings_say(model: FrozenModel, tmp_path: Path) -> None:
    """Begun on one machine, finished on another that has nothing but the object store."""
    settings = load_settings(state_dir=tmp_path, checkpoints=(tmp_path / "bucket").as_uri())
    with job_folder(tmp_path / "here", "nightly") as here, job_folder(tmp_path / "there", "nightly") as there:
        first, second = (checkpoint_slot(folder, "nightly", settings) for folder in (here, there))
        before = facts(islice(fit(model, jobs(), options=OPTIONS, checkpoint=first), 20))
        after = facts(fit(model, jobs(), options=OPTIONS, checkpoint=second))
        assert before | after == facts(fit(model, jobs(), options=OPTIONS))
        assert ("step", "second", 1) not in after
        assert checkpoint_slot(here, "nightly", load_settings(checkpoints="")) == FileSlot(here.checkpoint)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_refused_with_a_way_out(model: FrozenModel, damage: bytes | None) -> None:
    objects = MemoryObjectStore()
    slot: CheckpointSlot = ObjectSlot(objects, "fit")
    list(fit(model, [sentiment_job()], checkpoint=slot))
    objects.put("fit", objects.get("fit")[:-40] if damage is None else damage)
    with pytest.raises(CorruptError, match="delete it to begin again"):
        fit(model, [sentiment_job()], checkpoint=slot)


def test_prompts_that_wait_again_after_a_resume_keep_what_they_had(model: FrozenModel) -> None:
    """Begun with three at a time, resumed with one at a time, interrupted again: nothing is computed twice."""
    slot = ObjectSlot(MemoryObjectStore(), "fit")
    slow = [replace(job, config=replace(job.config, learning_rate=0.003)) for job in jobs()]
    expected = facts(fit(model, slow, options=OPTIONS))
    wide, narrow = replace(OPTIONS, max_active=3), replace(OPTIONS, max_active=1)
    first = facts(islice(fit(model, slow, options=wide, checkpoint=slot), 14))
    second = facts(islice(fit(model, slow, options=narrow, checkpoint=slot), 3))
    third = facts(fit(model, slow, options=narrow, checkpoint=slot))
    found = first | second | third
    assert found.keys() == expected.keys()
    assert min(step for kind, job, step in third if kind == "step" and job == "third") > 2
    for key, value in expected.items():
        if key[0] == "step":
            np.testing.assert_allclose(np.array(found[key]), np.array(value), rtol=1e-3)
