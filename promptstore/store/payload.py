"""A soft prompt as bytes: safetensors with one float32 tensor `prompt_embeddings` [P, H]. FORMAT.md, section 3."""

import json
import struct

import numpy as np
import numpy.typing as npt

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import MAX_VIRTUAL_TOKENS, SoftPrompt, check_embeddings
from promptstore.errors import CorruptError, InvalidInputError

TENSOR_NAME = "prompt_embeddings"
_MAX_HEADER_BYTES = 256
_PREFIX = struct.Struct("<Q")


def encode_payload(prompt: SoftPrompt) -> bytes:
    """The one file that holds `prompt`: equal embeddings give equal bytes on every machine and version."""
    tokens, hidden = prompt.embeddings.shape
    return _head(tokens, hidden) + prompt.embeddings.astype("<f4", copy=False).tobytes()


def decode_payload(data: bytes, fingerprint: BaseModelFingerprint) -> SoftPrompt:
    """The prompt in `data`, fitted to the model of `fingerprint`. Sizes are checked before anything is parsed.

    Raises:
        CorruptError: not exactly what `encode_payload` writes for some prompt of that model's width.
    """
    try:
        return SoftPrompt(_embeddings(data), fingerprint)
    except InvalidInputError as error:
        raise CorruptError(f"payload: {error}") from error


def check_payload(data: bytes) -> tuple[int, int]:
    """(P, H) of a payload for some model. Raises CorruptError: it is not one."""
    embeddings = _embeddings(data)
    tokens, hidden = embeddings.shape
    try:
        check_embeddings(embeddings, hidden)
    except InvalidInputError as error:
        raise CorruptError(f"payload: {error}") from error
    return tokens, hidden


def _embeddings(data: bytes) -> npt.NDArray[np.float32]:
    tokens, hidden = payload_shape(data)
    numbers = np.frombuffer(data, dtype="<f4", offset=len(_head(tokens, hidden)))
    return numbers.reshape(tokens, hidden).astype(np.float32, copy=False)


def payload_shape(data: bytes) -> tuple[int, int]:
    """(P, H) of a payload whose head and length are exactly right; its numbers are not looked at.

    Raises:
        CorruptError: they are not.
    """
    if len(data) < _PREFIX.size:
        raise CorruptError(f"payload has {len(data)} bytes, too few for a safetensors file")
    (header_bytes,) = _PREFIX.unpack_from(data)
    if header_bytes > _MAX_HEADER_BYTES or _PREFIX.size + header_bytes > len(data):
        raise CorruptError(f"payload says its header has {header_bytes} bytes, expected at most {_MAX_HEADER_BYTES}")
    tokens, hidden = _shape(data[_PREFIX.size : _PREFIX.size + header_bytes])
    head = _head(tokens, hidden)
    if not data.startswith(head):
        raise CorruptError(f"payload's header is not that of one float32 tensor {TENSOR_NAME!r} [{tokens}, {hidden}]")
    expected = len(head) + 4 * tokens * hidden
    if len(data) != expected:
        raise CorruptError(f"payload has {len(data)} bytes, expected {expected} for [{tokens}, {hidden}]")
    return tokens, hidden


def _shape(header: bytes) -> tuple[int, int]:
    try:
        shape = json.loads(header.decode("ascii"))[TENSOR_NAME]["shape"]
        tokens, hidden = (int(each) for each in shape)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"payload's header does not describe one tensor {TENSOR_NAME!r} [P, H]") from error
    if not 1 <= tokens <= MAX_VIRTUAL_TOKENS or not 1 <= hidden < 2**20:
        raise CorruptError(f"payload's tensor is [{tokens}, {hidden}], expected 1 to {MAX_VIRTUAL_TOKENS} rows")
    return tokens, hidden


def _head(tokens: int, hidden: int) -> bytes:
    """Length prefix and JSON header, padded with spaces to a multiple of 8 as safetensors does."""
    size = 4 * tokens * hidden
    header = f'{{"{TENSOR_NAME}":{{"dtype":"F32","shape":[{tokens},{hidden}],"data_offsets":[0,{size}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    return _PREFIX.pack(len(header)) + header
