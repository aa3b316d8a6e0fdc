"""Every row behind its own copy of its prompt, as `promptstore.lm.layout` lays it out: right for any architecture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel, final_decoder_hidden, final_hidden
from promptstore.lm.layout import ModelBatch, lay_out
from promptstore.tuning.passes import Group, Item, OpenPass


@dataclass(frozen=True, slots=True, eq=False)
class PaddedPasses:
    model: FrozenModel
    is_compiled: bool = False

    def open(self, groups: Sequence[Group]) -> OpenPass:
        return _PaddedPass(self.model, groups)


@dataclass(frozen=True, slots=True, eq=False)
class _PaddedPass:
    model: FrozenModel
    groups: Sequence[Group]

    def cost(self, item: Item) -> int:
        return self.groups[item.group].num_virtual_tokens + len(item.example.tokens)

    def rank(self, item: Item) -> int:
        return self.cost(item)

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:  # noqa: ARG002 - parts cost no more
        answers = [len(item.example.answer_ids) for item in items]
        if self.model.is_encoder_decoder:
            hidden = self._decoder_states(items)
            return torch.cat([hidden[row, :count] for row, count in enumerate(answers)])
        batch = self._laid_out(items)
        hidden = final_hidden(
            self.model,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        )
        return torch.cat([hidden[row, -count:] for row, count in enumerate(answers)])

    def close(self) -> None: ...

    def _decoder_states(self, items: Sequence[Item]) -> Tensor:
        prompts = [self.groups[item.group].prompt for item in items]
        batch = lay_out(self.model, prompts, [item.example.input_ids for item in items])
        start = self.model.decoder_start_token_id
        rows = [[start, *item.example.answer_ids[:-1]] for item in items]
        width = max(map(len, rows))
        decoder_ids = torch.tensor([row + [start] * (width - len(row)) for row in rows], device=self.model.device)
        return final_decoder_hidden(
            self.model,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            decoder_ids=decoder_ids,
        )

    def _laid_out(self, items: Sequence[Item]) -> ModelBatch:
        """Decoder-only rows, the answer up to the token before its last behind everything else."""
        prompts = [self.groups[item.group].prompt for item in items]
        heads, tails = [], []
        for item in items:
            example, is_after = item.example, self.groups[item.group].is_after
            heads.append(example.input_ids if is_after else ())
            tails.append(example.answer_ids[:-1] if is_after else example.tokens)
        return lay_out(self.model, prompts, tails, heads)
