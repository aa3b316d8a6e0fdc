"""Evaluations that this machine has made: what is equal in all that decides one is not computed again (ADR 0029).

Imports no torch: a gate whose figures are all known needs no model.
"""

import hashlib
import io
import json
import logging
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.fingerprint import tensors_in_folder, weights_digest
from promptstore.lm.source import find_model
from promptstore.settings import Settings
from promptstore.store.files import write_atomically
from promptstore.tuning.ensemble import together
from promptstore.tuning.evaluation import Evaluation, EvaluationCase
from promptstore.tuning.rows import as_rows

log = logging.getLogger(__name__)

FOLDER = "evaluations"
FORMAT = 1
MOST_KEPT = 256
COMPUTED_BY = ("promptstore", "torch", "transformers", "tokenizers")
# What of a model's folder says how text becomes tokens and how the network is built; its weights are sampled.
SMALL_FILES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
# Of a task, what changes neither what the model is asked nor what its answers are read from.
NOT_ASKED = ("name", "metric", "data", "tuning")
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, CorruptError, InvalidInputError)


@dataclass(frozen=True, slots=True)
class EvaluationMemory:
    """Small files that many processes share and that are safe to lose.

    folder: for evaluations by one model, computed in one way; its siblings are for others. weights: the model's digest.
    """

    folder: Path
    weights: str

    @property
    def fingerprint(self) -> BaseModelFingerprint | None:
        """Of the model that judged, `None` if it never did."""
        try:
            return BaseModelFingerprint.from_json(json.loads(self._model.read_bytes()))
        except UNREADABLE:
            return None

    def recall(self, case: EvaluationCase) -> Evaluation | None:
        """What is known of a case, `None` if it, or a member of its ensemble, was not judged before."""
        found = [self._recall(each) for each in case.alone]
        known = [each for each in found if each is not None]
        return together(case.prompt, iter(known)) if len(known) == len(found) else None

    def keep(self, model: BaseModelFingerprint, case: EvaluationCase, evaluation: Evaluation) -> None:
        """Remember it, and forget the oldest ones of all models beyond `MOST_KEPT`. No room: it is not remembered.

        Raises:
            InvalidInputError: it was judged by another model than this memory is of.
        """
        if model.weights_digest != self.weights:
            raise InvalidInputError(f"an evaluation by {model.name} is none of the model in the settings")
        try:
            write_atomically(self._model, canonical_json(model.to_json()), is_durable=False)
            for each, alone in zip(case.alone, evaluation.members or (evaluation,), strict=True):
                write_atomically(self._file(each), _packed(alone), is_durable=False)
            _forget_oldest(self.folder.parent)
        except OSError as error:
            log.warning("an evaluation could not be kept: %s", error)

    def _recall(self, case: EvaluationCase) -> Evaluation | None:
        try:
            with np.load(io.BytesIO(self._file(case).read_bytes()), allow_pickle=False) as kept:
                columns = {name.removeprefix("column."): kept[name] for name in kept.files if name != "said"}
                said = json.loads(bytes(kept["said"]))
            found = Evaluation.of(case, columns, said["predictions"], float(said["seconds"]))
        except UNREADABLE:
            return None
        is_whole = all(len(each) == found.rows for each in (found.predictions, *found.columns.values()))
        return found if is_whole else None

    @property
    def _model(self) -> Path:
        return self.folder / "model.json"

    def _file(self, case: EvaluationCase) -> Path:
        """Its name says everything about the case that decides its outcome."""
        asked = {name: value for name, value in case.task.to_json().items() if name not in NOT_ASKED}
        prompt = None if case.prompt is None else sha256_hex(case.prompt.embeddings.tobytes())
        decides = {"task": asked, "prompt": prompt, "rows": as_rows(case.rows).digest}
        return self.folder / f"{sha256_hex(canonical_json(decides))}.npz"


def open_evaluation_memory(settings: Settings) -> EvaluationMemory:
    """The memory of the model that the settings name, as this machine computes with it. Raises as `open_model`.

    The machine takes part because `auto` means another device and dtype elsewhere.
    """
    folder = find_model(settings.model, cache_dir=settings.cache_dir).folder
    weights = weights_digest(tensors_in_folder(folder))
    decides = {
        "format": FORMAT,
        "versions": {name: version(name) for name in COMPUTED_BY},
        "machine": platform.node(),
        "device": settings.device,
        "dtype": settings.dtype,
        "weights": weights,
        "files": _small_files(folder),
    }
    return EvaluationMemory(settings.state_dir / FOLDER / sha256_hex(canonical_json(decides))[:32], weights)


def _small_files(folder: Path) -> Mapping[str, str]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SMALL_FILES and path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _packed(evaluation: Evaluation) -> bytes:
    said = json.dumps({"predictions": evaluation.predictions, "seconds": evaluation.seconds}).encode()
    columns: dict[str, Any] = {f"column.{name}": values for name, values in evaluation.columns.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, said=np.frombuffer(said, np.uint8), **columns)
    return buffer.getvalue()


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*/*.npz"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) - MOST_KEPT)]:
        path.unlink(missing_ok=True)
