"""What is asked and answered, without I/O: both clients share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

from promptstore.errors import RefusedError

Input = str | Mapping[str, str]
# What a completion, and each piece of one, says of the version that writes it.
WRITER = ("task", "version", "digest", "alias", "is_truncated")


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
    choice, about = body["choices"][0], body["promptstore"]
    return Completion(choice["text"], choice["finish_reason"], **{name: about[name] for name in WRITER})


def full_state(body: Any) -> dict[str, Any]:
    """What `/readyz` tells.

    Raises:
        RefusedError: the server tells strangers no more than that it is ready.
    """
    if "store" not in body:
        raise RefusedError("the server tells its state only to callers with one of its keys; give api_key")
    return dict(body)
