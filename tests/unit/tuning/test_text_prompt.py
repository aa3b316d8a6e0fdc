"""The baseline of a written prompt."""

from dataclasses import replace

import numpy as np
import pytest

from promptstore.errors import InvalidInputError
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import ECHO, SENTIMENT, echo_rows, sentiment_rows
from promptstore.tuning.evaluate import evaluate, evaluate_all
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.rows import Rows
from promptstore.tuning.text_prompt import text_prompt


def test_a_written_prompt_answers_as_its_text_before_the_input_does() -> None:
    model = tiny_llama()
    train, rows = sentiment_rows(20), sentiment_rows(12, seed=1)
    first = {row["label"]: row["text"] for row in reversed(train)}
    text = (
        "Answer with positive or terrible.\n\n"
        f"Review: {first['good']} Sentiment: positive\n\nReview: {first['bad']} Sentiment: terrible\n\n"
    )
    written = replace(SENTIMENT, template=text.replace("{", "{{") + SENTIMENT.template)

    in_the_template = evaluate(model, written, None, rows)
    found = evaluate_all(model, [EvaluationCase(SENTIMENT, text_prompt(model, SENTIMENT, train), rows)])[0]

    scores = "label_log_probability"
    np.testing.assert_allclose(found.columns[scores], in_the_template.columns[scores], atol=1e-4)


def test_a_text_task_is_shown_three_solved_rows() -> None:
    model = tiny_llama()
    rows = echo_rows(8)
    shown = "".join(f"Text: {row['text']} Answer: {row['answer']}\n\n" for row in rows[:3])
    assert text_prompt(model, ECHO, rows).num_virtual_tokens == len(model.tokenizer(shown)["input_ids"])


def test_examples_that_do_not_fit_the_model_are_left_out() -> None:
    model = tiny_llama(max_length=64)
    rows = Rows.of([{"text": "news " * 60, "label": "good"}, {"text": "sport", "label": "bad"}])
    instruction = len(model.tokenizer("Answer with positive or terrible.\n\n")["input_ids"])
    assert instruction < text_prompt(model, SENTIMENT, rows).num_virtual_tokens <= 32
    with pytest.raises(InvalidInputError, match="no rows"):
        text_prompt(model, SENTIMENT, [])
