"""What answers look like: OpenAI's shapes, with the version that answered in body and headers."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from promptstore.core.ref import DEFAULT_ALIAS, DIGEST_PREFIX
from promptstore.runtime.sampling import ChosenToken
from promptstore.serving.service import Classified
from promptstore.serving.table import Target

VERSION_HEADER = "x-promptstore-version"
DIGEST_HEADER = "x-promptstore-digest"
ALIAS_HEADER = "x-promptstore-alias"
NO_ALIAS = "-"


def version_headers(targets: Iterable[Target]) -> dict[str, str]:
    """Which versions answered, in the order the request named them: `sst2:7`, `sha256:…`, `production` or `-`."""
    listed = list(targets)
    return {
        VERSION_HEADER: ", ".join(str(target.version) for target in listed),
        DIGEST_HEADER: ", ".join(DIGEST_PREFIX + target.version.digest for target in listed),
        ALIAS_HEADER: ", ".join(target.alias or NO_ALIAS for target in listed),
    }


def version_body(target: Target) -> dict[str, Any]:
    return {
        "task": target.version.task,
        "version": target.version.number,
        "digest": DIGEST_PREFIX + target.version.digest,
        "alias": target.alias,
    }


def classified_body(answer: Classified) -> dict[str, Any]:
    return {
        "index": answer.index,
        "model": answer.asked,
        **version_body(answer.target),
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        "is_truncated": answer.is_truncated,
    }


def model_id(task: str, alias: str) -> str:
    return task if alias == DEFAULT_ALIAS else f"{task}@{alias}"


def model_body(target: Target, asked: str | None = None) -> dict[str, Any]:
    """A version as a model of OpenAI's interface, and what of its task a client needs to ask it and judge answers."""
    version, task = target.version, target.prompt.task
    about = {
        "kind": task.kind,
        "fields": list(task.template_fields),
        "labels": list(task.label_names),
        "target_field": task.target_field,
        "metric": task.metric,
    }
    return {
        "id": asked or model_id(version.task, target.alias or ""),
        "object": "model",
        "created": int(datetime.fromisoformat(version.at).timestamp()),
        "owned_by": version.actor or "promptstore",
        "promptstore": {**version_body(target), **about},
    }


def usage_body(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def server_sent(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


# How vocabularies write single bytes: SentencePiece's fallback, and GPT-2's alphabet of 256 printable characters.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
STREAM_END = b"data: [DONE]\n\n"


class TokenTexts:
    """Names tokens in log-probability reports."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def completion(self, tokens: Sequence[ChosenToken], offset: int = 0) -> dict[str, Any]:
        """The `logprobs` of a completion's choice. offset: characters of text before these tokens."""
        texts = [self._text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            # The space between template and answer is the first token's, but no part of the answer.
            offset += len(text if offset else text.lstrip(" "))
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
            "text_offset": offsets,
        }

    def chat(self, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        """The `logprobs` of a chat choice."""
        content = [
            {
                **self._chat_token(token.token_id, token.logprob),
                "top_logprobs": [self._chat_token(index, value) for index, value in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def length(self, tokens: Sequence[ChosenToken]) -> int:
        """Characters that `completion` counts for `tokens`: where the next one begins."""
        length = 0
        for token in tokens:
            text = self._text(token.token_id)
            length += len(text if length else text.lstrip(" "))
        return length

    def _alternatives(self, token: ChosenToken) -> dict[str, float | None]:
        """The likeliest tokens, and the chosen one, as in OpenAI's API; the likelier of two with equal texts."""
        found: dict[str, float | None] = {}
        for index, value in (*token.top, (token.token_id, token.logprob)):
            found.setdefault(self._text(index), value)
        return found

    def _chat_token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._text(token_id), "logprob": logprob, "bytes": list(self._bytes(token_id))}

    def _text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))

    def _bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; part of a character, maybe, which no text can show."""
        text = self._text(token_id)
        if "\ufffd" not in text:
            return text.encode()
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if all(character in _BYTES_OF for character in piece):
            return bytes(_BYTES_OF[character] for character in piece)
        return text.encode()


def label_completion_logprobs(text: str, by_text: Mapping[str, float]) -> dict[str, Any]:
    """The `logprobs` of a completion that is a label: one piece, the other labels its alternatives."""
    logs = {name: _log(value) for name, value in by_text.items()}
    return {"tokens": [text], "token_logprobs": [logs[text]], "top_logprobs": [logs], "text_offset": [0]}


def label_chat_logprobs(text: str, by_text: Mapping[str, float]) -> dict[str, Any]:
    """As `label_completion_logprobs`, for a chat."""
    ordered = sorted(by_text.items(), key=lambda pair: -pair[1])
    top = [_chat_token(name, _log(value)) for name, value in ordered]
    return {"content": [{**_chat_token(text, _log(by_text[text])), "top_logprobs": top}], "refusal": None}


def _chat_token(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _log(probability: float) -> float:
    """JSON has no minus infinity; a probability that rounds to 0 is reported as OpenAI does, as -9999."""
    return math.log(probability) if probability > 0 else -9999.0
