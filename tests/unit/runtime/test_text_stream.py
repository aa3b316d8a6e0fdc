import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptstore.runtime.text_stream import TextStream
from promptstore.testing.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def _ids(text: str) -> list[int]:
    return [int(index) for index in TOKENIZER(text)["input_ids"]]


def _pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, stop)
    pieces = []
    for token in _ids(text):
        pieces.append(stream.push(token))
        if stream.is_stopped:
            return pieces, True
    return [*pieces, stream.finish()], False


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_the_pieces_joined_are_the_text(text: str) -> None:
    pieces, _ = _pieces(text)
    whole = TOKENIZER.decode(_ids(text), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == whole.lstrip(" ")


def test_the_space_between_template_and_answer_is_no_part_of_the_answer() -> None:
    pieces, _ = _pieces("  good  news ")
    assert "".join(pieces) == "good  news "


def test_a_character_split_between_tokens_comes_whole() -> None:
    assert len(_ids("🙂")) > 1
    pieces, _ = _pieces("a🙂b")
    assert "".join(pieces) == "a🙂b"
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_come_at_the_end() -> None:
    stream = TextStream(TOKENIZER)
    first = _ids("🙂")[0]
    assert stream.push(first) == ""
    assert stream.finish() == TOKENIZER.decode([first])


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab ", max_size=30), st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_text_or_behind_it_comes_out(text: str, stop: list[str]) -> None:
    pieces, is_stopped = _pieces(text, tuple(stop))
    text = text.lstrip(" ")
    found = [text.find(each) for each in stop if each in text]
    assert is_stopped == bool(found)
    if found:
        # Tokens arrive one by one, so the stop text that is complete first ends the answer.
        assert text.startswith("".join(pieces))
        assert not any(each in "".join(pieces) for each in stop)
    else:
        assert "".join(pieces) == text


@pytest.mark.parametrize("text", ["good\nnews", "goodnews"])
def test_text_that_may_become_a_stop_text_is_held_back(text: str) -> None:
    stream = TextStream(TOKENIZER, ("\n\n",))
    out = "".join(stream.push(token) for token in _ids("good\n"))
    assert out == "good"
    assert stream.push(_ids("x")[0]) == "\nx"
    assert "".join(_pieces(text, ("\n\n",))[0]) == text
