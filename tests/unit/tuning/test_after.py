"""Prompts that stand after the input: fitted, evaluated and served as if text had stood there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptstore.core.manifest import Manifest, Payload
from promptstore.core.prompt import SoftPrompt
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.cached import CachedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.predictor import Predictor
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Row
from promptstore.store.interchange import export_prompt
from promptstore.store.prompt_store import PulledPrompt
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5
from promptstore.testing.tuning_tasks import (
    ECHO,
    SENTIMENT,
    echo_job,
    echo_rows,
    sentiment_job,
    sentiment_rows,
    start_of,
)
from promptstore.tuning.after import KeptInputs
from promptstore.tuning.answers import answer_losses
from promptstore.tuning.evaluate import evaluate, evaluate_all
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.events import FitFinished, FitResult
from promptstore.tuning.examples import Example
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.packed import PackedPasses, choose_passes
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item, Passes
from promptstore.tuning.task_file import read_task

DECODERS = [tiny_llama, tiny_gpt2, tiny_gemma]
MakeModel = Callable[[], FrozenModel]
AFTER = replace(SENTIMENT, placement="after")


def after_jobs() -> list[FitJob]:
    """Slow enough that rounding stays rounding; see the comparisons of `test_fit`."""
    first = sentiment_job("after", learning_rate=0.003, num_virtual_tokens=6)
    text = echo_job("text", learning_rate=0.003)
    return [
        replace(first, task=AFTER),
        replace(text, task=replace(ECHO, placement="after")),
        sentiment_job("before", learning_rate=0.003, seed=1),
    ]


def results(model: FrozenModel, jobs: list[FitJob], **options: Any) -> dict[str, FitResult]:
    events = fit(model, jobs, options=FitOptions(**options))
    return {event.job: event.result for event in events if isinstance(event, FitFinished)}


@pytest.mark.parametrize("make", DECODERS)
def test_text_after_the_input_scores_as_a_prompt_made_of_it_does(make: MakeModel) -> None:
    model = make()
    said = "This text is"
    ids = model.tokenizer(f" {said}", add_special_tokens=False)["input_ids"]
    prompt = SoftPrompt(model.embed(torch.tensor([ids]))[0].numpy().copy(), model.fingerprint)
    rows = sentiment_rows(12, seed=1)
    written = evaluate(model, replace(SENTIMENT, template=f"{SENTIMENT.template} {said}"), None, rows)
    found = evaluate(model, AFTER, prompt, rows)
    name = "label_log_probability"
    np.testing.assert_allclose(found.columns[name], written.columns[name], atol=1e-4)
    before = evaluate(model, SENTIMENT, prompt, rows)
    assert not np.allclose(found.columns[name], before.columns[name], atol=1e-2)


def gradients(model: FrozenModel, passes: Passes, steps: int) -> list[torch.Tensor]:
    """Of four prompts, two of them after; repeated steps read the inputs from where they are kept."""
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randn(n, model.hidden_size, generator=generator).requires_grad_() for n in (3, 20, 5, 1)]
    groups = [Group(prompt, is_after=at in (1, 3)) for at, prompt in enumerate(prompts)]
    rows = [torch.randint(3, 500, (n,), generator=generator).tolist() for n in (4, 18, 7, 2, 11, 30, 1, 9)]
    items = [Item(at % 4, Example(tuple(row), tuple(range(20, 21 + at % 3)), 0)) for at, row in enumerate(rows)]
    for _ in range(steps):
        for prompt in prompts:
            prompt.grad = None
        open_pass = passes.open(groups)
        torch.autograd.backward(answer_losses(model, open_pass.states(items), items, [()] * 4).sum())
        open_pass.close()
    return [prompt.grad for prompt in prompts if prompt.grad is not None]


@pytest.mark.parametrize("make", DECODERS)
def test_packed_gradients_are_padded_gradients_also_when_inputs_are_kept(make: MakeModel) -> None:
    model = make()
    expected = gradients(model, PaddedPasses(model), 1)
    for steps in (1, 2):
        found = gradients(model, PackedPasses(model), steps)
        assert len(found) == 4
        for ours, theirs in zip(found, expected, strict=True):
            assert float(theirs.norm()) > 0.01
            assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())


@pytest.mark.parametrize("make", [*DECODERS])
def test_prompts_before_and_after_fitted_together_are_those_fitted_alone(make: MakeModel) -> None:
    model = make()
    digest = model.weights_digest_now()
    assert isinstance(choose_passes(model), PackedPasses)
    together = results(model, after_jobs())
    for job in after_jobs():
        alone = results(model, [job], tokens_per_pass=60)[job.name]
        moved = np.linalg.norm(alone.last.embeddings - start_of(model, job))
        assert np.linalg.norm(together[job.name].last.embeddings - alone.last.embeddings) < 2e-3 * moved
    assert model.weights_digest_now() == digest


def test_an_input_is_computed_once_and_kept_while_there_is_room() -> None:
    model = tiny_llama()
    runs: list[int] = []
    model.network.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: runs.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    one_token = sum(part.nbytes for part in KeptInputs(model).of([(5,)])[0])
    kept = KeptInputs(model, budget_bytes=6 * one_token)
    runs.clear()
    kept.of([(3, 4, 5), (3, 4, 5), (6, 7)])
    kept.of([(6, 7), (3, 4, 5)])
    kept.of([(8, 9), (6, 7)])
    kept.of([(8, 9)])
    assert runs == [5, 2, 2]
    assert [ids in kept for ids in ((3, 4, 5), (6, 7), (8, 9))] == [True, True, False]


@pytest.mark.parametrize("make", DECODERS)
def test_what_is_served_is_what_was_evaluated(make: MakeModel) -> None:
    model = make()
    rng = np.random.default_rng(0)
    prompt = SoftPrompt(rng.normal(0, 0.3, (5, model.hidden_size)).astype(np.float32), model.fingerprint)
    echo = replace(ECHO, placement="after")
    cases = [EvaluationCase(AFTER, prompt, sentiment_rows(9)), EvaluationCase(echo, prompt, echo_rows(9))]
    for case, judged in zip(cases, evaluate_all(model, cases), strict=True):
        served = Predictor(model, case.task, prompt).predict(list(case.rows), batch_size=4)
        assert [each.text.strip() for each in served] == [each.strip() for each in judged.predictions]


@pytest.mark.parametrize("make", DECODERS)
def test_an_answer_that_had_to_leave_goes_on_behind_prompt_and_output(make: MakeModel) -> None:
    model = make()
    prompt = torch.randn((4, model.hidden_size), generator=torch.Generator().manual_seed(1))
    ids, output = [30, 31, 32, 40, 41], [50, 60]
    for decoding in (choose_decoding(model)[0], CachedDecoding(model), RecomputedDecoding(model)):
        for prefix in ((), (30, 31), tuple(ids)):
            row = Row(decoding.prepare(prompt, prefix, is_after=True), ids)
            rows = decoding.start()
            rows.join([row])
            expected = [rows.step([token]) for token in output][-1]
            again = decoding.start().join([row._replace(output_ids=output)])
            torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-4)


def test_an_encoder_decoder_refuses_it() -> None:
    model = tiny_t5()
    with pytest.raises(InvalidInputError, match="'after' is for decoder-only models"):
        fit(model, [replace(sentiment_job(), task=AFTER)])
    prompt = SoftPrompt(np.ones((2, model.hidden_size), np.float32), model.fingerprint)
    with pytest.raises(InvalidInputError, match="use 'before'"):
        Predictor(model, AFTER, prompt)


def test_a_manifest_names_the_placement_only_where_it_is_not_the_usual_one() -> None:
    usual, other = SENTIMENT.to_json(), AFTER.to_json()
    assert "placement" not in usual
    assert other == {**usual, "placement": "after"}
    assert TaskSpec.from_json(other) == AFTER
    manifest = Manifest(Payload("0" * 64, 112, 2, 32), tiny_llama().fingerprint, AFTER)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    said = manifest.to_bytes().replace(b'"placement":"after"', b'"placement":"before"')
    with pytest.raises(CorruptError, match="not in canonical form"):
        Manifest.from_bytes(said)
    with pytest.raises(InvalidInputError, match="placement is 'behind'"):
        replace(SENTIMENT, placement="behind")  # type: ignore[arg-type]


def test_a_task_file_says_where_the_prompt_stands(tmp_path: Path) -> None:
    file = tmp_path / "task.toml"
    file.write_text(
        'name = "t"\nplacement = "after"\ntemplate = "{text}"\n[labels]\na = "a"\nb = "b"\n'
        '[data]\ntrain = "t.jsonl"\nvalidation = "v.jsonl"\n'
    )
    assert read_task(file).placement == "after"


def test_peft_is_not_given_a_prompt_that_it_would_put_in_front(tmp_path: Path) -> None:
    fingerprint = tiny_llama().fingerprint
    manifest = Manifest(Payload("0" * 64, 112, 2, 32), fingerprint, AFTER)
    version = PromptVersion("sentiment", 1, manifest.digest, "0" * 64, 1, "", "ada")
    pulled = PulledPrompt(version, manifest, SoftPrompt(np.ones((2, 32), np.float32), fingerprint))
    with pytest.raises(InvalidInputError, match=r"sentiment:1 stands after the input, and PEFT puts prompts before"):
        export_prompt(pulled, tmp_path / "adapter")
    assert export_prompt(pulled, tmp_path / "prompt.bundle").exists()
