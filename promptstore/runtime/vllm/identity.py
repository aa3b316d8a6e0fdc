"""Whether a vLLM server runs the model that the gateway speaks for: prompts of one model mean nothing to another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from promptstore.errors import IncompatibleModelError, InvalidInputError, NotFoundError
from promptstore.lm.fingerprint import tensors_in_folder, weights_digest
from promptstore.lm.input_layer import InputLayer
from promptstore.runtime.vllm.server import ServedModel, VllmServer
from promptstore.runtime.vllm.wire import embeddings_text, label_logprobs, score_body

_PROBE = "The house stands by the river; who lives there?"
_PROBED_LABELS = 16
# Between an input as tokens and as embeddings there is rounding (0.1 in bfloat16); with another model's table, nats.
_TOLERANCE = 0.5


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """name: vLLM's id of the model, where the operator vouches that it is the gateway's; empty to find out."""

    layer: InputLayer
    name: str = ""

    async def find(self, server: VllmServer, models: Sequence[ServedModel]) -> ServedModel:
        """The entry of `/v1/models` that is the gateway's model, proved as far as it can be from here.

        A folder that this machine sees too must hold the same weights; a hub's model must have the same name. Then one
        input is asked for twice, as tokens and as embeddings: the two agree only if the tables are the same.

        Raises:
            IncompatibleModelError: it serves another model, or without prompt embeddings.
            NotServingError: it cannot be asked.
        """
        served = self._named(server.url, models)
        await self._compare(server, served)
        return served

    def _named(self, url: str, models: Sequence[ServedModel]) -> ServedModel:
        if self.name:
            found = [model for model in models if model.id == self.name]
        else:
            found = [model for model in models if not model.is_adapter and self._is_ours(model)]
        if found:
            return found[0]
        names = ", ".join(f"{model.id} ({model.root})" for model in models) or "nothing"
        wanted = self.name or self.layer.fingerprint.name
        raise IncompatibleModelError(
            f"vLLM at {url} serves {names}, the gateway was started for {wanted}; start vLLM with that model, or name "
            "its entry with --vllm-model if you know that it is the same under another name"
        )

    def _is_ours(self, model: ServedModel) -> bool:
        if Path(model.root).is_dir():
            try:
                return weights_digest(tensors_in_folder(Path(model.root))) == self.layer.fingerprint.weights_digest
            except NotFoundError:
                return False
        return model.root == self.layer.fingerprint.name

    async def _compare(self, server: VllmServer, served: ServedModel) -> None:
        ids = [int(index) for index in self.layer.tokenizer(_PROBE)["input_ids"]]
        labels = sorted(set(ids))[:_PROBED_LABELS]
        embedded = self.layer.embed(torch.tensor(ids))
        as_embeddings = {"prompt_embeds": embeddings_text(embedded)}
        try:
            first, second = [
                label_logprobs(await server.complete({"model": served.id, **given, **score_body(labels)}), labels)
                for given in ({"prompt": ids}, as_embeddings)
            ]
        except InvalidInputError as error:
            raise IncompatibleModelError(f"{error}; start vLLM with --enable-prompt-embeds") from error
        if not all(abs(a - b) <= _TOLERANCE for a, b in zip(first, second, strict=True)):
            raise IncompatibleModelError(
                f"vLLM at {server.url} runs {served.id} with another embedding table than "
                f"{self.layer.fingerprint.name}: the same input as tokens and as embeddings gives other answers"
            )


def too_long(served: ServedModel, positions: int, answer_tokens: int) -> InvalidInputError | None:
    """Why an input does not fit into the positions that vLLM was started with; `None` if it does."""
    if served.max_length is None or positions + answer_tokens <= served.max_length:
        return None
    return InvalidInputError(
        f"the input takes {positions} positions and its answer up to {answer_tokens}, vLLM was started with "
        f"--max-model-len {served.max_length}; send less, or start vLLM with more"
    )
