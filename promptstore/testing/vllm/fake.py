"""A small HTTP server that speaks as much of vLLM's API as the gateway uses, on a tiny model, with faults on demand."""

import base64
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from torch import Tensor

from promptstore.lm.frozen import FrozenModel, final_hidden
from promptstore.loopback import free_port
from promptstore.runtime.sampling import Sampler, Sampling
from promptstore.testing.listening import listening

BLOCK = 16
MAX_LABELS = 128
SALT = re.compile(r"[^@/\\\x00]{0,128}")
END_ID = 1


@dataclass(slots=True)
class Faults:
    """What goes wrong from now on. status: of every answer. silence_s: before every completion.

    cut_after: tokens after which a stream's connection is closed. fail_after: tokens after which it reports an error.
    """

    status: int | None = None
    silence_s: float = 0.0
    cut_after: int | None = None
    fail_after: int | None = None


@dataclass(slots=True)
class VllmFake:
    """Greedy and seeded answers of `model`, one request at a time.

    Its prefix cache is a bad one on purpose: the first sixteen positions are remembered by the salt alone, so a gateway
    whose salt does not tell versions apart gets one version's answer for another.
    bodies: of the completions asked for, newest last.
    """

    model: FrozenModel
    root: str
    max_length: int = 512
    takes_embeddings: bool = True
    api_key: str | None = None
    faults: Faults = field(default_factory=Faults)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, always on the same port."""
        self._running.enter_context(listening(self._app(), port=self.port))

    def stop(self) -> None:
        self._running.close()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Any:
            if self.faults.status is not None:
                return _error(self.faults.status, "injected")
            if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
                return _error(401, "Unauthorized")
            return await call_next(request)

        @app.get("/health")
        def health() -> None:
            return None

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"object": "list", "data": [self._card()]}

        @app.post("/v1/completions")
        def complete(body: dict[str, Any]) -> Any:
            return self._complete(body)

        return app

    def _card(self) -> dict[str, Any]:
        return {"id": "served", "object": "model", "root": self.root, "parent": None, "max_model_len": self.max_length}

    def _complete(self, body: dict[str, Any]) -> Any:
        self.bodies.append(body)
        time.sleep(self.faults.silence_s)
        if body["model"] != "served":
            return _error(404, f"The model `{body['model']}` does not exist.")
        if "prompt_embeds" in body and not self.takes_embeddings:
            return _error(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        if not SALT.fullmatch(body.get("cache_salt", "")):
            return _error(400, "Parameter 'cache_salt' must be at most 128 characters and must not contain '@' or '/'.")
        if len(body.get("logprob_token_ids", ())) > MAX_LABELS:
            return _error(400, f"at most {MAX_LABELS} logprob_token_ids")
        rows = self._rows(body)
        if len(rows) + body["max_tokens"] > self.max_length:
            return _error(400, f"This model's maximum context length is {self.max_length} tokens.")
        choices = self._choices(rows, body)
        if body.get("stream"):
            return StreamingResponse(self._events(choices), media_type="text/event-stream")
        return {"object": "text_completion", "choices": [next(choices)]}

    def _rows(self, body: dict[str, Any]) -> Tensor:
        """The input's embeddings, [S, H], the first block as the cache has it."""
        if "prompt_embeds" in body:
            data = io.BytesIO(base64.b64decode(body["prompt_embeds"]))
            rows: Tensor = torch.load(data, weights_only=True).to(self.model.dtype)
        else:
            rows = self.model.embed(torch.tensor([body["prompt"]]))[0]
        if len(rows) < BLOCK:
            return rows
        with self._lock:
            first = self._cache.setdefault(body.get("cache_salt", ""), rows[:BLOCK])
        return torch.cat([first, rows[BLOCK:]])

    def _choices(self, rows: Tensor, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One choice per token, as a stream has them."""
        top = body.get("logprobs")
        limit = body["max_tokens"]
        sampling = Sampling(limit, body["temperature"], body["top_p"], seed=body.get("seed"), top_logprobs=top)
        sampler = Sampler(sampling)
        ends = {END_ID, *body.get("stop_token_ids", ())}
        for count in range(1, limit + 1):
            logits = self._logits(rows)
            token = sampler.choose(logits).token_id
            reason = "stop" if token in ends else "length" if count == limit else None
            logprobs = None if top is None else _logprobs(logits, token, top, body.get("logprob_token_ids"))
            yield {"index": 0, "text": "", "token_ids": [token], "logprobs": logprobs, "finish_reason": reason}
            if reason is not None:
                return
            rows = torch.cat([rows, self.model.embed(torch.tensor([[token]]))[0]])

    @torch.inference_mode()
    def _logits(self, rows: Tensor) -> Tensor:
        mask = torch.ones((1, len(rows)), dtype=torch.long)
        positions = torch.arange(len(rows))[None]
        hidden = final_hidden(self.model, inputs_embeds=rows[None], attention_mask=mask, position_ids=positions)
        return self.model.head.logits(hidden[:, -1])[0]

    def _events(self, choices: Iterator[dict[str, Any]]) -> Iterator[str]:
        for count, choice in enumerate(choices):
            if count == self.faults.cut_after:
                raise ConnectionAbortedError("injected")
            if count == self.faults.fail_after:
                yield f"data: {json.dumps({'error': {'message': 'injected', 'code': 500}})}\n\n"
                break
            yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"


def _logprobs(logits: Tensor, token: int, top: int, labels: Sequence[int] | None) -> dict[str, Any]:
    values = logits.log_softmax(-1)
    named = list(labels) if labels else values.topk(top).indices.tolist()
    listed = {f"token_id:{index}": float(values[index]) for index in dict.fromkeys([token, *named])}
    return {"tokens": [f"token_id:{token}"], "token_logprobs": [float(values[token])], "top_logprobs": [listed]}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "error", "code": status}}, status)
