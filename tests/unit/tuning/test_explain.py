"""A prompt is explained with the model it belongs to, and no other."""

import numpy as np
import pytest

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import IncompatibleModelError
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama
from promptstore.tuning.explain import explain

TASK = TaskSpec(
    "sentiment",
    "classification",
    "{text}",
    DataSource("a.jsonl", "b.jsonl"),
    (Label("pos", "positive"), Label("neg", "negative")),
)


def words_as_prompt(model: FrozenModel, text: str) -> SoftPrompt:
    import torch

    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return SoftPrompt(np.asarray(model.embed(torch.tensor([ids]))[0].float()), model.fingerprint)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_a_prompt_of_words_reads_as_those_words(make: type) -> None:
    model: FrozenModel = make()

    reading = explain(model, words_as_prompt(model, " good film negative"), TASK)

    assert [each.neighbours[0].token for each in reading.virtual_tokens] == [" good", " film", " negative"]
    trace = reading.labels[0]
    assert (trace.label, trace.rank, trace.virtual_token) == ("neg", 1, 2)
    assert TaskEncoder(TASK, model).label_token_ids[1] == reading.virtual_tokens[2].neighbours[0].token_id
    assert all(0.3 < each.norm < 3 for each in reading.virtual_tokens), "relative to the table as the model feeds it"


def test_a_prompt_of_another_model_is_refused() -> None:
    with pytest.raises(IncompatibleModelError, match="weights"):
        explain(tiny_llama(seed=1), words_as_prompt(tiny_llama(seed=0), " good"), TASK)
