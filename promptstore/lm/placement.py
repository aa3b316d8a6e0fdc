"""Where a network's weights go, and in which form."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from promptstore.errors import InvalidInputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISED = ("int8", "int4")
BALANCED = "balanced"


@dataclass(frozen=True, slots=True)
class Placement:
    """device: where inputs go. dtype: what is computed in. loading: what transformers is told when it loads."""

    device: torch.device
    dtype: torch.dtype
    loading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_loaded_in_place(self) -> bool:
        """The weights are put on their devices as they are read, and must not be moved afterwards."""
        return bool(self.loading)


def choose_placement(device: str, dtype: str) -> Placement:
    """The placement that two settings ask for.

    device: `auto`, a device's name, or `balanced`: layers spread evenly over all GPUs, for models larger than one.
    dtype: `auto`, a dtype's name, or `int8` or `int4`: weights quantised as they are loaded, for models that would not
    fit otherwise; the prompt and what is computed stay in 16 bits or more.

    Raises:
        InvalidInputError: no such device or dtype, int4 on a CPU, or the library that quantises is not installed.
    """
    chosen = choose_device("auto" if device == BALANCED else device)
    if dtype in QUANTISED:
        computed = choose_dtype("auto", chosen)
        if dtype == "int4" and chosen.type == "cpu":
            # bitsandbytes 0.50 repacks int4 weights for CPUs into a form whose product silently has no gradient.
            raise InvalidInputError("dtype int4 gives prompts no gradient on a CPU; use int8, or a GPU")
        place = BALANCED if device == BALANCED else {"": str(chosen)}
        return Placement(chosen, computed, {"device_map": place, "quantization_config": _quantisation(dtype, computed)})
    loading = {"device_map": BALANCED} if device == BALANCED else {}
    return Placement(chosen, choose_dtype(dtype, chosen), loading)


def _quantisation(dtype: str, computed: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInputError(f"dtype {dtype} needs bitsandbytes; pip install 'promptstore[quantised]'")
    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)


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
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try auto, cpu or balanced"
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
        raise InvalidInputError(f"dtype {name!r} is unknown; use auto, {', '.join((*DTYPES, *QUANTISED))}")
    return DTYPES[name]


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)
