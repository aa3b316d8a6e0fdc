"""What is asked and answered, without I/O: both clients share it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

from promptstore.errors import CorruptError, NotServingError, RefusedError

Input = str | Mapping[str, str]
_EVENT = "data: "
_LAST_EVENT = "[DONE]"


class SamplingOptions(TypedDict, total=False):
    """As in OpenAI's API; what is left out is the task's: greedy, and as many tokens as in training."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    seed: int


@dataclass(frozen=True, slots=True)
class Classification:
    """One input's label under one version. index: of the input. alias: `None` if asked by number or digest."""

    index: int
    task: str
    version: int
    digest: str
    alias: str | None
    label: str
    probabilities: Mapping[str, float]
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """One text and the version that wrote it. reason: `stop`, or `length` if max_tokens cut it.

    is_truncated: the input was too long for the task, and lost its end.
    """

    text: str
    reason: str
    task: str
    version: int
    digest: str
    alias: str | None
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. None of them changes anything, so asking again is always safe.

    caller: who it is asked for; one caller stays with one version while another is on trial.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    caller: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.caller is None else {"x-promptstore-caller": self.caller}


MODELS = Asked("GET", "/v1/models")
STATE = Asked("GET", "/readyz")


def model_request(ref: str) -> Asked:
    return Asked("GET", f"/v1/models/{quote(ref, safe='@:')}")


def classify_request(refs: str | Sequence[str], inputs: Input | Sequence[Input], caller: str | None) -> Asked:
    model = refs if isinstance(refs, str) else list(refs)
    given = inputs if isinstance(inputs, str | Mapping) else list(inputs)
    return Asked("POST", "/v1/classify", {"model": model, "input": given}, caller)


def complete_request(
    ref: str, given: Input, caller: str | None, options: SamplingOptions, *, is_stream: bool = False
) -> Asked:
    field = "prompt" if isinstance(given, str) else "input"
    return Asked("POST", "/v1/completions", {"model": ref, field: given, "stream": is_stream, **options}, caller)


def classifications(body: Any) -> list[Classification]:
    fields = Classification.__slots__
    return [Classification(**{name: result[name] for name in fields}) for result in body["results"]]


def completion(body: Any) -> Completion:
    choice, version = body["choices"][0], body["promptstore"]
    named = {name: version[name] for name in ("task", "version", "digest", "alias", "is_truncated")}
    return Completion(choice["text"], choice["finish_reason"], **named)


def full_state(body: Any) -> dict[str, Any]:
    """What `/readyz` tells.

    Raises:
        RefusedError: the server tells strangers no more than that it is ready.
    """
    if "store" not in body:
        raise RefusedError("the server tells its state only to callers with one of its keys; give api_key")
    return dict(body)


def piece_of(line: str) -> str | None:
    """The text in one line of a stream, "" if it has none; `None` at the end of the stream.

    Raises:
        NotServingError: the server gave up in the middle; the text so far is not the whole answer.
        CorruptError: the line is not what a server sends.
    """
    if not line.startswith(_EVENT):
        return ""
    data = line.removeprefix(_EVENT)
    if data == _LAST_EVENT:
        return None
    try:
        event = json.loads(data)
    except ValueError as error:
        raise CorruptError(f"the server's stream holds {data[:80]!r}, which is not JSON") from error
    if "error" in event:
        raise NotServingError(f"the answer broke off: {event['error']['message']}")
    return "".join(choice["text"] for choice in event["choices"])


def broken_off(cause: Exception | None) -> NotServingError:
    """A stream that stopped before it said that it was done."""
    return NotServingError(f"the answer broke off: {cause or 'the server closed the connection'}; ask again")
