"""What holds for tiny models holds for real weights."""

import pytest
import torch

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_log_probabilities, label_logits, target_log_probabilities
from promptstore.testing.demo_model import open_demo_model

pytestmark = pytest.mark.lm

SENTIMENT = TaskSpec(
    "sentiment",
    "classification",
    "Review: {text}\nSentiment:",
    DataSource("train.jsonl", "validation.jsonl"),
    (Label("positive", "positive"), Label("negative", "negative")),
)
REVIEWS = {
    "an absolute delight from beginning to end , the best film of the year": "positive",
    "the worst movie i have ever seen , boring and badly acted": "negative",
    "wonderful performances and a great story": "positive",
    "a terrible , stupid waste of two hours": "negative",
}


def test_a_mixed_batch_answers_each_row_as_if_it_were_alone(smollm2: FrozenModel) -> None:
    encoder = TaskEncoder(SENTIMENT, smollm2)
    inputs = [encoder.encode({"text": text}) for text in REVIEWS]
    generator = torch.Generator().manual_seed(0)
    scale = float(smollm2.embeddings.float().std())
    prompts = [torch.randn(length, 576, generator=generator) * scale for length in (20, 1, 7, 50)]

    together = label_logits(smollm2, lay_out(smollm2, prompts, inputs), encoder.label_token_ids)

    for row, (prompt, ids) in enumerate(zip(prompts, inputs, strict=True)):
        alone = label_logits(smollm2, lay_out(smollm2, [prompt], [ids]), encoder.label_token_ids)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-3, rtol=0)


def test_the_untuned_model_tells_clear_reviews_apart(smollm2: FrozenModel) -> None:
    encoder = TaskEncoder(SENTIMENT, smollm2)
    inputs = [encoder.encode({"text": text}) for text in REVIEWS]

    scores = label_log_probabilities(smollm2, lay_out(smollm2, [None] * len(inputs), inputs), encoder.label_token_ids)

    # Its verdicts lean to one label, so compare each review's score with the mean of all.
    leaning = (scores[:, 0] - scores[:, 0].mean()).sign()
    assert leaning.tolist() == [1.0 if label == "positive" else -1.0 for label in REVIEWS.values()]


def test_dequantised_weights_predict_english_as_well_as_measured(smollm2: FrozenModel) -> None:
    """Perplexity on one plain sentence; a permuted or unscaled tensor would put it in the thousands."""
    text = "The capital of France is Paris, and the capital of Germany is Berlin. Both cities lie on rivers."
    ids = smollm2.tokenizer(text)["input_ids"]

    log_probabilities = target_log_probabilities(smollm2, [None], [ids[:1]], [ids[1:]])

    assert float(torch.exp(-log_probabilities.mean())) < 15


def test_the_labels_logits_in_bfloat16_stay_near_those_in_float32(smollm2: FrozenModel) -> None:
    halved = open_demo_model(dtype="bfloat16")
    encoder = TaskEncoder(SENTIMENT, smollm2)
    inputs = [encoder.encode({"text": text}) for text in REVIEWS]

    full, half = (
        label_logits(model, lay_out(model, [None] * 4, inputs), encoder.label_token_ids) for model in (smollm2, halved)
    )

    assert halved.fingerprint == smollm2.fingerprint
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.5, rtol=0)


def test_a_gradient_step_on_a_prompt_does_not_move_the_model(smollm2: FrozenModel) -> None:
    before = smollm2.weights_digest_now()
    encoder = TaskEncoder(SENTIMENT, smollm2)
    prompt = smollm2.embeddings[1000:1010].float().clone().requires_grad_()

    logits = label_logits(
        smollm2, lay_out(smollm2, [prompt], [encoder.encode({"text": "good"})]), encoder.label_token_ids
    )
    (gradient,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], [prompt])

    assert gradient.shape == (10, 576)
    assert bool((gradient.norm(dim=1) > 0).all())
    assert smollm2.weights_digest_now() == before
