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
from promptstore.lm.placement import Placement, choose_placement
from promptstore.lm.progress import bars_on_terminals_only


def load_model(files: ModelFiles, *, device: str = "auto", dtype: str = "auto") -> FrozenModel:
    """The model in `files.folder`, frozen. Raises as `promptstore.lm.source.open_model`."""
    placement = choose_placement(device, dtype)
    digest = weights_digest(tensors_in_folder(files.folder))
    network = _load_network(files, placement)
    if not placement.is_loaded_in_place:
        network.to(placement.device)
    tokenizer = load_tokenizer(files)
    fingerprint = BaseModelFingerprint(
        architecture=type(network).__name__,
        hidden_size=int(network.get_input_embeddings().weight.shape[1]),
        weights_digest=digest,
        tokenizer_digest=tokenizer_digest(tokenizer),
        name=files.name,
        revision=files.revision,
    )
    return freeze(network, tokenizer, fingerprint)


def _load_network(files: ModelFiles, placement: Placement) -> Any:
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
        require_head(config)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with bars_on_terminals_only():
            network, report = auto.from_pretrained(
                files.folder,
                config=config,
                dtype=placement.dtype,
                output_loading_info=True,
                local_files_only=True,
                **placement.loading,
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


def require_head(config: Any) -> None:
    """transformers would load a masked language model as a causal one, which it never was."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()}
    stored = config.architectures or ()
    if stored and not known.intersection(stored):
        raise ValueError(f"it was stored as {', '.join(stored)}")


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer in `files.folder`.

    Raises:
        InvalidInputError: there is none that transformers reads.
    """
    try:
        return AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{files.name} has no tokenizer that transformers can read: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
