"""Where base models come from: a hub, a folder, a GGUF file, or the demo's assets."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.lm.assets import SMOLLM2, asset_file
from promptstore.lm.model_files import ModelFiles

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel

KINDS = "hf:<repository>[@<revision>], a model folder, a .gguf file, or asset:smollm2-135m"
HUB_PREFIX, ASSET_PREFIX = "hf:", "asset:"
ASSET_MODELS = {"smollm2-135m": (SMOLLM2, "SmolLM2-135M-Instruct.Q4_1.gguf")}


def open_model(source: str, *, cache_dir: Path, device: str = "auto", dtype: str = "auto") -> "FrozenModel":
    """The base model that `source` names, frozen and on its device. Blocks: seconds from a disk, minutes from a hub.

    source: `hf:<repository>[@<revision>]`, a model folder, a `.gguf` file, or `asset:smollm2-135m`.
    device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, …, or `balanced` (spread over all GPUs).
    dtype: `auto` (bfloat16 where the device computes it natively, else float32), `float32`, `bfloat16`, `float16`, or
    `int8` and `int4` (weights quantised while loading).

    Raises:
        InvalidInputError: no such kind of source, or the model has no language-model head, or no such device.
        NotFoundError: there is no such folder, file, repository or revision, or the asset was not fetched yet.
        StoreUnavailableError: the hub does not answer, or the cache folder has no room.
        CorruptError: a file of the model is damaged.
    """
    from promptstore.lm.loading import load_model

    return load_model(find_model(source, cache_dir=cache_dir), device=device, dtype=dtype)


def find_model(source: str, *, cache_dir: Path) -> ModelFiles:
    """The model's files on this machine, downloaded and converted first if need be. Raises as `open_model`."""
    if source.startswith(HUB_PREFIX):
        from promptstore.lm.hub import download_model

        repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
        folder, commit = download_model(repository, revision or None)
        return ModelFiles(folder, repository, commit)
    if source.startswith(ASSET_PREFIX):
        return _converted(_asset(source, cache_dir), source, cache_dir)
    path = _existing_path(source)
    if path.is_dir():
        return ModelFiles(path, path.resolve().name)
    return _converted(path, path.name, cache_dir)


def source_weights_digest(source: str, *, cache_dir: Path) -> str:
    """SHA-256 of the weights of the model at `source`, as its fingerprint has it; no network is built for it. Raises as
    `open_model`.
    """
    from promptstore.lm.fingerprint import tensors_in_folder, weights_digest

    return weights_digest(tensors_in_folder(find_model(source, cache_dir=cache_dir).folder))


def describe_source(source: str, *, cache_dir: Path) -> str:
    """One line on whether `source` is at hand; loads, downloads and converts nothing. Raises as `open_model`."""
    if source.startswith(HUB_PREFIX):
        state = "in the hub client's cache" if _is_cached(source) else "fetched from the model hub when first used"
        return f"{source}: {state}"
    if source.startswith(ASSET_PREFIX):
        path = _asset(source, cache_dir)
        state = "ready" if _conversion_folder(path, cache_dir).is_dir() else "fetched, converted when first used"
        return f"{source}: {state} in {cache_dir}"
    path = _existing_path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise NotFoundError(f"{source} holds no config.json; name the folder that has it, with weights and tokenizer")
    return f"{source}: {'folder' if path.is_dir() else 'GGUF file'}"


def _is_cached(source: str) -> bool:
    """Does the hub client's cache hold the config and weights of `source`? Asks no hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from promptstore.lm.hub import PYTORCH_FILES, SAFETENSORS_FILES

    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    try:
        config = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except HFValidationError as error:
        raise InvalidInputError(f"{source} is not a repository on the model hub; write hf:<owner>/<model>") from error
    if not isinstance(config, str):
        return False
    return any(any(Path(config).parent.glob(files)) for files in (*SAFETENSORS_FILES, *PYTORCH_FILES))


def _asset(source: str, cache_dir: Path) -> Path:
    name = source.removeprefix(ASSET_PREFIX)
    if name not in ASSET_MODELS:
        raise InvalidInputError(f"unknown model {source!r}; assets are: {', '.join(_known_assets())}")
    return asset_file(cache_dir, *ASSET_MODELS[name])


def _known_assets() -> Sequence[str]:
    return [f"{ASSET_PREFIX}{name}" for name in ASSET_MODELS]


def _existing_path(source: str) -> Path:
    path = Path(source).expanduser()
    if not source:
        raise InvalidInputError(f"no base model is named; it is {KINDS}")
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise InvalidInputError(f"{source} is a file but no .gguf; a base model is {KINDS}")
    if path.suffix == ".gguf" or "/" in source:
        hint = "" if source.startswith((".", "/", "~")) else f"; for a model of the hub write hf:{source}"
        raise NotFoundError(f"there is no model at {source}{hint}")
    raise InvalidInputError(f"unknown base model {source!r}; it is {KINDS}")


def _converted(gguf: Path, name: str, cache_dir: Path) -> ModelFiles:
    folder = _conversion_folder(gguf, cache_dir)
    if not folder.is_dir():
        from promptstore.lm.gguf import convert

        convert(gguf, folder)
    return ModelFiles(folder, name)


def _conversion_folder(gguf: Path, cache_dir: Path) -> Path:
    """By content: a file that is replaced in its place is converted again. v1: the form of what `convert` writes."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_dir / "models" / f"{gguf.stem}-{digest[:16]}-v1"
