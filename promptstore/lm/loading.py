"""A model folder becomes a frozen model."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.fingerprint import tensors_in_folder, tokenizer_digest, weights_digest
from promptstore.lm.frozen import FrozenModel, freeze
from promptstore.lm.model_files import ModelFiles
from promptstore.lm.progress import bars_on_terminals_only

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(files: ModelFiles, *, device: str = "auto", dtype: str = "auto") -> FrozenModel:
    """The model in `files.folder`, frozen. Raises as `promptstore.lm.source.open_model`."""
    chosen_device = choose_device(device)
    digest = weights_digest(tensors_in_folder(files.folder))
    network = _load_network(files, choose_dtype(dtype, chosen_device)).to(chosen_device)
    tokenizer = _load_tokenizer(files)
    fingerprint = BaseModelFingerprint(
        architecture=type(network).__name__,
        hidden_size=int(network.get_input_embeddings().weight.shape[1]),
        weights_digest=digest,
        tokenizer_digest=tokenizer_digest(tokenizer),
        name=files.name,
        revision=files.revision,
    )
    return freeze(network, tokenizer, fingerprint)


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, or the CPU.

    Raises:
        InvalidInputError: this machine or this build of torch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try auto or cpu"
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; `auto` is bfloat16 where `device` computes it natively, else float32.

    Raises:
        InvalidInputError: no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise InvalidInputError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def _load_network(files: ModelFiles, dtype: torch.dtype) -> Any:
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
        _require_head(config)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with bars_on_terminals_only():
            network, report = auto.from_pretrained(
                files.folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except (ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{files.name} is no causal or encoder-decoder language model that transformers knows: {_first_line(error)}"
        ) from error
    except OSError as error:
        raise CorruptError(f"{files.name} cannot be loaded from {files.folder}: {_first_line(error)}") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "mismatched" not in str(error):
            raise
        raise CorruptError(
            f"{files.name}: config.json and weights have different shapes; fetch the model again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InvalidInputError(
            f"{files.name} has no weights for {', '.join(missing[:3])} of {type(network).__name__}: it was stored "
            "without its language-model head, or for another architecture"
        )
    return network


def _require_head(config: Any) -> None:
    """transformers would load a masked language model as a causal one, which it never was."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()}
    stored = config.architectures or ()
    if stored and not known.intersection(stored):
        raise ValueError(f"it was stored as {', '.join(stored)}")


def _load_tokenizer(files: ModelFiles) -> Any:
    try:
        return AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{files.name} has no tokenizer that transformers can read: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
