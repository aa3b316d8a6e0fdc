"""Other families of models keep the promise of the layout, each with its own way to count positions or scale logits."""

from typing import Any

import pytest
import torch
import transformers

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel, freeze
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import answer_hidden, label_logits
from promptstore.testing.tiny_models import VOCABULARY, tiny_tokenizer

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WITHOUT_GROUPS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
TWO_STACKS = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "init_std": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ALiBi": ("BloomForCausalLM", {**WITHOUT_GROUPS, "n_layer": 2, "n_head": 4}),
    "positions with an offset": ("OPTForCausalLM", {**WITHOUT_GROUPS, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "embeddings narrower than the model": (
        "OPTForCausalLM",
        {**WITHOUT_GROUPS, "ffn_dim": 64, "word_embed_proj_dim": 16},
    ),
    "rotary on a part": ("GPTNeoXForCausalLM", {**WITHOUT_GROUPS, "rotary_pct": 0.25}),
    "normalised queries": ("Qwen3ForCausalLM", {**SMALL, "head_dim": 8}),
    "sliding window": ("MistralForCausalLM", {**SMALL, "sliding_window": 8}),
    "a head with bias": ("PhiForCausalLM", SMALL),
    "multiplied logits": ("CohereForCausalLM", {**SMALL, "logit_scale": 0.25}),
    "divided logits": ("GraniteForCausalLM", {**SMALL, "logits_scaling": 8.0, "embedding_multiplier": 3.0}),
    "scaled embeddings": ("Gemma3ForCausalLM", {**SMALL, "head_dim": 8, "sliding_window": 8}),
    "an encoder with absolute positions": ("BartForConditionalGeneration", TWO_STACKS),
    "a sinusoidal encoder": ("PegasusForConditionalGeneration", TWO_STACKS),
}


def build(architecture: str, values: dict[str, Any]) -> FrozenModel:
    kind = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = kind(kind.config_class(**values)).float()
    width = network.get_input_embeddings().weight.shape[1]
    fingerprint = BaseModelFingerprint(architecture, width, "0" * 64, "1" * 64, name=architecture)
    return freeze(network, tiny_tokenizer(has_pad=True), fingerprint)


@pytest.fixture(params=FAMILIES.values(), ids=list(FAMILIES), scope="module")
def model(request: pytest.FixtureRequest) -> FrozenModel:
    return build(*request.param)


def test_a_mixed_batch_answers_each_row_as_if_it_were_alone(model: FrozenModel) -> None:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randn(length, model.hidden_size, generator=generator) for length in (2, 9, 20)]
    inputs = [torch.randint(3, 480, (length,), generator=generator).tolist() for length in (25, 4, 1)]
    labels = (7, 70, 300)

    together = label_logits(model, lay_out(model, prompts, inputs), labels)

    for row, (prompt, ids) in enumerate(zip(prompts, inputs, strict=True)):
        alone = label_logits(model, lay_out(model, [prompt], [ids]), labels)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


def test_without_prompts_the_answer_is_the_published_models_own(model: FrozenModel) -> None:
    ids = [[5, 6, 7], [300, 9, 10, 11, 12, 13]]

    ours = model.head.logits(answer_hidden(model, lay_out(model, [None, None], ids)))

    for row in range(2):
        extra = (
            {"decoder_input_ids": torch.tensor([[model.decoder_start_token_id]])} if model.is_encoder_decoder else {}
        )
        published = model.network(input_ids=torch.tensor([ids[row]]), **extra).logits[0, -1]
        torch.testing.assert_close(ours[row], published, atol=1e-4, rtol=0)


def test_logits_that_are_computed_in_an_unknown_way_are_refused() -> None:
    class Sharpened(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * 1.5
            return outputs

    network = Sharpened(transformers.LlamaConfig(**SMALL))
    fingerprint = BaseModelFingerprint("Sharpened", 32, "0" * 64, "1" * 64, name="sharpened")

    with pytest.raises(
        InvalidInputError, match="Sharpened computes its logits in a way that promptstore does not know"
    ):
        freeze(network, tiny_tokenizer(), fingerprint)


def test_a_network_without_language_model_head_is_refused() -> None:
    network = transformers.LlamaModel(transformers.LlamaConfig(**SMALL))
    fingerprint = BaseModelFingerprint("LlamaModel", 32, "0" * 64, "1" * 64, name="headless")

    with pytest.raises(InvalidInputError, match="LlamaModel has no language-model head"):
        freeze(network, tiny_tokenizer(), fingerprint)
