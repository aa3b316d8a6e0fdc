"""How one answer becomes a completion or a chat completion, whole or in chunks."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from promptstore.runtime.job import FinishReason
from promptstore.runtime.sampling import ChosenToken
from promptstore.serving.bodies import (
    TokenTexts,
    label_chat_logprobs,
    label_completion_logprobs,
    usage_body,
    version_body,
)
from promptstore.serving.service import Piece
from promptstore.serving.table import Target


@dataclass(slots=True)
class Whole:
    """One answer, put together.

    by_text: set if it is a label: every label's text with its probability. is_truncated: its input lost its end.
    """

    read: int
    text: str = ""
    tokens: list[ChosenToken] = field(default_factory=list)
    reason: FinishReason | None = None
    by_text: Mapping[str, float] | None = None
    is_truncated: bool = False

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.reason = piece.reason or self.reason
        if piece.token is not None:
            self.tokens.append(piece.token)

    @property
    def written(self) -> int:
        return 1 if self.by_text is not None else len(self.tokens)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk of one answer repeats. is_truncated: an input was too long for the task and lost its end."""

    asked: str
    target: Target
    prefix: str
    object: str
    is_truncated: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None = None) -> dict[str, Any]:
        body = {
            "id": f"{self.prefix}-{self.id}",
            "object": self.object,
            "created": self.created,
            "model": self.asked,
            "choices": list(choices),
            "promptstore": {**version_body(self.target), "is_truncated": self.is_truncated},
        }
        return body if usage is None else {**body, "usage": dict(usage)}

    def usage(self, answers: Sequence[Whole]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for usage."""
        return self.wrap([], usage_of(answers))


class Shape(Protocol):
    """Completion or chat."""

    prefix: str
    object: str
    chunk_object: str

    def choice(self, index: int, answer: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        """A whole answer."""

    def first_chunk(self) -> dict[str, Any] | None:
        """What a stream opens with, if anything."""

    def chunk(self, piece: Piece, before: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        """A piece of an answer. before: the answer up to it; a label's `by_text` is what its piece reports."""


class CompletionShape:
    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    def choice(self, index: int, answer: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        logprobs = None
        if has_logprobs and answer.by_text is not None:
            logprobs = label_completion_logprobs(answer.text, answer.by_text)
        elif has_logprobs:
            logprobs = self._texts.completion(answer.tokens)
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.reason}

    def first_chunk(self) -> dict[str, Any] | None:
        return None

    def chunk(self, piece: Piece, before: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        logprobs = None
        if has_logprobs and before.by_text is not None:
            logprobs = label_completion_logprobs(piece.text, before.by_text)
        elif has_logprobs and piece.token:
            logprobs = self._texts.completion([piece.token], self._texts.length(before.tokens))
        return {"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.reason}


class ChatShape:
    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    def choice(self, index: int, answer: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        logprobs = None
        if has_logprobs and answer.by_text is not None:
            logprobs = label_chat_logprobs(answer.text, answer.by_text)
        elif has_logprobs:
            logprobs = self._texts.chat(answer.tokens)
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}

    def first_chunk(self) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, piece: Piece, before: Whole, *, has_logprobs: bool) -> dict[str, Any]:
        logprobs = None
        if has_logprobs and before.by_text is not None:
            logprobs = label_chat_logprobs(piece.text, before.by_text)
        elif has_logprobs and piece.token:
            logprobs = self._texts.chat([piece.token])
        delta = {"content": piece.text} if piece.text or piece.token else {}
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": piece.reason}


def usage_of(answers: Sequence[Whole]) -> dict[str, int]:
    return usage_body(sum(answer.read for answer in answers), sum(answer.written for answer in answers))
