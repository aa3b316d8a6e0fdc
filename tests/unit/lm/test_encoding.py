"""Rows become token ids: the template kept, the longest field cut, answers tokenised where they follow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama, tiny_t5

LLAMA, GEMMA, T5 = tiny_llama(), tiny_gemma(), tiny_t5()
TWO_LABELS = (Label("pos", "positive"), Label("neg", "negative"))


def classification(template: str, labels: tuple[Label, ...] = TWO_LABELS, *, max_input_tokens: int = 256) -> TaskSpec:
    data = DataSource("train.jsonl", "validation.jsonl")
    return TaskSpec("demo", "classification", template, data, labels, max_input_tokens=max_input_tokens)


def generation(template: str, *, max_target_tokens: int = 16) -> TaskSpec:
    data = DataSource("train.jsonl", "validation.jsonl")
    return TaskSpec("demo", "generation", template, data, max_target_tokens=max_target_tokens)


def words_of(model: FrozenModel, ids: tuple[int, ...] | list[int]) -> list[str]:
    return [model.tokenizer.decode([index]) for index in ids]


@pytest.mark.parametrize("template", ["Review: {text}\nSentiment:", "Review: {text}\nSentiment: ", "{text}"])
@pytest.mark.parametrize("verbaliser", ["positive", " positive"])
def test_a_label_is_read_where_a_space_joins_it_to_the_template(template: str, verbaliser: str) -> None:
    spec = classification(template, (Label("pos", verbaliser), Label("neg", "negative")))

    assert words_of(LLAMA, TaskEncoder(spec, LLAMA).label_token_ids) == [" positive", " negative"]


def test_a_label_after_a_line_end_needs_no_space() -> None:
    spec = classification("{text}\n", (Label("a", "Review:"), Label("b", "Topic:")))

    first, second = words_of(LLAMA, TaskEncoder(spec, LLAMA).label_token_ids)
    assert first == "Review"
    assert "Topic:".startswith(second)


def test_a_space_that_ends_the_template_is_not_encoded() -> None:
    with_space = TaskEncoder(classification("Review: {text} Sentiment: "), LLAMA)
    without = TaskEncoder(classification("Review: {text} Sentiment:"), LLAMA)

    assert with_space.encode({"text": "good"}) == without.encode({"text": "good"})


def test_labels_of_an_encoder_decoder_start_its_output_without_a_space() -> None:
    spec = classification("{text}", (Label("q", " question"), Label("a", "answer")))

    first, second = words_of(T5, TaskEncoder(spec, T5).label_token_ids)
    assert "question".startswith(first)
    assert "answer".startswith(second)


def test_labels_that_begin_with_the_same_token_are_refused_by_name() -> None:
    spec = classification("{text}", (Label("a", "good film"), Label("b", "bad"), Label("c", "good news")))

    with pytest.raises(InvalidInputError, match=r"labels 'a' and 'c' begin with the same token ' good'"):
        _ = TaskEncoder(spec, LLAMA).label_token_ids


def test_an_input_has_the_tokens_that_the_model_expects_around_it() -> None:
    row = {"text": "the film was good"}

    assert TaskEncoder(classification("{text}"), GEMMA).encode(row)[0] == GEMMA.tokenizer.bos_token_id
    assert TaskEncoder(classification("{text}"), T5).encode(row)[-1] == T5.tokenizer.eos_token_id
    assert LLAMA.tokenizer.decode(TaskEncoder(classification("{text}"), LLAMA).encode(row)) == row["text"]


def test_a_decoder_only_input_never_ends_with_the_end_token() -> None:
    ends_with_end = tiny_llama()
    ends_with_end.tokenizer.backend_tokenizer.post_processor = T5.tokenizer.backend_tokenizer.post_processor

    ids = TaskEncoder(classification("{text} so"), ends_with_end).encode({"text": "good"})

    assert ends_with_end.tokenizer.decode(ids) == "good so"


def test_too_long_a_field_loses_its_end_and_the_template_stays() -> None:
    encoder = TaskEncoder(classification("Review: {text}\nSentiment:", max_input_tokens=40), LLAMA)

    ids = encoder.encode({"text": "the film was great " * 50})

    text = LLAMA.tokenizer.decode(ids)
    assert len(ids) == 40
    assert text.startswith("Review: the film was great the film")
    assert text.endswith("\nSentiment:")


def test_the_longest_field_is_cut_and_the_shorter_one_kept_whole() -> None:
    encoder = TaskEncoder(classification("Question: {q}\nPassage: {p}\nAnswer:", max_input_tokens=60), LLAMA)

    text = LLAMA.tokenizer.decode(encoder.encode({"q": "was it good news", "p": "the world of science " * 60}))

    assert text.startswith("Question: was it good news\nPassage: the world")
    assert text.endswith("\nAnswer:")


@settings(max_examples=60, deadline=None)
@given(first=st.text(max_size=120), second=st.text(max_size=120), limit=st.integers(min_value=12, max_value=80))
def test_any_text_fits_with_the_template_whole(first: str, second: str, limit: int) -> None:
    encoder = TaskEncoder(classification("Text: {a}|{b}\nTopic:", max_input_tokens=limit), LLAMA)

    ids = encoder.encode({"a": first, "b": second})

    assert len(ids) <= limit
    text = LLAMA.tokenizer.decode(ids)
    assert text.startswith("Text:")
    assert text.endswith("\nTopic:")
    assert "|" in text


def test_a_template_that_leaves_no_room_is_refused() -> None:
    encoder = TaskEncoder(classification("Review: {text}\nSentiment:", max_input_tokens=3), LLAMA)

    with pytest.raises(InvalidInputError, match=r"the template alone takes \d+ tokens, inputs may have 3"):
        encoder.encode({"text": "good"})


def test_an_empty_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the input is empty"):
        TaskEncoder(classification("{text}"), LLAMA).encode({"text": ""})


def test_inputs_leave_the_reserved_positions_of_a_short_model_free() -> None:
    model = tiny_llama(max_length=32)
    encoder = TaskEncoder(classification("{text}"), model, reserved=12)

    assert len(encoder.encode({"text": "good " * 100})) == 20


def test_a_target_ends_with_the_end_token_and_follows_a_space() -> None:
    encoder = TaskEncoder(generation("Question: {q}\nAnswer:"), LLAMA)

    assert LLAMA.tokenizer.decode(encoder.target_ids("great news")) == " great news</s>"


def test_a_target_is_cut_to_the_tasks_length() -> None:
    encoder = TaskEncoder(generation("{q}", max_target_tokens=3), LLAMA)

    assert words_of(LLAMA, encoder.target_ids("good bad good bad")) == [" good", " bad", " good"]


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidInputError, match="input field 'text' is missing"):
        TaskEncoder(classification("{text}"), LLAMA).encode({"body": "good"})
