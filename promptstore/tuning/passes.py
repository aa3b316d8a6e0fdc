"""Forward passes over many rows behind many prompts: what is asked of them, whichever way they are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from promptstore.tuning.examples import Example, ExampleSet


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A prompt [P, H], or `None` for the bare model, and the tokens that every row behind it begins with.

    is_after: the prompt stands after each row's input; then no tokens are shared.
    """

    prompt: Tensor | None
    prefix_ids: tuple[int, ...] = ()
    is_after: bool = False

    @classmethod
    def of(cls, prompt: Tensor | None, examples: ExampleSet) -> "Group":
        """The group of `examples` behind `prompt`. The bare model has nothing to place."""
        if prompt is not None and examples.is_prompt_after:
            return cls(prompt, is_after=True)
        return cls(prompt, examples.prefix_ids)

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.prompt is None else len(self.prompt)

    @property
    def length(self) -> int:
        """Positions before the part of a row that is its own."""
        if self.is_after:
            return 0
        return self.num_virtual_tokens + len(self.prefix_ids)


@dataclass(frozen=True, slots=True)
class Item:
    """One row and the index of its group."""

    group: int
    example: Example


class OpenPass(Protocol):
    """Groups whose rows can be run in as many parts as memory asks for."""

    def cost(self, item: Item) -> int:
        """Positions that a row makes the model compute, or look at where they are kept from before."""

    def rank(self, item: Item) -> int:
        """Rows of like rank share a part."""

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:
        """Per answer token, row after row, the hidden state it is read from: contiguous [A, H].

        is_whole: these are all rows there will be, so prompts and rows may share one forward pass.
        """

    def close(self) -> None:
        """Takes gradients that are still under way to the prompts; call it once, after the last backward pass."""


class Passes(Protocol):
    """A way to run rows of one model. is_compiled: it runs compiled layers where gradients are taken."""

    @property
    def is_compiled(self) -> bool: ...

    def open(self, groups: Sequence[Group]) -> OpenPass:
        """Begins with the groups' prompts as they are now."""


def split_by_cost(open_pass: OpenPass, items: Sequence[Item], limit: int) -> list[list[int]]:
    """Indices of `items` in parts of about equal cost, none above `limit` unless one row alone is; rows of like rank
    share a part.
    """
    costs = [open_pass.cost(item) for item in items]
    parts = -(-sum(costs) // limit)
    target = sum(costs) / parts
    split: list[list[int]] = [[]]
    filled = 0
    for at in sorted(range(len(items)), key=lambda at: (open_pass.rank(items[at]), at)):
        is_full = filled + costs[at] > limit or filled >= target
        if split[-1] and is_full:
            split.append([])
            filled = 0
        split[-1].append(at)
        filled += costs[at]
    return split
