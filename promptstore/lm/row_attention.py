"""Attention of packed rows on a CPU in one call a layer, by a kernel that is compiled on this machine.

torch's own takes a row at a time, for each has other keys, and costs more to call than to compute: of 32 short inputs
read with SmolLM2 a fifth of the time, of a step of text with one query a row as much.
"""

import ctypes
import hashlib
import logging
import math
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptstore.lm.compilers import cpp_compilers, own_place

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILE_S = 120.0
MOST_WIDTH = 256
_FLAGS = (
    *("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"),
    # Sums in any order; infinities and NaN keep their meaning.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)
# By torch's name of what the processor can do, so that what was compiled runs on every machine of that name.
_CAPABILITIES = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
_FUNCTIONS = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}

DTYPES = frozenset(_FUNCTIONS)


class _Call(ctypes.Structure):
    """Strides are in numbers.

    table: int64 [7, rows]: addresses of known keys and of values, strides of their heads, C, and both edges.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("threads", "rows", "heads", "key_heads", "width", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output")),
        *((name, ctypes.c_int64) for name in ("query_token", "query_head", "key_token", "key_head")),
        *((name, ctypes.c_int64) for name in ("value_token", "value_head")),
        ("table", ctypes.c_void_p),
    )


class RowAttention:
    """The compiled kernel. For any thread; it computes on as many as torch would there, and holds no lock of Python."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {dtype: getattr(library, name) for dtype, name in _FUNCTIONS.items()}

    def over(self, known: Sequence[tuple[Tensor, Tensor]], edges: Sequence[tuple[int, int]]) -> "AttentionOver":
        """For the layers of one pass.

        known: keys and values of each row, [L, K, C, D]. edges: where each begins and ends among the new tokens.
        """
        return AttentionOver(self._functions, known, edges)


class AttentionOver:
    """What `RowAttention.over` gives: one pass's attention."""

    def __init__(
        self,
        functions: Mapping[torch.dtype, Any],
        known: Sequence[tuple[Tensor, Tensor]],
        edges: Sequence[tuple[int, int]],
    ) -> None:
        self._functions = functions
        self._known = known  # its memory is read at every layer
        sides = list(zip(*known, strict=True))
        self._kinds = {(each.shape[1], each.shape[3], each.dtype, each.device.type) for side in sides for each in side}
        self._layers = min(each.shape[0] for side in sides for each in side)
        self._is_dense = all(each.stride()[2:] == (each.shape[3], 1) for side in sides for each in side)
        self._layer_bytes = np.array([[each.stride(0) * each.element_size() for each in side] for side in sides])
        self._table = np.array(
            [
                *([each.data_ptr() for each in side] for side in sides),
                *([each.stride(1) for each in side] for side in sides),
                [keys.shape[2] for keys, _ in known],
                *zip(*edges, strict=True),
            ],
            dtype=np.int64,
        )

    def takes(self, query: Tensor, key: Tensor, value: Tensor, layer: int, window: int | None) -> bool:
        """Whether it computes such a layer; any other is torch's, which also says what does not fit together.

        A network may keep something else than what it attends to (latents, fewer heads, fewer layers).
        """
        kinds = {(each.shape[1], each.shape[3], each.dtype, each.device.type) for each in (key, value)}
        return (
            self._is_dense
            and kinds == self._kinds
            and len(kinds) == 1
            and layer < self._layers
            and query.dtype == key.dtype
            and query.dtype in self._functions
            and query.shape[3] == key.shape[3] <= MOST_WIDTH
            and query.shape[1] % key.shape[1] == 0
            and query.device.type == "cpu"
            and all(each.stride(3) == 1 for each in (query, key, value))
            and (window is None or window > 0)
        )

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, *, scale: float | None, window: int | None
    ) -> Tensor:
        """Each new token over what its row knows, itself and the new ones before it; as `Attended.attend`.

        Raises:
            MemoryError: there is none for a row's keys and values in float32.
        """
        _, heads, tokens, width = query.shape
        output = query.new_empty((1, tokens, heads, width))
        table = self._table.copy()
        table[:2] += layer * self._layer_bytes
        call = _Call(
            *(torch.get_num_threads(), table.shape[1], heads, key.shape[1], width, window or 0),
            1 / math.sqrt(width) if scale is None else scale,
            *(each.data_ptr() for each in (query, key, value, output)),
            *(stride for each in (query, key, value) for stride in (each.stride(2), each.stride(1))),
            table.ctypes.data,
        )
        if self._functions[query.dtype](ctypes.byref(call)) != 0:
            raise MemoryError("attention found no memory for the keys and values of a row")
        return output


def load_row_attention(folder: Path) -> RowAttention | None:
    """The kernel, compiled unless an earlier start left it in `folder`, which is closed to other users.

    `None` where there is no C++ compiler, or, with a warning, where it fails: torch's attention answers the same.
    """
    flags = [*_FLAGS, *_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())]
    said = " ".join([platform.machine(), *flags]).encode() + SOURCE.read_bytes()
    kept = folder / f"{hashlib.sha256(said).hexdigest()[:32]}.so"
    compilers = cpp_compilers()
    if not (kept.is_file() or compilers):
        logger.info("no C++ compiler (g++, say), so attention is left to torch, which takes longer")
        return None
    reasons: list[object] = []
    for compiler in (None, *compilers):  # first what is there
        try:
            own_place(kept)
            if compiler is not None:
                _compile([compiler, *flags], kept)
            return RowAttention(ctypes.CDLL(str(kept)))
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            stderr = getattr(error, "stderr", None)
            reasons.append(stderr.strip() if isinstance(stderr, str) and stderr.strip() else error)
    logger.warning("attention is left to torch, which takes longer; its kernel did not compile: %s", reasons[-1])
    return None


def _compile(command: Sequence[str], kept: Path) -> None:
    """Complete under its name, or not there at all."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".compiling-") as name:
        made = Path(name) / kept.name
        subprocess.run(
            [*command, str(SOURCE), "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_S,
        )
        made.replace(kept)
