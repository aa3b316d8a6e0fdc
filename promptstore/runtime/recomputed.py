"""Rows computed from input embeddings at every step: encoder-decoder models, and caches of other shapes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel, final_decoder_hidden
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import answer_hidden
from promptstore.runtime.row import PreparedPrompt, Row, RunningRows


class RecomputedDecoding:
    """Slow in generation, where every token costs a pass over its whole row, and right for any architecture."""

    is_padded = True

    def __init__(self, model: FrozenModel) -> None:
        self._model = model

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        del prefix_ids
        return PreparedPrompt({"suffix" if is_after else "embeddings": prompt.to(self._model.dtype)})

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self.states(rows, [row.output_ids for row in rows])

    def start(self) -> RunningRows:
        return _RecomputedRows(self)

    @torch.inference_mode()
    def states(self, rows: Sequence[Row], outputs: Sequence[Sequence[int]]) -> Tensor:
        """The states after what each row has generated so far, [R, H]."""
        prompts = [row.prompt.tensors["embeddings"] if row.suffix is None else row.suffix for row in rows]
        if not self._model.is_encoder_decoder:
            heads = [() if row.suffix is None else row.input_ids for row in rows]
            inputs = [
                [*row.input_ids, *output] if row.suffix is None else output
                for row, output in zip(rows, outputs, strict=True)
            ]
            return answer_hidden(self._model, lay_out(self._model, prompts, inputs, heads))
        batch = lay_out(self._model, prompts, [row.input_ids for row in rows])
        width = 1 + max(map(len, outputs))
        decoder_ids = torch.full((len(rows), width), self._model.decoder_start_token_id, dtype=torch.long)
        for row, output in enumerate(outputs):
            decoder_ids[row, 1 : 1 + len(output)] = torch.tensor(output, dtype=torch.long)
        hidden = final_decoder_hidden(
            self._model,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            decoder_ids=decoder_ids.to(self._model.device),
        )
        last = torch.tensor([len(output) for output in outputs], device=hidden.device)
        return hidden[torch.arange(len(rows), device=hidden.device), last].contiguous()


class _RecomputedRows:
    def __init__(self, decoding: RecomputedDecoding) -> None:
        self._decoding = decoding
        self._rows: list[Row] = []
        self._outputs: list[list[int]] = []

    def join(self, rows: Sequence[Row]) -> Tensor:
        states = self._decoding.read(rows)
        self._rows += rows
        self._outputs += [list(row.output_ids) for row in rows]
        return states

    def step(self, token_ids: Sequence[int]) -> Tensor:
        outputs = [[*output, token] for output, token in zip(self._outputs, token_ids, strict=True)]
        states = self._decoding.states(self._rows, outputs)
        self._outputs = outputs
        return states

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._outputs = [self._outputs[row] for row in rows]
