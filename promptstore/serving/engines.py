"""What answers: the model of this process, or a vLLM server that the same API stands in front of."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from promptstore.errors import InvalidInputError
from promptstore.lm.answering import for_answers
from promptstore.lm.cores import Cores
from promptstore.lm.described_model import DescribedModel
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.input_layer import InputLayer, load_input_layer
from promptstore.lm.source import find_model, open_model
from promptstore.runtime.answerer import Answerer
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.cached import PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.engine import Engine
from promptstore.runtime.scheduler import Scheduler
from promptstore.runtime.spill import DiskSpill
from promptstore.runtime.vllm.answerer import VllmAnswerer
from promptstore.runtime.vllm.asking import Asking, EmbeddingsOnly
from promptstore.runtime.vllm.identity import ModelCheck
from promptstore.runtime.vllm.server import VllmServer
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.options import ServerOptions
from promptstore.settings import Settings

logger = logging.getLogger(__name__)

# Of a CPU's cores: two batches side by side on one core each are answered sooner than one after the other on two.
MOST_PARALLEL = 4


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """A model, the prompts that are ready for it, and what takes jobs. decoding: how prompts are used, for people."""

    model: DescribedModel
    bank: PromptBank[LoadedPrompt]
    answerer: Answerer
    decoding: str


def open_engine(settings: Settings, options: ServerOptions) -> ServedEngine:
    """The engine that `options` asks for, not started yet. Raises as `promptstore.lm.source.open_model`."""
    if options.engine == "vllm":
        files = find_model(settings.model, cache_dir=settings.cache_dir)
        key = settings.vllm_api_key.get_secret_value() if settings.vllm_api_key else None
        return vllm_engine(load_input_layer(files, dtype=settings.dtype), options, api_key=key)
    model = open_model(settings.model, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)
    model = for_answers(model, folder=settings.cache_dir / "compiled", is_compiled=options.compile_network)
    return own_engine(model, options, spill_folder=settings.cache_dir / "prepared")


def own_engine(model: FrozenModel, options: ServerOptions, *, spill_folder: Path | None = None) -> ServedEngine:
    """Answers with `model`, in batches of any mix.

    Raises:
        InvalidInputError: the model is compiled and does not answer right in the packed passes that were compiled.
    """
    decoding, reason = choose_decoding(model)
    if model.compiled is not None and not isinstance(decoding, PackedDecoding):
        raise InvalidInputError(f"the compiled network gives other answers; leave --compile out: {reason}")
    count = options.parallel_batches or _most_parallel(model)
    logger.info("%s: %s; batches at a time: %d", model.fingerprint.architecture, reason, count)
    spill = None
    if spill_folder is not None and options.spill_bytes > 0:
        spill = DiskSpill(spill_folder, model, decoding, budget_bytes=options.spill_bytes)
    bank: PromptBank[LoadedPrompt] = PromptBank(model, decoding, budgets=options.budgets, spill=spill)
    engines = [Engine(model, bank, decoding)]
    if count > 1:  # the model itself is left to the bank
        twins = [model.twin() for _ in range(count)]
        engines = [Engine(twin, bank, choose_decoding(twin)[0]) for twin in twins]
    return ServedEngine(model, bank, Scheduler(engines, options.scheduler, cores=Cores()), reason)


def _most_parallel(model: FrozenModel) -> int:
    is_plain_cpu = model.device.type == "cpu" and getattr(model.network, "hf_quantizer", None) is None
    return min(MOST_PARALLEL, torch.get_num_threads()) if is_plain_cpu else 1


def vllm_engine(layer: InputLayer, options: ServerOptions, *, api_key: str | None = None) -> ServedEngine:
    """Answers through the vLLM server at `options.vllm_url`, which must run the model that `layer` is of."""
    bank: PromptBank[LoadedPrompt] = PromptBank(layer, EmbeddingsOnly(layer), budgets=options.budgets)
    server = VllmServer(options.vllm_url, api_key=api_key, timeout_s=options.vllm_timeout_s)
    check = ModelCheck(layer, options.vllm_model)
    answerer = VllmAnswerer(server, check, Asking(server, layer, bank), options.vllm)
    return ServedEngine(layer, bank, answerer, f"prompts go to vLLM at {server.url} as input embeddings")
