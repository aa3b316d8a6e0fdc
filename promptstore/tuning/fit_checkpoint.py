"""A fit on disk: prompts, optimisers and places in the data, a few kilobytes for each prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.files import write_atomically
from promptstore.store.objects import ObjectStore
from promptstore.tuning.events import FitResult
from promptstore.tuning.fitting import Fitting

FORMAT = 1
# safetensors' own header would hold these too, but writes several entries in no certain order.
FIGURES = "figures"
RESULT_FIGURES = ("best_step", "steps", "metric", "value", "reason", "cause", "seconds")


class CheckpointSlot(Protocol):
    """Where one fit keeps its checkpoint. `save` replaces the old one whole, or leaves it."""

    def load(self) -> bytes | None: ...

    def save(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class FileSlot:
    """A file on a local disk."""

    path: Path

    def load(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def save(self, data: bytes) -> None:
        write_atomically(self.path, data)


@dataclass(frozen=True, slots=True)
class ObjectSlot:
    """An object in an object store, for jobs whose machine may not come back."""

    objects: ObjectStore
    key: str

    def load(self) -> bytes | None:
        try:
            return self.objects.get(self.key)
        except NotFoundError:
            return None

    def save(self, data: bytes) -> None:
        self.objects.put(self.key, data)


@dataclass(frozen=True, slots=True)
class Saved:
    """One prompt as it was. result: the figures of one that had finished."""

    identity: str
    figures: Mapping[str, Any]
    result: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor] = field(repr=False)


def encode_checkpoint(
    active: Sequence[Fitting],
    finished: Mapping[str, FitResult],
    identities: Mapping[str, str],
    kept: Mapping[str, Saved],
) -> bytes:
    """Bytes of a safetensors file: every prompt's tensors, and the figures as JSON in one more tensor.

    kept: prompts of an earlier checkpoint that were not taken up again yet.
    """
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for fitting in active:
        tensors |= {f"{len(entries)}/{name}": tensor for name, tensor in fitting.tensors().items()}
        entries.append({"job": fitting.name, "figures": fitting.figures(), "result": None})
    for job, result in finished.items():
        for name, prompt in (("best", result.prompt), ("prompt", result.last)):
            tensors[f"{len(entries)}/{name}"] = torch.tensor(prompt.embeddings)
        entries.append({"job": job, "figures": {}, "result": {name: getattr(result, name) for name in RESULT_FIGURES}})
    for job, saved in kept.items():
        tensors |= {f"{len(entries)}/{name}": tensor for name, tensor in saved.tensors.items()}
        entries.append({"job": job, "figures": saved.figures, "result": saved.result})
    for entry in entries:
        entry["identity"] = identities[entry["job"]]
    text = json.dumps({"format": FORMAT, "prompts": entries}, sort_keys=True).encode()
    tensors[FIGURES] = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
    data: bytes = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return data


def decode_checkpoint(data: bytes) -> dict[str, Saved]:
    """Every prompt of a checkpoint, by the name of its job.

    Raises:
        CorruptError: not a checkpoint of this format; delete it to begin again.
    """
    try:
        tensors = load(data)
        content = json.loads(tensors.pop(FIGURES).numpy().tobytes())
        if content["format"] != FORMAT:
            raise CorruptError(f"the checkpoint has format {content['format']}, this promptstore reads {FORMAT}")
        found: dict[str, Saved] = {}
        for at, entry in enumerate(content["prompts"]):
            start = f"{at}/"
            own = {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}
            found[entry["job"]] = Saved(entry["identity"], entry["figures"], entry["result"], own)
        return found
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"the checkpoint cannot be read ({error}); delete it to begin again") from error


def require_same(job: str, saved: Saved, identity: str) -> None:
    """Refuse to go on with another fit's checkpoint.

    Raises:
        InvalidInputError: model, task, settings or data of the job are not what the checkpoint was made with.
    """
    if saved.identity != identity:
        raise InvalidInputError(
            f"{job}: the checkpoint is of another fit (model, task, settings or data differ); "
            "delete it to begin again, or give this fit another place"
        )


def saved_result(model: FrozenModel, saved: Saved) -> FitResult | None:
    """The result of a prompt that had finished."""
    if saved.result is None:
        return None
    prompt, last = (SoftPrompt(saved.tensors[name].numpy(), model.fingerprint) for name in ("best", "prompt"))
    return FitResult(prompt=prompt, last=last, **saved.result)
