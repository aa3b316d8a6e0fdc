"""A soft prompt as bytes: safetensors with one float32 tensor `prompt_embeddings`. FORMAT.md, section 3.

The tensor is [P, H]; of an ensemble [K, P, H], and the header's metadata says how its answers become one.
"""

import json
import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promptstore.core.ensemble import Ensemble
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import MAX_VIRTUAL_TOKENS, SoftPrompt, check_embeddings
from promptstore.errors import CorruptError, InvalidInputError

TENSOR_NAME = "prompt_embeddings"
_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 256
_PREFIX = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class PayloadShape:
    """What a payload says before its numbers. tokens: P, of each member where it holds an ensemble."""

    tokens: int
    hidden: int
    ensemble: Ensemble | None = None

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Of the tensor: [P, H] or [K, P, H]."""
        alone = (self.tokens, self.hidden)
        return alone if self.ensemble is None else (self.ensemble.members, *alone)

    @property
    def head(self) -> bytes:
        """Length prefix and JSON header, padded with spaces to a multiple of 8 as safetensors does."""
        metadata = {} if self.ensemble is None else {_METADATA: {"combination": self.ensemble.combination}}
        end = 4 * math.prod(self.dimensions)
        tensor = {"dtype": "F32", "shape": list(self.dimensions), "data_offsets": [0, end]}
        header = json.dumps({**metadata, TENSOR_NAME: tensor}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return _PREFIX.pack(len(header)) + header


def encode_payload(prompt: SoftPrompt) -> bytes:
    """The one file that holds `prompt`: equal prompts give equal bytes on every machine and version."""
    shape = PayloadShape(prompt.num_virtual_tokens, prompt.hidden_size, prompt.ensemble)
    return shape.head + prompt.embeddings.astype("<f4", copy=False).tobytes()


def decode_payload(data: bytes, fingerprint: BaseModelFingerprint) -> SoftPrompt:
    """The prompt in `data`, fitted to the model of `fingerprint`. Sizes are checked before anything is parsed.

    Raises:
        CorruptError: not exactly what `encode_payload` writes for some prompt of that model's width.
    """
    shape = payload_shape(data)
    try:
        return SoftPrompt(_embeddings(data, shape), fingerprint, shape.ensemble)
    except InvalidInputError as error:
        raise CorruptError(f"payload: {error}") from error


def check_payload(data: bytes) -> PayloadShape:
    """The shape of a payload for some model. Raises CorruptError: it is not one."""
    shape = payload_shape(data)
    try:
        check_embeddings(_embeddings(data, shape), shape.hidden, shape.ensemble)
    except InvalidInputError as error:
        raise CorruptError(f"payload: {error}") from error
    return shape


def _embeddings(data: bytes, shape: PayloadShape) -> npt.NDArray[np.float32]:
    numbers = np.frombuffer(data, dtype="<f4", offset=len(shape.head))
    return numbers.reshape(-1, shape.hidden).astype(np.float32, copy=False)


def payload_shape(data: bytes) -> PayloadShape:
    """What a payload says, if its head and length are exactly right; its numbers are not looked at.

    Raises:
        CorruptError: they are not.
    """
    if len(data) < _PREFIX.size:
        raise CorruptError(f"payload has {len(data)} bytes, too few for a safetensors file")
    (header_bytes,) = _PREFIX.unpack_from(data)
    if header_bytes > _MAX_HEADER_BYTES or _PREFIX.size + header_bytes > len(data):
        raise CorruptError(f"payload says its header has {header_bytes} bytes, expected at most {_MAX_HEADER_BYTES}")
    shape = _shape(data[_PREFIX.size : _PREFIX.size + header_bytes])
    named = f"{list(shape.dimensions)}"
    if not data.startswith(shape.head):
        raise CorruptError(f"payload's header is not that of one float32 tensor {TENSOR_NAME!r} {named}")
    expected = len(shape.head) + 4 * math.prod(shape.dimensions)
    if len(data) != expected:
        raise CorruptError(f"payload has {len(data)} bytes, expected {expected} for {named}")
    return shape


def _shape(header: bytes) -> PayloadShape:
    try:
        entries = json.loads(header.decode("ascii"))
        *stacked, tokens, hidden = (int(each) for each in entries[TENSOR_NAME]["shape"])
        ensemble = None
        if stacked:
            (members,) = stacked
            ensemble = Ensemble(members, entries[_METADATA]["combination"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"payload's header does not describe one tensor {TENSOR_NAME!r} [P, H], or [K, P, H] and a combination"
        ) from error
    except InvalidInputError as error:
        raise CorruptError(f"payload: {error}") from error
    if not 1 <= tokens <= MAX_VIRTUAL_TOKENS or not 1 <= hidden < 2**20:
        raise CorruptError(f"payload's tensor is [{tokens}, {hidden}], expected 1 to {MAX_VIRTUAL_TOKENS} rows")
    return PayloadShape(tokens, hidden, ensemble)
