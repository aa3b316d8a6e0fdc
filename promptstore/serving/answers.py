"""What answers hold, for the interface's own description. `bodies` and `openai_shape` write them; a test compares."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Version(_Answer):
    """What answered. alias: absent if asked by number or digest."""

    task: str
    version: int
    digest: str
    alias: str | None


class ClassifiedInput(Version):
    """One input under one task. is_truncated: the input was too long for the task and lost its end."""

    index: int
    model: str
    label: str
    probabilities: dict[str, float]
    is_truncated: bool


class ClassifyAnswer(_Answer):
    """Inputs outermost, each under every task in the request's order."""

    id: str
    object: Literal["classification"]
    created: int
    model: str | list[str]
    results: list[ClassifiedInput]
    usage: Usage


class Writing(Version):
    """is_truncated: an input was too long for the task and lost its end."""

    is_truncated: bool


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(_Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    promptstore: Writing
    usage: Usage


class ChatMessage(_Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    promptstore: Writing
    usage: Usage


class ServedTask(Version):
    """A version and what its task reads and answers."""

    kind: str
    fields: list[str]
    labels: list[str]
    target_field: str
    metric: str


class Model(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    promptstore: ServedTask


class ModelList(_Answer):
    object: Literal["list"]
    data: list[Model]


class Health(_Answer):
    status: str


class FollowedStore(_Answer):
    commit: int
    staleness_s: float
    is_stale: bool
    problem: str | None


class State(_Answer):
    """awaited, refused: aliases not served as the store says, not yet or for a reason. trials: as they go here."""

    store: FollowedStore
    aliases: int
    awaited: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    trials: list[dict[str, Any]]


class Readiness(_Answer):
    """Everything but the status is for callers with a key, where keys are in use."""

    status: str
    store: FollowedStore | None = None
    aliases: int | None = None
    awaited: list[dict[str, Any]] | None = None
    refused: list[dict[str, Any]] | None = None
    trials: list[dict[str, Any]] | None = None


class Problem(_Answer):
    """code: for programs. message: for people. param: the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str = Field(examples=["invalid_input", "model_not_found", "overloaded", "not_serving"])


class ErrorAnswer(_Answer):
    error: Problem
