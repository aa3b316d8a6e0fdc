"""Which model this is, from the bytes of its weights on disk and the behaviour of its tokenizer.

Neither the dtype nor the device that a model is loaded with takes part: what is hashed is what was stored.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    import torch

SAMPLED_BLOCKS = 16
BLOCK_BYTES = 4096

# Text on which tokenizers of one vocabulary still differ: case, digits, spaces, line ends, scripts, emoji, markup.
PROBE = (
    "The quick brown fox, isn't it? HELLO World_42 -- 3.14159, 1,000,000!\n\n\tdef f(x):  return x**2\r\n"
    "naïve Ünïcödé coöperation; ﬁﬂ ½ ™ e\u0301  日本語のテキスト 한국어 العربية हिन्दी русский "
    "👩\u200d👩\u200d👧 🇩🇪 <s></s> <|endoftext|> [MASK]"
)

# By torch's names, so that the digest of stored weights is computed without torch.
STORED_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor where it lies. dtype: safetensors' name for it; read: (offset, length) to bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    read: Callable[[int, int], bytes]


def weights_digest(tensors: Iterable[StoredTensor]) -> str:
    """SHA-256 over name, dtype, shape and sampled bytes of every tensor, in order of name.

    Sampled: the whole tensor up to 64 KiB, else 16 evenly spaced blocks of 4 KiB, the first and the last included.
    Every tensor takes part, so any fine-tuning shows; a change of a few embedding rows alone may not.
    """
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda each: each.name):
        digest.update(canonical_json([tensor.name, tensor.dtype, list(tensor.shape)]))
        for offset, length in _sample(tensor.size_bytes):
            digest.update(tensor.read(offset, length))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary and the ids of a probe text: what the tokenizer does, not how it is written down.

    The serialised form changes between releases of the tokenizers library, and holds padding state that calls change.
    """
    vocabulary = sorted((token, int(index)) for token, index in tokenizer.get_vocab().items())
    probes = [PROBE, *PROBE.split(" ")]
    ids = [[int(index) for index in tokenizer(text)["input_ids"]] for text in probes]
    return sha256_hex(json.dumps([vocabulary, ids], ensure_ascii=True, separators=(",", ":")).encode())


def tensors_in_folder(folder: Path) -> Iterator[StoredTensor]:
    """The tensors of a model folder as transformers would load them: safetensors, else PyTorch files.

    Raises:
        NotFoundError: the folder holds no weights.
        CorruptError: a weights file is not what its name says.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif single.is_file():
            names = [single.name]
        else:
            continue
        reader = _safetensors if suffix == "safetensors" else _pytorch
        for name in names:
            yield from reader(folder / name)
        return
    raise NotFoundError(f"{folder} holds no model.safetensors or pytorch_model.bin (nor their index); is it a model?")


def tensors_in_memory(
    named: "Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]",
) -> Iterator[StoredTensor]:
    """Live tensors seen as stored ones."""
    for name, tensor in named.items() if isinstance(named, Mapping) else named:
        yield StoredTensor(
            name,
            STORED_DTYPES.get(str(tensor.dtype), str(tensor.dtype)),
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
            _memory_reader(tensor),
        )


def _sample(size_bytes: int) -> list[tuple[int, int]]:
    if size_bytes <= SAMPLED_BLOCKS * BLOCK_BYTES:
        return [(0, size_bytes)]
    last = size_bytes - BLOCK_BYTES
    return [(last * block // (SAMPLED_BLOCKS - 1), BLOCK_BYTES) for block in range(SAMPLED_BLOCKS)]


def _safetensors(path: Path) -> Iterator[StoredTensor]:
    """Reads the header by hand: the safetensors library would copy whole tensors to give a few of their bytes."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:start])
    except ValueError as error:
        raise CorruptError(f"{path} is not a safetensors file: {error}; fetch the model again") from error
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        begin, end = (start + offset for offset in entry["data_offsets"])
        if end > len(mapped):
            raise CorruptError(f"{path} ends within tensor {name}; fetch the model again")
        yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), end - begin, _mapped_reader(mapped, begin))


def _mapped_reader(mapped: mmap.mmap, begin: int) -> Callable[[int, int], bytes]:
    return lambda offset, length: mapped[begin + offset : begin + offset + length]


def _pytorch(path: Path) -> Iterator[StoredTensor]:
    import torch

    yield from tensors_in_memory(torch.load(path, map_location="cpu", mmap=True, weights_only=True))


def _memory_reader(tensor: "torch.Tensor") -> Callable[[int, int], bytes]:
    import torch

    def read(offset: int, length: int) -> bytes:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        return flat[offset : offset + length].cpu().numpy().tobytes()

    return read
