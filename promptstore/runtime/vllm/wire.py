"""What is said to vLLM's `/v1/completions`, and what its answers mean (vLLM 0.32)."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptstore.errors import NotServingError
from promptstore.runtime.job import FinishReason
from promptstore.runtime.sampling import ChosenToken, Sampling

# vLLM's own bound on `logprob_token_ids`.
LABELS_PER_REQUEST = 128
# A model's generation_config.json may hold sampling defaults, which vLLM would apply: all of them are said here.
_GREEDY: Mapping[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Tokens are named `token_id:<number>`: two tokens may have the same text.
_NUMBERED: Mapping[str, Any] = {"return_tokens_as_token_ids": True}
_STREAM_END = "[DONE]"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of a stream brought. reason: why vLLM ended the answer with it; `None` if it goes on."""

    tokens: tuple[ChosenToken, ...]
    reason: FinishReason | None = None


def embeddings_text(embeddings: Tensor) -> str:
    """A prompt and its input, [P + T, H], as vLLM reads them: a stored tensor in base64."""
    buffer = io.BytesIO()
    torch.save(embeddings, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def score_body(labels: Sequence[int]) -> dict[str, Any]:
    """Asks for the log-probabilities of `labels` as the next token.

    They are of the raw distribution over the whole vocabulary, whatever token is drawn, so the end token may be one.
    """
    return {**_GREEDY, "max_tokens": 1, "logprobs": 1, "logprob_token_ids": list(labels), **_NUMBERED}


def generate_body(sampling: Sampling, end_ids: frozenset[int]) -> dict[str, Any]:
    """Asks for a stream of tokens. Stop texts stay here: `TextStream` finds them as it does for the own engine."""
    body = {
        **_GREEDY,
        **_NUMBERED,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop_token_ids": sorted(end_ids),
        "stream": True,
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.top_logprobs is not None:
        body["logprobs"] = sampling.top_logprobs
    return body


def label_logprobs(answer: Any, labels: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of `labels`, in their order.

    Raises:
        NotServingError: they are not in the answer.
    """
    try:
        (choice,) = answer["choices"]
        found = _by_id(choice["logprobs"]["top_logprobs"][0])
        return tuple(found[label] for label in labels)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotServingError(
            "vLLM's answer lacks the log-probabilities of the task's labels; the gateway needs vLLM 0.32 or later"
        ) from error


def chunk_of(line: str, top_logprobs: int | None) -> Chunk | None:
    """What a line of a stream means; `None` for the end of the stream. top_logprobs: as was asked for.

    Raises:
        NotServingError: vLLM reports a failure, or says something that this version does not know.
    """
    if not line.startswith("data:"):
        return Chunk(())
    data = line.removeprefix("data:").strip()
    if data == _STREAM_END:
        return None
    try:
        event = json.loads(data)
        if "error" in event:
            raise NotServingError(f"vLLM failed in the middle of an answer: {event['error']}")
        return _chunk(event["choices"][0], top_logprobs or 0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotServingError("vLLM's stream holds no token ids; the gateway needs vLLM 0.32 or later") from error


def _chunk(choice: Any, top: int) -> Chunk:
    ids = [int(token) for token in choice["token_ids"]]
    reason = choice.get("finish_reason")
    if reason not in {None, "stop", "length"}:
        raise NotServingError(f"vLLM gave an answer up: {reason}; repeat the request in a moment")
    return Chunk(tuple(_tokens(ids, choice.get("logprobs"), top)), reason)


def _tokens(ids: Sequence[int], logprobs: Any, count: int) -> Iterator[ChosenToken]:
    """vLLM adds the chosen token to its alternatives where it is not among them."""
    if logprobs is None:
        yield from (ChosenToken(token) for token in ids)
        return
    for token, logprob, top in zip(ids, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        ordered = sorted(_by_id(top).items(), key=lambda pair: -pair[1])
        yield ChosenToken(token, _number(logprob), tuple(ordered[:count]))


def _by_id(logprobs: Mapping[str, float | None]) -> dict[int, float]:
    return {int(name.removeprefix("token_id:")): _number(value) for name, value in logprobs.items()}


def _number(value: float | None) -> float:
    """JSON has no NaN: vLLM writes null."""
    return math.nan if value is None else float(value)
