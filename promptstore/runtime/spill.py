"""Prepared prompts on local disk: what a server need not compute again after it made room, or after a restart."""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Collection
from importlib.metadata import version as installed_version
from pathlib import Path

import torch
import transformers
from safetensors.torch import load, save
from torch import Tensor

from promptstore.core.ensemble import COMBINATIONS, Ensemble
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.row import Preparation, PreparedPrompt
from promptstore.store.files import write_atomically

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<digest>[0-9a-f]{64})\.(?P<model>[0-9a-f]{16})\.(?P<content>[0-9a-f]{64})\.safetensors")
_PREFIX_IDS = "prefix_ids"
# Of an ensemble: how many members, and the place of the combination in COMBINATIONS.
_ENSEMBLE = "ensemble"
_TORN_AFTER_S = 3600.0
# Of files that other models, or other versions of the code, left: nobody who still read them would leave them so long.
_UNUSED_AFTER_S = 30 * 86_400.0


class DiskSpill:
    """A folder of prepared prompts for one model, bounded in bytes; the least recently used go first.

    A file's name holds the SHA-256 of its bytes, so a damaged one is noticed and computed again, never used. Servers of
    one machine may share the folder. A disk that is full or gone costs time, never an answer: what it does not keep is
    computed again. `put` and `get` are for one thread and block for local disk.
    decoding: what prepares the prompts; each way has tensors of its own.
    """

    def __init__(self, folder: Path, model: FrozenModel, decoding: Preparation, *, budget_bytes: int) -> None:
        self._folder = folder
        self._model_key = _model_key(model, decoding)
        self._device = model.device
        self._budget_bytes = budget_bytes
        self._files: OrderedDict[str, tuple[Path, int]] | None = None
        self.size_bytes = 0
        self.damaged = 0
        self.unwritten = 0

    def __contains__(self, digest: str) -> bool:
        return self._files is not None and digest in self._files

    def put(self, digest: str, prepared: PreparedPrompt) -> None:
        """Keeps `prepared`, unless it is kept already or larger than the whole budget."""
        files = self._index()
        if digest in files or prepared.size_bytes > self._budget_bytes:
            return
        tensors = {name: tensor.contiguous().cpu() for name, tensor in prepared.tensors.items()}
        tensors[_PREFIX_IDS] = torch.tensor(prepared.prefix_ids, dtype=torch.int64)
        if (ensemble := prepared.ensemble) is not None:
            tensors[_ENSEMBLE] = torch.tensor([ensemble.members, COMBINATIONS.index(ensemble.combination)])
        data = save(tensors)
        name = f"{digest}.{self._model_key}.{hashlib.sha256(data).hexdigest()}.safetensors"
        path = self._folder / name
        try:
            write_atomically(path, data, is_durable=False)
        except OSError as error:
            if self.unwritten == 0:
                logger.warning("prepared prompts cannot be kept in %s: %s", self._folder, error)
            self.unwritten += 1
            return
        files[digest] = (path, len(data))
        self.size_bytes += len(data)
        while self.size_bytes > self._budget_bytes:
            self._drop(next(iter(files)))

    def get(self, digest: str) -> PreparedPrompt | None:
        """What was kept, on the model's device; `None` if nothing was, or it is damaged or gone."""
        files = self._index()
        if digest not in files:
            return None
        path, _ = files[digest]
        tensors = self._read(path)
        if tensors is None:
            self._drop(digest)
            return None
        files.move_to_end(digest)
        with contextlib.suppress(OSError):
            os.utime(path)
        prefix_ids = tuple(int(index) for index in tensors.pop(_PREFIX_IDS))
        ensemble = None
        if _ENSEMBLE in tensors:
            members, combination = tensors.pop(_ENSEMBLE).tolist()
            ensemble = Ensemble(members, COMBINATIONS[combination])
        return PreparedPrompt(tensors, prefix_ids, ensemble).to(self._device)

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != path.name.split(".")[2]:
            self.damaged += 1
            return None
        tensors: dict[str, Tensor] = load(data)
        return tensors

    def _drop(self, digest: str) -> None:
        path, size = self._index().pop(digest)
        self.size_bytes -= size
        with contextlib.suppress(OSError):
            path.unlink()

    def _index(self) -> OrderedDict[str, tuple[Path, int]]:
        """This model's files, least recently used first; read from the folder once."""
        if self._files is None:
            self._remove_old(".*.safetensors.*", _TORN_AFTER_S)  # what a process that was killed left half-written
            found = []
            for path in self._folder.glob("*.safetensors") if self._folder.is_dir() else ():
                name = _NAME.fullmatch(path.name)
                if name is None or name["model"] != self._model_key:
                    continue
                with contextlib.suppress(FileNotFoundError):  # a neighbour may have dropped it just now
                    stat = path.stat()
                    found.append((stat.st_mtime, name["digest"], path, stat.st_size))
            self._remove_old("*.safetensors", _UNUSED_AFTER_S, but={path for _, _, path, _ in found})
            self._files = OrderedDict((digest, (path, size)) for _, digest, path, size in sorted(found))
            self.size_bytes = sum(size for _, size in self._files.values())
        return self._files

    def _remove_old(self, pattern: str, after_s: float, *, but: Collection[Path] = ()) -> None:
        for path in self._folder.glob(pattern):
            with contextlib.suppress(OSError):
                if path not in but and path.stat().st_mtime < time.time() - after_s:
                    path.unlink()


def _model_key(model: FrozenModel, decoding: Preparation) -> str:
    """What must be equal for tensors of one process to be those of another: model, dtype and the code that ran it."""
    code = (installed_version("promptstore"), type(decoding).__name__, torch.__version__, transformers.__version__)
    parts = (*model.fingerprint.identity, str(model.dtype), *code)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
