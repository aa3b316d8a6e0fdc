"""Greedy decoding behind a prompt, for evaluation; serving has an engine of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import ModelBatch, lay_out
from promptstore.tuning.examples import Example

ROWS_AT_ONCE = 64


def generate_texts(
    model: FrozenModel,
    prompt: Tensor | None,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    is_prompt_after: bool = False,
) -> list[str]:
    """The likeliest continuation of each input, token by token, special tokens and outer white space removed.

    prompt: [P, H] on the model's device, `None` for the bare model.
    """
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda at: len(examples[at].input_ids))
    for start in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[start : start + ROWS_AT_ONCE]
        inputs: list[Sequence[int]] = [examples[at].input_ids for at in chosen]
        tails, heads = ([()] * len(inputs), inputs) if is_prompt_after else (inputs, [()] * len(inputs))
        ids = _generate(model, lay_out(model, [prompt] * len(inputs), tails, heads), max_new_tokens)
        for at, text in zip(chosen, model.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[at] = text.strip()
    return texts


@torch.inference_mode()
def _generate(model: FrozenModel, batch: ModelBatch, count: int) -> Tensor:
    settings = GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        # Some models' own settings ask for these, and what is not said here is taken from there.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=model.tokenizer.eos_token_id,
        pad_token_id=model.pad_token_id,
        decoder_start_token_id=model.decoder_start_token_id if model.is_encoder_decoder else None,
    )
    generated: Tensor = model.network.generate(
        inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, generation_config=settings
    )
    return generated
