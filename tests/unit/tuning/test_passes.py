"""Packed and padded passes give the same states and gradients, however rows are mixed and split."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.lm.frozen import FrozenModel, freeze
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer
from promptstore.tuning.answers import answer_losses
from promptstore.tuning.examples import Example
from promptstore.tuning.packed import PackedPasses, choose_passes
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item, Passes, split_by_cost

DECODERS = [tiny_llama, tiny_gpt2, tiny_gemma]
MakeModel = Callable[[], FrozenModel]

# Prompts of 1, 6 and 20 virtual tokens (beyond Gemma's window of 16), the bare model, with and without a shared prefix.
PREFIXES = [(), (7, 8), (), (9,)]


def prompts_of(model: FrozenModel) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    lengths = [1, 6, 20]
    made = [torch.randn(length, model.hidden_size, generator=generator).requires_grad_() for length in lengths]
    return [*made, None]


def items_of(lengths: Sequence[int] = (3, 17, 5, 9, 30, 4, 8, 12)) -> list[Item]:
    generator = torch.Generator().manual_seed(6)
    items = []
    for at, length in enumerate(lengths):
        group = at % 4
        ids = tuple(int(each) for each in torch.randint(3, 500, (length,), generator=generator))
        answer = tuple(range(20 + at, 21 + at + at % 3))
        items.append(Item(group, Example((*PREFIXES[group], *ids), answer, label=at % 2)))
    return items


def run(model: FrozenModel, passes: Passes, items: Sequence[Item], limit: int = 10**6) -> tuple[Tensor, list[Tensor]]:
    """Losses by item and the prompts' gradients; half of the groups choose among two labels."""
    prompts = prompts_of(model)
    groups = [Group(prompt, prefix) for prompt, prefix in zip(prompts, PREFIXES, strict=True)]
    labels = [(20, 31), (), (22, 33), ()]
    items = [
        Item(item.group, Example(item.example.input_ids, item.example.answer_ids[:1], item.example.label))
        if labels[item.group]
        else item
        for item in items
    ]
    open_pass = passes.open(groups)
    losses = torch.zeros(len(items))
    for part in split_by_cost(open_pass, items, limit):
        chosen = [items[at] for at in part]
        each = answer_losses(model, open_pass.states(chosen), chosen, labels)
        if each.requires_grad:
            torch.autograd.backward(each.sum())
        losses[part] = each.detach()
    open_pass.close()
    return losses, [prompt.grad for prompt in prompts if prompt is not None and prompt.grad is not None]


@pytest.mark.parametrize("make", DECODERS)
def test_packed_is_padded(make: MakeModel) -> None:
    model = make()
    losses, gradients = run(model, PaddedPasses(model), items_of())
    packed_losses, packed_gradients = run(model, PackedPasses(model), items_of())
    assert len(gradients) == 3
    torch.testing.assert_close(packed_losses, losses, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        assert float(theirs.norm()) > 0.01
        assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())


@pytest.mark.parametrize("make", [*DECODERS, tiny_t5])
@pytest.mark.parametrize("limit", [1, 20, 45])
def test_the_way_rows_are_split_changes_nothing(make: MakeModel, limit: int) -> None:
    model = make()
    passes = choose_passes(model)
    losses, gradients = run(model, passes, items_of())
    split_losses, split_gradients = run(model, passes, items_of(), limit)
    torch.testing.assert_close(split_losses, losses, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(split_gradients, gradients, strict=True):
        assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())


@pytest.mark.parametrize("make", [*DECODERS, tiny_t5])
def test_a_row_does_not_depend_on_the_others(make: MakeModel) -> None:
    model = make()
    passes = choose_passes(model)
    together, _ = run(model, passes, items_of())
    alone = torch.cat([run(model, passes, [item])[0] for item in items_of()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", DECODERS)
def test_a_prompt_that_is_not_a_number_stays_with_its_own_rows(make: MakeModel) -> None:
    model = make()
    prompts = prompts_of(model)
    healthy, broken = prompts[1], prompts[2]
    assert healthy is not None
    assert broken is not None
    with torch.no_grad():
        broken[3, 4] = torch.nan
    open_pass = PackedPasses(model).open([Group(healthy), Group(broken)])
    items = [Item(at % 2, item.example) for at, item in enumerate(items_of())]
    losses = answer_losses(model, open_pass.states(items), items, [(), ()])
    torch.autograd.backward(losses.sum())
    open_pass.close()
    assert bool(torch.isfinite(losses[0::2]).all())
    assert not bool(torch.isfinite(losses[1::2]).any())
    assert healthy.grad is not None
    assert bool(torch.isfinite(healthy.grad).all())


@pytest.mark.parametrize("make", DECODERS)
def test_architectures_that_take_packing_get_it_and_keep_their_own_attention(make: MakeModel) -> None:
    model = make()
    before = model.network.config._attn_implementation
    assert isinstance(choose_passes(model), PackedPasses)
    assert model.network.config._attn_implementation == before


def test_encoder_decoders_and_models_without_positions_are_padded() -> None:
    config = BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    fingerprint = BaseModelFingerprint("BloomForCausalLM", 32, "1" * 64, "2" * 64, "tiny-bloom")
    bloom = freeze(BloomForCausalLM(config), tiny_tokenizer(), fingerprint)
    for model in (bloom, tiny_t5()):
        assert isinstance(choose_passes(model), PaddedPasses)


def test_an_architecture_that_only_claims_to_take_packing_is_padded() -> None:
    model = tiny_llama()

    def forget_positions(_module: object, args: object, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
        return args, {**kwargs, "position_ids": None} if "packing" in kwargs else kwargs

    model.network.base_model.register_forward_pre_hook(forget_positions, with_kwargs=True)
    assert isinstance(choose_passes(model), PaddedPasses)


def test_rows_are_split_into_even_parts_within_the_limit() -> None:
    model = tiny_llama()
    open_pass = PackedPasses(model).open([Group(None)] * 4)
    items = items_of([40, 1, 3, 10, 10, 6, 30, 20])
    parts = split_by_cost(open_pass, items, 50)
    assert sorted(at for part in parts for at in part) == list(range(len(items)))
    costs = [sum(open_pass.cost(items[at]) for at in part) for part in parts]
    assert max(costs) <= 50
    assert len(parts) <= 4
