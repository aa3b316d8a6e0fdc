"""Evaluation of prompts on labelled rows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import IncompatibleModelError, InvalidInputError
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_logits
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5
from promptstore.tuning.evaluate import evaluate, evaluate_all
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.examples import Example, ExampleSet, encode_rows
from promptstore.tuning.generate import generate_texts
from promptstore.tuning.packed import choose_passes
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item
from promptstore.tuning.rows import Rows
from promptstore.tuning.scoring import score
from promptstore.tuning.token_budget import TokenBudget

MODELS = [tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5]
MakeModel = Callable[[], FrozenModel]
WORDS = ("good", "bad", "great", "terrible", "film", "news", "sport", "world", "science", "phone", "works", "quickly")

CLASSIFY = TaskSpec(
    name="sentiment",
    kind="classification",
    template="Review: {text} Sentiment:",
    data=DataSource("a", "b"),
    labels=(Label("pos", "positive"), Label("neg", "negative"), Label("mid", "maybe")),
)
GENERATE = TaskSpec(
    name="say", kind="generation", template="Text: {text} Answer:", data=DataSource("a", "b"), target_field="answer"
)


def rows_of(count: int = 25, seed: int = 0) -> Rows:
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(WORDS, size=int(draw.integers(1, 15)))) for _ in range(count)]
    labels = draw.choice(["pos", "neg", "mid"], size=count)
    return Rows.of(
        [{"text": t, "label": str(label), "answer": t.split()[0]} for t, label in zip(texts, labels, strict=True)]
    )


def prompt_of(model: FrozenModel, tokens: int, seed: int = 0) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((tokens, model.hidden_size)).astype(np.float32)
    return SoftPrompt(values, model.fingerprint)


@pytest.mark.parametrize("make", MODELS)
def test_predictions_are_what_the_model_says_row_by_row(make: MakeModel) -> None:
    model, rows = make(), rows_of()
    prompt = prompt_of(model, 5)
    encoder = TaskEncoder(CLASSIFY, model)
    tensor = torch.tensor(prompt.embeddings)
    expected = [
        CLASSIFY.label_names[
            int(label_logits(model, lay_out(model, [tensor], [encoder.encode(row)]), encoder.label_token_ids).argmax())
        ]
        for row in rows
    ]
    found = evaluate(model, CLASSIFY, prompt, rows)
    assert list(found.predictions) == expected
    assert found.value == np.mean([said == row["label"] for said, row in zip(expected, rows, strict=True)])
    assert found.metrics["mrr"] > found.value
    assert found.data_digest == rows.digest


@pytest.mark.parametrize("make", MODELS)
def test_cases_evaluated_together_are_cases_evaluated_alone(make: MakeModel) -> None:
    model = make()
    cases = [
        EvaluationCase(CLASSIFY, prompt_of(model, 5), rows_of()),
        EvaluationCase(CLASSIFY, None, rows_of(seed=1)),
        EvaluationCase(GENERATE, prompt_of(model, 17, seed=2), rows_of(10)),
    ]
    for case, together in zip(cases, evaluate_all(model, cases), strict=True):
        alone = evaluate(model, case.task, case.prompt, case.rows)
        assert together.predictions == alone.predictions
        for name, values in alone.columns.items():
            np.testing.assert_allclose(together.columns[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_teacher_forcing_knows_which_targets_greedy_decoding_would_hit(make: MakeModel) -> None:
    model = make()
    prompt = torch.tensor(prompt_of(model, 4).embeddings)
    inputs = [example.input_ids for example in encode_rows(GENERATE, model, rows_of(8), num_virtual_tokens=4).examples]
    said = [greedy(model, prompt, ids, 5) for ids in inputs]
    off_by_one = [(*answer[:-1], (answer[-1] + 1) % 500) for answer in said]
    sets = [
        ExampleSet(tuple(map(Example, inputs, answers)), prefix_ids=(), label_token_ids=(), longest=0)
        for answers in (said, off_by_one)
    ]
    hits, misses = score(model, choose_passes(model), TokenBudget(64), [prompt, prompt], sets)
    assert hits["exact_match"].tolist() == [1.0] * 8
    assert misses["exact_match"].tolist() == [0.0] * 8
    assert bool((misses["log_probability"] < hits["log_probability"]).all())


@pytest.mark.parametrize("make", MODELS)
def test_generated_texts_are_greedy_whatever_the_padding(make: MakeModel) -> None:
    # This seed's T5 says different things for different inputs.
    model = tiny_t5(seed=5) if make is tiny_t5 else make()
    prompt = torch.tensor(prompt_of(model, 4).embeddings)
    examples = encode_rows(GENERATE, model, rows_of(8), num_virtual_tokens=4).examples
    expected = [greedy(model, prompt, example.input_ids, 5) for example in examples]
    texts = model.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert generate_texts(model, prompt, examples, max_new_tokens=5) == [text.strip() for text in texts]
    assert len(set(texts)) > 1


def greedy(model: FrozenModel, prompt: torch.Tensor, input_ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The likeliest next token, one forward pass over one row for each, until the end token."""
    found: tuple[int, ...] = ()
    passes = PaddedPasses(model)
    while len(found) < count and model.tokenizer.eos_token_id not in found:
        item = Item(0, Example(input_ids, (*found, 0)))
        states = passes.open([Group(prompt)]).states([item])
        found = (*found, int(model.head.logits(states)[-1].argmax()))
    return found


def test_an_evaluation_without_prompt_is_the_bare_model() -> None:
    model, rows = tiny_llama(), rows_of()
    encoder = TaskEncoder(CLASSIFY, model)
    batch = lay_out(model, [None] * len(rows), [encoder.encode(row) for row in rows])
    logits = label_logits(model, batch, encoder.label_token_ids)
    found = evaluate(model, CLASSIFY, None, rows)
    np.testing.assert_allclose(
        found.columns["label_log_probability"], torch.log_softmax(logits, -1).numpy(), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_evaluated_is_refused_by_row() -> None:
    model = tiny_llama()
    with pytest.raises(InvalidInputError, match="no rows"):
        evaluate(model, CLASSIFY, None, [])
    with pytest.raises(InvalidInputError, match="row 2: label 'odd' is not one of pos, neg, mid"):
        evaluate(model, CLASSIFY, None, [{"text": "a", "label": "pos"}, {"text": "b", "label": "odd"}])
    with pytest.raises(InvalidInputError, match="row 1: field 'label' is missing"):
        evaluate(model, CLASSIFY, None, [{"text": "a"}])


def test_a_prompt_of_another_model_is_refused() -> None:
    model = tiny_llama()
    other = BaseModelFingerprint("LlamaForCausalLM", 32, "0" * 64, "0" * 64, "other")
    prompt = SoftPrompt(np.ones((2, 32), dtype=np.float32), other)
    with pytest.raises(IncompatibleModelError, match="fitted to other"):
        evaluate(model, CLASSIFY, prompt, rows_of())
