"""Prompts that stand after the input, next to the answer (ADR 0033).

The input's keys and values then know nothing of the prompt: they are computed without gradient, once, and kept for
every epoch and every prompt that reads the same input. A step computes each row's virtual tokens and nothing else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.packed_rows import answer_places, packing_of, run_rows
from promptstore.tuning.passes import Group, Item, OpenPass

# For keys and values of inputs; what finds no room is computed anew in every step. On a GPU a share of what is free.
KEPT_BYTES, SHARE_OF_FREE_MEMORY = 1 << 30, 0.25

Input = tuple[int, ...]


class KeptInputs:
    """Keys and values of inputs, each [L, K, T, D], for as long as there is room.

    Who came first stays: rows return once an epoch, in another order, and a rule of least recent use would throw out
    what is about to be asked for.
    """

    def __init__(self, model: FrozenModel, *, budget_bytes: int | None = None) -> None:
        self._model = model
        self._kept: dict[Input, tuple[Tensor, Tensor]] = {}
        self._room = _room(model) if budget_bytes is None else budget_bytes

    def __contains__(self, ids: Input) -> bool:
        return ids in self._kept

    def of(self, inputs: Sequence[Input]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every input; those that are not kept are computed together."""
        missing = [ids for ids in dict.fromkeys(inputs) if ids not in self._kept]
        computed = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        for ids, (keys, values) in computed.items():
            if (size := keys.nbytes + values.nbytes) <= self._room:
                self._room -= size
                self._kept[ids] = (keys, values)
        return [self._kept[ids] if ids in self._kept else computed[ids] for ids in inputs]

    @torch.no_grad()
    def _compute(self, inputs: Sequence[Input]) -> list[tuple[Tensor, Tensor]]:
        lengths = [len(ids) for ids in inputs]
        ids = torch.tensor([[index for each in inputs for index in each]], device=self._model.device)
        packing = packing_of(self._model, lengths, [0] * len(inputs), None, {}, {})
        run_rows(self._model, self._model.embed(ids), packing)
        keys, values = (torch.stack(list(kept.values())) for kept in (packing.kept_keys, packing.kept_values))
        return [
            (keys[:, row, :, :length].clone(), values[:, row, :, :length].clone()) for row, length in enumerate(lengths)
        ]


class AfterPass:
    """Rows of groups whose prompt stands after the input."""

    def __init__(self, model: FrozenModel, groups: Sequence[Group], kept: KeptInputs) -> None:
        self._model = model
        self._groups = groups
        self._kept = kept

    def cost(self, item: Item) -> int:
        return self._groups[item.group].num_virtual_tokens + len(item.example.tokens)

    def rank(self, item: Item) -> int:
        return self.cost(item)

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:  # noqa: ARG002 - parts cost no more
        known = self._kept.of([item.example.input_ids for item in items])
        rows = [self._row(item) for item in items]
        lengths = [len(row) for row in rows]
        starts = [len(item.example.input_ids) for item in items]
        keys, values = (_padded([pair[part] for pair in known]) for part in (0, 1))
        packing = packing_of(self._model, lengths, starts, range(len(items)), keys, values)
        return run_rows(self._model, torch.cat(rows)[None], packing, answer_places(lengths, items))

    def close(self) -> None: ...

    def _row(self, item: Item) -> Tensor:
        """The prompt, and the answer up to the token before its last.

        Cast for every row anew: the gradients of the rows then add up in the prompt's float32.
        """
        prompt = self._groups[item.group].prompt
        if prompt is None:
            raise ValueError("the bare model has no prompt to place")
        own = prompt.to(self._model.dtype)
        if len(item.example.answer_ids) == 1:
            return own
        answer = torch.tensor([item.example.answer_ids[:-1]], device=self._model.device)
        return torch.cat([own, self._model.embed(answer)[0]])


class BothPasses:
    """Some groups' prompts stand before the input and others' after it."""

    def __init__(self, groups: Sequence[Group], before: OpenPass, after: OpenPass) -> None:
        self._groups = groups
        self._before = before
        self._after = after

    def cost(self, item: Item) -> int:
        return (self._after if self._groups[item.group].is_after else self._before).cost(item)

    def rank(self, item: Item) -> int:
        return (self._after if self._groups[item.group].is_after else self._before).rank(item)

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:
        found: dict[int, Tensor] = {}
        for is_after, each in ((False, self._before), (True, self._after)):
            places = [at for at, item in enumerate(items) if self._groups[item.group].is_after == is_after]
            if places:
                chosen = [items[at] for at in places]
                lengths = [len(item.example.answer_ids) for item in chosen]
                found |= dict(zip(places, torch.split(each.states(chosen, is_whole=is_whole), lengths), strict=True))
        return torch.cat([found[at] for at in range(len(items))])

    def close(self) -> None:
        self._before.close()
        self._after.close()


def _padded(rows: Sequence[Tensor]) -> dict[int, Tensor]:
    """By layer [R, K, C, D], C the longest; rows of [L, K, T, D] begin at 0 and end in zeros that nobody sees."""
    layers, heads, _, width = rows[0].shape
    longest = max(row.shape[2] for row in rows)
    buffer = rows[0].new_zeros((layers, len(rows), heads, longest, width))
    for at, row in enumerate(rows):
        buffer[:, at, :, : row.shape[2]] = row
    return dict(enumerate(buffer))


def _room(model: FrozenModel) -> int:
    if model.device.type != "cuda":
        return KEPT_BYTES
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(free * SHARE_OF_FREE_MEMORY)
