"""What requests may hold. OpenAI's names where OpenAI has them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from promptstore.errors import InvalidInputError
from promptstore.serving.service import SamplingRequest

Ref = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Fields = dict[str, str]
_REF_TEXT = "`task`, `task@alias`, `task:number` or `task@sha256:<digest>`; `task` alone means `task@production`."
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTEXT_CHARS = 20
# Far more than any request needs, far less than what follows a value into its depth can bear: `repr`, say.
_MOST_LEVELS = 100
_SHOWN_CHARS = 100
# Values that clients send where they could as well send none.
_CHANGE_NOTHING: Mapping[str, Sequence[object]] = {
    "n": (1,),
    "best_of": (1,),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Body(_Request):
    """A whole body. JSON can spell what nothing behind here can read: half of a surrogate pair, which is no character,
    and lists of lists of lists.
    """

    @model_validator(mode="before")
    @classmethod
    def _check_readable(cls, body: Any) -> Any:
        level = [body]
        for _ in range(_MOST_LEVELS + 1):
            level = [inner for value in level for inner in _held(value)]
            if not level:
                return body
        raise PydanticCustomError(
            "nested_too_deeply",
            "lists and objects are nested in more than {most} levels; send fewer",
            {"most": _MOST_LEVELS},
        )


def _held(value: Any) -> Iterable[Any]:
    """What a list or an object holds, keys included; a text holds nothing, and is read."""
    match value:
        case str(text) if found := _SURROGATE.search(text):
            around = text[max(0, found.start() - _CONTEXT_CHARS) : found.end() + _CONTEXT_CHARS]
            raise PydanticCustomError(
                "lone_surrogate",
                "{around} holds {half}, half of a surrogate pair and no character; send both or neither",
                {"around": ascii(around), "half": ascii(found[0])},
            )
        case dict(fields):
            return (*fields, *fields.values())
        case list(items):
            return items
        case _:
            return ()


class ClassifyRequest(_Body):
    """One text or many, under one task or many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Ref | Annotated[list[Ref], Field(min_length=1, max_length=64)] = Field(description=_REF_TEXT)
    input: str | Fields | Annotated[list[str | Fields], Field(min_length=1)] = Field(
        description="A text for a template of one field, or the template's fields by name; or a list of either."
    )

    @property
    def refs(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model

    @property
    def inputs(self) -> list[str | Fields]:
        return self.input if isinstance(self.input, list) else [self.input]


class StreamOptions(_Request):
    include_usage: bool = False


class _GenerationRequest(_Body):
    """What is not known here is refused, as OpenAI does: it might have changed the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Ref = Field(description=_REF_TEXT)
    input: Fields | None = Field(default=None, description="The template's fields by name, where it has several.")
    temperature: float | None = Field(default=None, description="0, greedy, if absent: what evaluation measured.")
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Keeps a caller with one version while another is on trial.")
    n: int | None = Field(default=None, description="1, if anything.")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    metadata: dict[str, Any] | None = Field(default=None, description="Taken and not looked at.")
    store: bool | None = Field(default=None, description="Taken and not looked at: nothing is kept.")
    service_tier: str | None = Field(default=None, description="Taken and not looked at.")

    def check_supported(self, **others: object) -> None:
        """Refuses parameters that would change the answer and that this server does not have.

        Raises:
            InvalidInputError: names the first of them.
        """
        given = {
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            **others,
        }
        for name, value in given.items():
            if value and value not in _CHANGE_NOTHING.get(name, ()):
                raise InvalidInputError(f"{name} is {_shown(value)}; this server does not support it, leave it out")

    def sampling_request(self, max_tokens: int | None, top_logprobs: int | None) -> SamplingRequest:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingRequest(
            max_tokens=max_tokens,
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            top_logprobs=top_logprobs,
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


class CompletionRequest(_GenerationRequest):
    """OpenAI's completions. The task's template is applied here: `prompt` is the text of its only field."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    max_tokens: int | None = Field(default=None, description="The task's max_target_tokens if absent.")
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TextPart(_Request):
    type: Literal["text"]
    text: str


class Message(_Request):
    role: str
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])


class ChatRequest(_GenerationRequest):
    """OpenAI's chat completions: one user message, which is the text of the template's only field."""

    messages: Annotated[list[Message], Field(max_length=64)] = Field(default_factory=list)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = Field(default=None, description="`none` or `auto`, if anything.")
    parallel_tool_calls: bool | None = Field(default=None, description="Taken and not looked at: there are no tools.")
    response_format: dict[str, Any] | None = Field(default=None, description='`{"type": "text"}`, if anything.')
