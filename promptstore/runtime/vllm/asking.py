"""One job as one or more requests to vLLM, and vLLM's answers as the job's events."""

import math
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.errors import NotServingError
from promptstore.lm.input_layer import InputLayer
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.job import (
    Failed,
    Finished,
    FinishReason,
    Generated,
    GenerateJob,
    Job,
    Scored,
    ScoreJob,
    not_finite,
)
from promptstore.runtime.row import PreparedPrompt
from promptstore.runtime.text_stream import TextStream
from promptstore.runtime.vllm.identity import too_long
from promptstore.runtime.vllm.server import ServedModel, VllmServer
from promptstore.runtime.vllm.wire import (
    LABELS_PER_REQUEST,
    Chunk,
    chunk_of,
    embeddings_text,
    generate_body,
    label_logprobs,
    score_body,
)


class EmbeddingsOnly:
    """What vLLM needs of a prompt: its embeddings, in the dtype that they are sent in."""

    def __init__(self, layer: InputLayer) -> None:
        self._dtype = layer.dtype

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        del prefix_ids
        return PreparedPrompt({"suffix" if is_after else "embeddings": prompt.to(self._dtype)})


class Asking:
    """Turns jobs into requests. For the loop and thread that own `server` and `bank`."""

    def __init__(self, server: VllmServer, layer: InputLayer, bank: PromptBank[Any]) -> None:
        self._server = server
        self._layer = layer
        self._bank = bank

    async def score(self, job: ScoreJob, served: ServedModel) -> None:
        """Delivers the log-probabilities of the labels. Raises as `VllmServer.lines`."""
        prepared, job.place = self._bank.find(job.digest)
        alone = [
            await self._score(job, self._given(job, member, served, answer_tokens=1, member=at))
            for at, member in enumerate(prepared.members)
        ]
        found = alone[0] if prepared.ensemble is None else prepared.ensemble.combine(alone).tolist()
        is_finite = all(map(math.isfinite, found))
        job.deliver(Scored(tuple(found), batch_rows=None) if is_finite else Failed(not_finite()))

    async def _score(self, job: ScoreJob, given: Mapping[str, Any]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(job.label_token_ids), LABELS_PER_REQUEST):
            labels = job.label_token_ids[start : start + LABELS_PER_REQUEST]
            found += label_logprobs(await self._server.complete({**given, **score_body(labels)}), labels)
        return found

    async def generate(self, job: GenerateJob, served: ServedModel) -> None:
        """Delivers tokens as vLLM sends them. Raises as `VllmServer.lines`; a job that is cancelled ends quietly."""
        sampling = job.sampling
        prepared, job.place = self._bank.find(job.digest)
        given = self._given(job, prepared, served, answer_tokens=sampling.max_tokens)
        answer = _Answer(job, TextStream(self._layer.tokenizer, sampling.stop), self._layer.end_ids)
        async with aclosing(self._server.lines({**given, **generate_body(sampling, self._layer.end_ids)})) as lines:
            async for line in lines:
                if (chunk := chunk_of(line, sampling.top_logprobs)) is None:
                    break
                if not answer.is_done:
                    answer.take(chunk)
                # One that vLLM ended itself is read to the end of the stream: the connection is used again.
                if answer.is_cut or (job.is_cancelled and not answer.is_done):
                    break
        if not answer.is_done and not job.is_cancelled:
            raise NotServingError(f"vLLM broke off after {answer.count} tokens; repeat the request in a moment")

    def _given(
        self, job: Job, prepared: PreparedPrompt, served: ServedModel, *, answer_tokens: int, member: int = 0
    ) -> dict[str, Any]:
        """The model, the input, and whose cache may serve it.

        vLLM's prefix cache goes by what a block's embeddings are; the salt keeps versions and their members apart even
        where a cache (vllm#42119: an external one) goes by their number alone; and inputs, where they come before the
        prompt.
        """
        prompt = prepared.tensors
        inputs = self._layer.embed(torch.tensor(job.input_ids))
        is_after = "suffix" in prompt
        given = torch.cat([inputs, prompt["suffix"]] if is_after else [prompt["embeddings"], inputs])
        if (refusal := too_long(served, len(given), answer_tokens)) is not None:
            raise refusal
        told_apart = [member, list(job.input_ids) if is_after else []]
        return {
            "model": served.id,
            "prompt_embeds": embeddings_text(given),
            # A digest: vLLM takes 128 characters at most, and not every one of them.
            "cache_salt": sha256_hex(canonical_json([job.digest, *told_apart])),
        }


class _Answer:
    """An answer that is being written: the same text, stops and ends as the own engine's.

    is_cut: it ended here, at a stop text, and vLLM would go on.
    """

    def __init__(self, job: GenerateJob, text: TextStream, end_ids: frozenset[int]) -> None:
        self._job = job
        self._text = text
        self._end_ids = end_ids
        self.count = 0
        self.is_done = False
        self.is_cut = False

    def take(self, chunk: Chunk) -> None:
        for token in chunk.tokens:
            if token.token_id in self._end_ids:
                self._finish("stop")
                return
            self.count += 1
            if token.logprob is not None and not math.isfinite(token.logprob):
                raise not_finite()
            self._job.deliver(Generated(token, self._text.push(token.token_id)))
            if self._text.is_stopped:
                self.is_cut = chunk.reason is None
                self._finish("stop")
                return
        if chunk.reason is not None:
            self._finish(chunk.reason)

    def _finish(self, reason: FinishReason) -> None:
        self.is_done = True
        self._job.deliver(Finished(self._text.finish(), reason))
