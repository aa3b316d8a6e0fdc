"""The input end of a model that another server runs: its embedding table, tokenizer and identity, nothing behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.end_tokens import end_token_ids
from promptstore.lm.fingerprint import StoredTensor, tensors_in_folder, tokenizer_digest, weights_digest
from promptstore.lm.loading import load_tokenizer, require_head
from promptstore.lm.model_files import ModelFiles
from promptstore.lm.placement import DTYPES

_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class InputLayer:
    """A decoder-only model's first layer, on the CPU.

    module: the network's own embedding module, so that what it does to the table's rows (Gemma scales them) is done.
    end_ids: tokens that end an answer, by the tokenizer and by the model's generation settings.
    """

    module: Any
    tokenizer: Any
    fingerprint: BaseModelFingerprint
    max_length: int | None
    end_ids: frozenset[int]

    @property
    def is_encoder_decoder(self) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.module.weight.dtype
        return found

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as the whole network's input layer gives them. ids: [T]. Returns [T, H]."""
        embedded: Tensor = self.module(ids)
        return embedded


def load_input_layer(files: ModelFiles, *, dtype: str = "auto") -> InputLayer:
    """Reads one tensor and the tokenizer of the model in `files.folder`. Takes about a second, and the table's bytes.

    dtype: what prompts are sent in; `auto` is the stored one, which is also what vLLM computes in unless it is told
    otherwise. Ask for float32 where it runs in float32: prompts are, and bfloat16 would round them.

    Raises:
        InvalidInputError: an encoder-decoder, no language model, or a dtype that no weights are computed in.
        NotFoundError: the folder holds no weights. CorruptError: it does not hold the table its config describes.
    """
    network = _empty_network(files)
    module = network.get_input_embeddings()
    tensors = list(tensors_in_folder(files.folder))
    table = _table(files, tensors, _names(network, module))
    if tuple(table.shape) != tuple(module.weight.shape):
        raise CorruptError(
            f"{files.name}: its embedding table is {list(table.shape)}, its config.json says "
            f"{list(module.weight.shape)}; fetch the model again"
        )
    module.weight = torch.nn.Parameter(table.to(_chosen(dtype, table.dtype)), requires_grad=False)
    tokenizer = load_tokenizer(files)
    fingerprint = BaseModelFingerprint(
        architecture=type(network).__name__,
        hidden_size=int(table.shape[1]),
        weights_digest=weights_digest(tensors),
        tokenizer_digest=tokenizer_digest(tokenizer),
        name=files.name,
        revision=files.revision,
    )
    settings = _generation_settings(files, network)
    length = getattr(network.config, "max_position_embeddings", None)
    return InputLayer(module, tokenizer, fingerprint, length, end_token_ids(tokenizer, settings))


def _empty_network(files: ModelFiles) -> Any:
    """The network of the model's config, its buffers real and its parameters without storage."""
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
        require_head(config)
        if config.is_encoder_decoder:
            raise InvalidInputError(
                f"{files.name} is an encoder-decoder: its prompts enter an encoder that vLLM does not have; "
                "serve it without --engine vllm"
            )
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{files.name} is no causal language model that transformers knows: {error}") from error


def _names(network: Any, module: Any) -> Iterator[str]:
    """What the table may be called in the files: checkpoints come with and without the base model's prefix."""
    name = next(name for name, found in network.named_modules() if found is module) + ".weight"
    prefix = f"{network.base_model_prefix}."
    yield name
    yield name.removeprefix(prefix) if name.startswith(prefix) else prefix + name


def _table(files: ModelFiles, tensors: list[StoredTensor], names: Iterator[str]) -> Tensor:
    by_name = {tensor.name: tensor for tensor in tensors}
    tried = list(names)
    found = next((by_name[name] for name in tried if name in by_name), None)
    if found is None or found.dtype not in _STORED:
        what = "no tensor" if found is None else f"{found.dtype} numbers in"
        raise CorruptError(f"{files.name} has {what} {tried[0]}, its embedding table; fetch the model unquantised")
    data = bytearray(found.read(0, found.size_bytes))
    return torch.frombuffer(data, dtype=_STORED[found.dtype]).reshape(found.shape)


def _chosen(dtype: str, stored: torch.dtype) -> torch.dtype:
    if dtype == "auto":
        return stored
    if dtype not in DTYPES:
        raise InvalidInputError(f"prompts cannot be sent in dtype {dtype}; it is auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _generation_settings(files: ModelFiles, network: Any) -> Any:
    if (files.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    return network.generation_config
