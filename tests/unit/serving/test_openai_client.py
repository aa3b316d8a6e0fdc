"""The official client against the server, as users have it."""

from collections.abc import Callable

import openai
import pytest
import torch
from openai import OpenAI, Stream
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.completion_choice import Logprobs

from promptstore.core.ref import PromptRef
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.sampling import ChosenToken, Sampling
from promptstore.serving.bodies import TokenTexts
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import LiveServer
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama


@pytest.fixture(scope="module")
def api(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def _expected(server: LiveServer, model: FrozenModel, question: str, sampling: Sampling) -> str:
    """The answer of an engine of its own that recomputes everything from input embeddings."""
    ref = PromptRef.parse("answer")
    pulled = server.context.follower.pull(ref, server.context.follower.table.state.resolve(ref))
    rig = EngineRig(model, RecomputedDecoding(model), {"answer": pulled.prompt})
    return rig.answer(rig.generate("answer", pulled.encoder.encode({"question": question}), sampling)).text


def test_models_lists_the_aliases_with_their_versions(api: OpenAI) -> None:
    models = list(api.models.list())
    assert [each.id for each in models] == ["answer", "entailment", "sentiment", "topic"]
    assert api.models.retrieve("topic:1").id == "topic:1"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("nothing")


def test_a_completion_is_the_greedy_text(api: OpenAI, server: LiveServer, model: FrozenModel) -> None:
    answer = api.completions.create(model="answer", prompt="what is good news ?")
    (choice,) = answer.choices
    assert choice.text == _expected(server, model, "what is good news ?", Sampling(12))
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.model_extra is not None
    assert answer.model_extra["promptstore"]["version"] == 1


def test_many_prompts_come_back_in_order(api: OpenAI, server: LiveServer, model: FrozenModel) -> None:
    questions = ["who ?", "what is the topic of the review ?", "why not ?"]
    answer = api.completions.create(model="answer", prompt=questions, max_tokens=5)
    expected = [_expected(server, model, question, Sampling(5)) for question in questions]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_a_stream_gives_the_same_text_piece_by_piece(api: OpenAI) -> None:
    whole = api.completions.create(model="answer", prompt="why ?", temperature=1.0, seed=3).choices[0].text
    stream = api.completions.create(
        model="answer", prompt="why ?", temperature=1.0, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len(chunks) > 5


def test_a_chat_streams_and_answers_whole(api: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "who ?"}]
    whole = api.chat.completions.create(model="answer", messages=messages, max_tokens=6)
    chunks: Stream[ChatCompletionChunk] = api.chat.completions.create(
        model="answer", messages=messages, max_tokens=6, stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content


def test_log_probabilities_are_reported_per_token(api: OpenAI) -> None:
    logprobs = api.completions.create(model="answer", prompt="who ?", max_tokens=3, logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or ()) == len(logprobs.token_logprobs or ()) == 3
    for chosen, top in zip(logprobs.token_logprobs or (), logprobs.top_logprobs or (), strict=True):
        # Greedy takes the likeliest, so the chosen one leads its alternatives.
        assert chosen == pytest.approx(max(top.values()))
    chat = api.chat.completions.create(
        model="answer", messages=[{"role": "user", "content": "who ?"}], max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs
    assert content is not None
    assert [each.logprob for each in content.content or ()] == pytest.approx(logprobs.token_logprobs)


def test_the_chosen_token_is_among_the_alternatives_and_offsets_point_into_the_text(api: OpenAI) -> None:
    def ask(*, stream: bool) -> list[Logprobs]:
        answer = api.completions.create(
            model="answer", prompt="who ?", max_tokens=8, logprobs=1, temperature=2.0, seed=5, stream=stream
        )
        choices = [each.choices[0] for each in ([answer] if isinstance(answer, Completion) else answer)]
        texts.append("".join(choice.text for choice in choices))
        return [choice.logprobs for choice in choices if choice.logprobs is not None]

    texts: list[str] = []
    (whole,), pieces = ask(stream=False), ask(stream=True)
    tokens, tops = whole.tokens or [], whole.top_logprobs or []
    assert all(token in top for token, top in zip(tokens, tops, strict=True))
    assert any(len(top) == 2 for top in tops), "drawn at this temperature, some tokens are not the likeliest"
    starts = whole.text_offset or []
    assert texts[0] == texts[1]
    assert all(texts[0][start:].startswith(token) for token, start in list(zip(tokens, starts, strict=True))[1:])
    assert [start for piece in pieces for start in piece.text_offset or ()] == starts
    assert [token for piece in pieces for token in piece.tokens or ()] == tokens


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_the_bytes_of_tokens_joined_are_the_texts_bytes(make: Callable[[], FrozenModel]) -> None:
    tokenizer = make().tokenizer
    text = "naïve 🙂 „quoted“ 漢字"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    content = TokenTexts(tokenizer).chat([ChosenToken(index, -1.0) for index in ids])["content"]
    assert any("\ufffd" in each["token"] for each in content), "some token must be a part of a character"
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == text


def test_a_label_that_is_streamed_reports_its_log_probabilities_too(api: OpenAI) -> None:
    whole = api.completions.create(model="topic", prompt="a match", logprobs=3).choices[0]
    (piece,) = list(api.completions.create(model="topic", prompt="a match", logprobs=3, stream=True))
    assert whole.logprobs is not None
    assert piece.choices[0].logprobs == whole.logprobs


def test_stop_texts_end_the_answer_before_them(api: OpenAI) -> None:
    text = api.completions.create(model="answer", prompt="who ?").choices[0].text
    stop = text[4:6]
    cut = api.completions.create(model="answer", prompt="who ?", stop=[stop]).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_classification_task_answers_a_chat_with_its_label(api: OpenAI, server: LiveServer) -> None:
    chat = api.chat.completions.create(
        model="sentiment", messages=[{"role": "user", "content": "a great film"}], logprobs=True
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    said = {each.token: each.logprob for each in logprobs.content[0].top_logprobs}
    assert set(said) == {"positive", "negative"}
    assert chat.choices[0].message.content == max(said, key=lambda text: said[text])
    total = torch.tensor(list(said.values())).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)
    stream = api.completions.create(model="sentiment", prompt="a great film", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 2}, "n is 2"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"echo": True}, "echo"),
        ({"temperature": 3.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000}, "room for"),
        ({"logprobs": 50}, "top_logprobs"),
        ({"logit_bias": {"50": -100}}, "logit_bias"),
        ({"extra_body": {"top_k": 5}}, "top_k"),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(
    api: OpenAI, given: dict[str, object], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        api.completions.create(model="answer", prompt="x", **given)  # type: ignore[call-overload]


HARMLESS = {
    "n": 1,
    "store": False,
    "service_tier": "auto",
    "stream_options": {"include_usage": False},
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
}
HARMLESS_IN_A_CHAT = [
    *({name: value} for name, value in HARMLESS.items()),
    {"response_format": {"type": "text"}},
    {"parallel_tool_calls": False},
    {"parallel_tool_calls": True},
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"logprobs": False},
]


def _chat(api: OpenAI, **given: object) -> ChatCompletion:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "who ?"}]
    answer = api.chat.completions.create(model="answer", messages=messages, max_tokens=3, **given)  # type: ignore[call-overload]
    assert isinstance(answer, ChatCompletion)
    return answer


@pytest.mark.parametrize("given", HARMLESS_IN_A_CHAT, ids=str)
def test_what_changes_nothing_may_be_said_and_changes_nothing(api: OpenAI, given: dict[str, object]) -> None:
    assert _chat(api, **given).choices == _chat(api).choices


def test_a_completion_may_say_what_changes_nothing(api: OpenAI) -> None:
    given = {"extra_body": {**HARMLESS, "best_of": 1, "echo": False, "suffix": ""}}
    plain = api.completions.create(model="answer", prompt="who ?", max_tokens=3)
    answer = api.completions.create(model="answer", prompt="who ?", max_tokens=3, **given)  # type: ignore[call-overload]
    assert answer.choices == plain.choices


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format is {'type': 'json_object'}; .*leave it out"),
        ({"response_format": {"type": "text", "more": 1}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": False}, "tools is"),
        ({"tool_choice": "required"}, "tool_choice is 'required'"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice is"),
        ({"n": 2}, "n is 2"),
    ],
)
def test_a_chat_that_asks_for_what_is_not_there_is_refused(api: OpenAI, given: dict[str, object], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        _chat(api, **given)


def test_a_refusal_repeats_only_the_beginning_of_what_it_refuses(api: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 100_000}}
    with pytest.raises(openai.BadRequestError, match=r"tools is \[\{'type': .*…; this server") as told:
        _chat(api, tools=[tool])
    assert len(told.value.message) < 300


def test_a_chat_of_several_turns_is_refused_rather_than_cut(api: OpenAI) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who ?"}]
    with pytest.raises(openai.BadRequestError, match="exactly one message"):
        api.chat.completions.create(model="answer", messages=messages)  # type: ignore[arg-type]


def test_unknown_models_raise_the_clients_own_error(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nothing"):
        api.completions.create(model="nothing", prompt="x")
