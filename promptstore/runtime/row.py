"""A prompt made ready for one model, and one input behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from promptstore.core.ensemble import Ensemble


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPrompt:
    """What the model needs of a prompt: its keys and values, or its embeddings.

    tensors: `suffix`, [P, H], is a prompt that stands after the input; the others belong before it. Of an ensemble each
    has one dimension more, in front: [K, ...].
    prefix_ids: tokens that every input of the task starts with and that the tensors already cover.
    """

    tensors: Mapping[str, Tensor]
    prefix_ids: tuple[int, ...] = ()
    ensemble: Ensemble | None = None

    @classmethod
    def together(cls, members: Sequence["PreparedPrompt"], ensemble: Ensemble) -> "PreparedPrompt":
        """Members that were prepared alone, all behind the same tokens."""
        first = members[0]
        tensors = {name: torch.stack([each.tensors[name] for each in members]) for name in first.tensors}
        return cls(tensors, first.prefix_ids, ensemble)

    @property
    def members(self) -> "tuple[PreparedPrompt, ...]":
        """What each input is computed under; nothing is copied."""
        if self.ensemble is None:
            return (self,)
        return tuple(
            PreparedPrompt({name: tensor[at] for name, tensor in self.tensors.items()}, self.prefix_ids)
            for at in range(self.ensemble.members)
        )

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device) -> "PreparedPrompt":
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


class Row(NamedTuple):
    """One input and its prompt, on the model's device. input_ids: at least one token.

    output_ids: what was generated for it before, for an answer that goes on after it had to leave.
    """

    prompt: PreparedPrompt
    input_ids: Sequence[int]
    output_ids: Sequence[int] = ()

    @property
    def suffix(self) -> Tensor | None:
        """What stands between the input and the answer."""
        return self.prompt.tensors.get("suffix")


class RunningRows(Protocol):
    """Rows that are being continued. Not thread-safe; every method blocks for its forward pass.

    A method that raises has changed nothing, so it may be tried again with fewer rows.
    """

    def join(self, rows: Sequence[Row]) -> Tensor:
        """Adds rows behind those that run. Returns the states that their first tokens are read from, [n, H]."""

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Appends one token to every row. Returns the states that the next ones are read from, [R, H]."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drops every row but these, in this order."""


class Preparation(Protocol):
    """What a prompt is turned into once, before it is used."""

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        """Makes a prompt ready, to stand before inputs or after them. prompt: [P, H] on the model's device."""


class Decoding(Preparation, Protocol):
    """How rows of different prompts and lengths go through the model, correct in any batch."""

    @property
    def is_padded(self) -> bool:
        """Whether every row of a batch costs as much as its longest."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        """The states that the answers' first tokens are read from, [B, H]."""

    def start(self) -> RunningRows:
        """No rows yet; `join` adds them."""
