"""Prompts as files that other tools read: PEFT adapter folders, `.npy`, `.safetensors`, and our own bundles.

Numbers are never changed on the way: a round trip keeps the payload's digest, and a bundle the version's, too.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from promptstore.core.digest import parse_json
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import MAX_VIRTUAL_TOKENS, SoftPrompt
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError
from promptstore.store.bundle import read_bundle, write_bundle
from promptstore.store.files import write_atomically
from promptstore.store.payload import TENSOR_NAME, encode_payload
from promptstore.store.prompt_store import PulledPrompt

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FORMS = "a folder (PEFT adapter), .npy, .safetensors or .bundle"
_MAX_FILE_BYTES = 4 * MAX_VIRTUAL_TOKENS * 65_536 + 4096
_NUMBER_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def export_prompt(pulled: PulledPrompt, to: Path) -> Path:
    """Write a version in the form that the ending of `to` names; a path without one is a PEFT adapter folder.

    Raises:
        InvalidInputError: another ending, the place cannot be written, a PEFT adapter is asked for of a prompt that
            stands after the input: PEFT would put it before; or anything but a bundle of an ensemble.
    """
    if to.suffix != ".bundle" and pulled.prompt.ensemble is not None:
        raise InvalidInputError(
            f"{pulled.version} is an ensemble of {pulled.prompt.ensemble.members} prompts, which other tools have no "
            "form for; export a .bundle instead"
        )
    if to.suffix == "" and pulled.manifest.task.placement == "after":
        raise InvalidInputError(
            f"{pulled.version} stands after the input, and PEFT puts prompts before it; export a .bundle instead"
        )
    try:
        match to.suffix:
            case ".npy":
                file = io.BytesIO()
                np.save(file, pulled.prompt.embeddings, allow_pickle=False)
                write_atomically(to, file.getvalue())
            case ".safetensors":
                write_atomically(to, encode_payload(pulled.prompt))
            case ".bundle":
                write_atomically(to, write_bundle(pulled))
            case "":
                write_atomically(to / WEIGHTS_FILE, encode_payload(pulled.prompt))
                write_atomically(to / CONFIG_FILE, _peft_config(pulled))
            case _:
                raise InvalidInputError(f"cannot tell what to write to {to}: expected {FORMS}")
    except OSError as error:
        raise InvalidInputError(f"cannot write {to}: {error.strerror}; give another place") from error
    return to


def import_prompt(path: Path, fingerprint: BaseModelFingerprint) -> SoftPrompt:
    """The prompt in a file or PEFT adapter folder, for the model of `fingerprint`.

    Half-precision numbers are widened to float32, which changes no value.

    Raises:
        NotFoundError: no such file. InvalidInputError: it holds no prompt for that model.
        IncompatibleModelError: a bundle of another model.
    """
    if path.is_dir():
        return SoftPrompt(_read_adapter(path), fingerprint)
    match path.suffix:
        case ".npy":
            return SoftPrompt(_read_npy(path), fingerprint)
        case ".safetensors":
            return SoftPrompt(_read_tensor(_read(path), str(path)), fingerprint)
        case ".bundle":
            bundle = read_bundle(_read(path))
            bundle.prompt.fingerprint.require_match(fingerprint, str(path))
            return bundle.prompt
        case _:
            raise InvalidInputError(f"cannot tell what {path} is: expected {FORMS}")


def _peft_config(pulled: PulledPrompt) -> bytes:
    """What `peft.PeftModel.from_pretrained` needs; what it can tell from the model it is loaded on is left out."""
    fingerprint = pulled.manifest.fingerprint
    is_encoder_decoder = "ConditionalGeneration" in fingerprint.architecture
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": fingerprint.name,
        "revision": fingerprint.revision,
        "inference_mode": True,
        "num_virtual_tokens": pulled.prompt.num_virtual_tokens,
        "token_dim": pulled.prompt.hidden_size,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return json.dumps(config, indent=2).encode()


def _read_adapter(folder: Path) -> npt.NDArray[np.float32]:
    config = parse_json(_read(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PROMPT_TUNING":
        raise InvalidInputError(f"{folder} is a PEFT adapter of type {kind}, expected PROMPT_TUNING")
    embeddings = _read_tensor(_read(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    tokens = config.get("num_virtual_tokens")
    if not isinstance(tokens, int) or not 1 <= tokens <= len(embeddings):
        raise InvalidInputError(
            f"{folder}: num_virtual_tokens is {tokens!r}, but the tensor has {len(embeddings)} rows"
        )
    # For encoder-decoder models PEFT keeps rows for the decoder too and feeds only the first to the encoder.
    return embeddings[:tokens]


def _read_npy(path: Path) -> npt.NDArray[np.float32]:
    try:
        embeddings = np.load(io.BytesIO(_read(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidInputError(f"{path} is not a .npy file of plain numbers: {error}") from error
    if not isinstance(embeddings, np.ndarray) or embeddings.dtype not in (np.float32, np.float16):
        raise InvalidInputError(f"{path} does not hold float32 or float16 numbers; convert them first")
    return embeddings.astype(np.float32)


def _read_tensor(data: bytes, what: str) -> npt.NDArray[np.float32]:
    """The tensor `prompt_embeddings` of a safetensors file; others in it are not looked at."""
    header, body = _split(data, what)
    entry: Any = header.get(TENSOR_NAME)
    try:
        number_type = _NUMBER_TYPES[entry["dtype"]]
        rows, columns = (int(each) for each in entry["shape"])
        start, end = (int(each) for each in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        names = ", ".join(sorted(header)) or "nothing"
        raise InvalidInputError(f"{what}: no float tensor {TENSOR_NAME!r} [P, H]; it holds {names}") from error
    numbers = np.dtype(number_type)
    if not 0 <= start <= end <= len(body) or min(rows, columns) < 0 or end - start != rows * columns * numbers.itemsize:
        raise InvalidInputError(f"{what}: tensor {TENSOR_NAME!r} [{rows}, {columns}] does not fit the file")
    values = np.frombuffer(body[start:end], numbers).reshape(rows, columns)
    if entry["dtype"] == "BF16":
        return (values.astype("<u4") << 16).view("<f4").astype(np.float32)
    return values.astype(np.float32)


def _split(data: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 1 << 20):
        raise InvalidInputError(f"{what} is not a safetensors file")
    try:
        header = parse_json(data[8 : 8 + length], what)
    except CorruptError as error:
        raise InvalidInputError(f"{what} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise InvalidInputError(f"{what} is not a safetensors file")
    return header, data[8 + length :]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InvalidInputError(f"{path} has {path.stat().st_size} bytes, more than any prompt")
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error
