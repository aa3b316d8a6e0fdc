"""Tiny random models of four architectures, with a small real tokenizer: for tests that need no weights and no network.

Their weights are drawn wide enough (standard deviation 0.3) that a misplaced position or mask moves the logits by
tenths, not by rounding.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.lm.fingerprint import tensors_in_memory, tokenizer_digest, weights_digest
from promptstore.lm.frozen import FrozenModel, freeze

VOCABULARY = 512
START, END, PAD = "<s>", "</s>", "<pad>"
WORDS = (
    "positive negative neutral good bad great terrible yes no true false maybe tweet product film editorial "
    "news sport business science world question answer text review topic the a and was of it"
)
CORPUS = (
    *(f" {word}" for word in WORDS.split()),
    "Review: Sentiment: Question: Answer: Text: Source: Topic: Passage: Premise: Hypothesis:",
    "The government said on Monday that it would not raise taxes before the election .",
    "My new phone arrived quickly , works well , and the battery lasts two days !",
)


def tiny_tokenizer(*, is_encoder_decoder: bool = False, has_pad: bool = False, has_start: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences: any text round-trips, common words are one token.

    is_encoder_decoder: inputs end with the end token, as T5's do. has_start: inputs begin with the start token, as
    Gemma's do. has_pad: the vocabulary has a pad token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in CORPUS for _ in range(3)], trainer)
    template = f"{START} $A" if has_start else "$A"
    if is_encoder_decoder:
        template += f" {END}"
    if template != "$A":
        special = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    pad = {"pad_token": PAD} if has_pad or is_encoder_decoder else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, **pad)


def tiny_llama(*, seed: int = 0, hidden_size: int = 32, layers: int = 2, max_length: int = 512) -> FrozenModel:
    """Rotary positions, untied head, a vocabulary without pad token."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _frozen(LlamaForCausalLM, config, tiny_tokenizer(), "testing/tiny-llama", seed)


def tiny_gpt2(*, seed: int = 0, hidden_size: int = 32, layers: int = 2, max_length: int = 512) -> FrozenModel:
    """Learnt absolute positions, tied head."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=hidden_size,
        n_layer=layers,
        n_head=4,
        n_positions=max_length,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _frozen(GPT2LMHeadModel, config, tiny_tokenizer(has_pad=True), "testing/tiny-gpt2", seed)


def tiny_gemma(*, seed: int = 0, hidden_size: int = 32, layers: int = 2, max_length: int = 512) -> FrozenModel:
    """Scaled input embeddings, sliding-window layers, soft-capped logits, inputs that begin with a start token."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        query_pre_attn_scalar=hidden_size // 4,
        sliding_window=16,
        max_position_embeddings=max_length,
        initializer_range=0.3,
        attn_implementation="eager",  # transformers 5.17 takes one that leaves the soft cap out
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return _frozen(Gemma2ForCausalLM, config, tiny_tokenizer(has_pad=True, has_start=True), "testing/tiny-gemma", seed)


def tiny_t5(*, seed: int = 0, hidden_size: int = 32, layers: int = 2) -> FrozenModel:
    """Encoder-decoder with relative positions and a scaled, tied head, as in Lester et al. 2021."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=hidden_size,
        d_kv=hidden_size // 4,
        d_ff=2 * hidden_size,
        num_layers=layers,
        num_heads=4,
        initializer_factor=1.0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        decoder_start_token_id=2,
    )
    return _frozen(T5ForConditionalGeneration, config, tiny_tokenizer(is_encoder_decoder=True), "testing/tiny-t5", seed)


def _frozen(kind: Any, config: Any, tokenizer: Any, name: str, seed: int) -> FrozenModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config).float()
    fingerprint = BaseModelFingerprint(
        architecture=type(network).__name__,
        hidden_size=config.hidden_size,
        weights_digest=weights_digest(tensors_in_memory(network.named_parameters())),
        tokenizer_digest=tokenizer_digest(tokenizer),
        name=name,
    )
    return freeze(network, tokenizer, fingerprint)
