"""Greedy decoding behind a prompt, for evaluation; serving has an engine of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.tuning.examples import Example

ROWS_AT_ONCE = 64


def generate_texts(
    model: FrozenModel, prompt: Tensor | None, examples: Sequence[Example], *, max_new_tokens: int
) -> list[str]:
    """The likeliest continuation of each input, token by token, special tokens and outer white space removed.

    prompt: [P, H] on the model's device, `None` for the bare model.
    """
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda at: len(examples[at].input_ids))
    for start in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[start : start + ROWS_AT_ONCE]
        ids = _generate(model, prompt, [examples[at].input_ids for at in chosen], max_new_tokens)
        for at, text in zip(chosen, model.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[at] = text.strip()
    return texts


@torch.inference_mode()
def _generate(model: FrozenModel, prompt: Tensor | None, inputs: Sequence[Sequence[int]], count: int) -> Tensor:
    batch = lay_out(model, [prompt] * len(inputs), inputs)
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
