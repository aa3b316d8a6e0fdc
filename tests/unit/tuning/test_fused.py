"""The fused passes' layout and masks, with plain products in the compiled kernel's place; tests/gpu runs the kernel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama
from promptstore.tuning import fused_attention
from promptstore.tuning.fused import FusedPasses
from promptstore.tuning.fused_attention import BLOCK, Span, block_masks, lay_end_to_end, mask_tensors
from promptstore.tuning.packed import PackedPasses
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item, Passes
from tests.unit.tuning.test_passes import PREFIXES, items_of, prompts_of, run

MakeModel = Callable[[], FrozenModel]


def by_blocks(
    query: Tensor, key: Tensor, value: Tensor, *, score_mod: Any, block_mask: BlockMask, scale: float, **_: object
) -> Tensor:
    """What the kernel computes: products of the blocks that are listed, and of no others."""
    mask = create_mask(block_mask.mask_mod, 1, 1, query.shape[2], key.shape[2], device="cpu")
    copies = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(copies, 1) for each in (key, value))
    mixed = []
    for at, listed in enumerate(block_mask.to_dense()[0, 0].bool()):
        own = slice(at * BLOCK, (at + 1) * BLOCK)
        seen = listed.repeat_interleave(BLOCK)
        scores = query[:, :, own] @ key[:, :, seen].transpose(2, 3) * (scale or query.shape[-1] ** -0.5)
        if score_mod is not None:
            scores = score_mod(scores, None, None, None, None)
        shares = scores.masked_fill(~mask[:, :, own, seen], -torch.inf).softmax(-1)
        mixed.append(shares @ value[:, :, seen])
    return torch.cat(mixed, dim=2)


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_attention, "_kernel", lambda: by_blocks)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma])
@pytest.mark.parametrize("limit", [10**6, 30])
def test_fused_is_padded(make: MakeModel, limit: int) -> None:
    model = make()
    losses, gradients = run(model, PaddedPasses(model), items_of())
    fused_losses, fused_gradients = run(model, PackedPasses(model, FusedPasses(model)), items_of(), limit)

    torch.testing.assert_close(fused_losses, losses, atol=2e-4, rtol=0)
    for ours, theirs in zip(fused_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma])
def test_packed_in_one_pass_is_packed_in_two(make: MakeModel) -> None:
    """Prompts and rows in one forward pass, or the prompts before the rows."""
    model = make()
    passes = PackedPasses(model)
    together, apart = (gradients(model, passes, is_whole=is_whole) for is_whole in (True, False))
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def gradients(model: FrozenModel, passes: Passes, *, is_whole: bool) -> list[Tensor]:
    prompts = prompts_of(model)
    open_pass = passes.open([Group(prompt, prefix) for prompt, prefix in zip(prompts, PREFIXES, strict=True)])
    torch.autograd.backward(open_pass.states(items_of(), is_whole=is_whole).square().sum())
    open_pass.close()
    return [prompt.grad for prompt in prompts if prompt is not None and prompt.grad is not None]


def test_a_block_holds_one_group() -> None:
    starts, size = lay_end_to_end([[100, 60], [5], [128]])
    assert starts == [[0, 100], [2 * BLOCK], [3 * BLOCK]]
    assert size == 4 * BLOCK


def test_every_visible_pair_lies_in_a_listed_block() -> None:
    prefixes = [Span(0, 20), Span(3 * BLOCK, 150)]
    rows = [Span(20, 200, 20, 0), Span(220, 40, 20, 0), Span(3 * BLOCK + 150, 9, 150, 1)]
    masks = block_masks(mask_tensors([*prefixes, *rows], 5 * BLOCK, [None, 16], "cpu"), [None, 16])
    places = [*range(260), *range(3 * BLOCK, 3 * BLOCK + 159)]  # what is left fills the blocks
    for mask in masks.values():
        listed = mask.to_dense().bool().repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[0, 0]
        assert not bool((dense(mask) & ~listed)[places].any())
        assert listed[0].sum() == BLOCK
        assert listed[219].sum() == 2 * BLOCK
    assert int(dense(masks[None])[3 * BLOCK + 158].sum()) == 159
    assert int(dense(masks[16])[3 * BLOCK + 158].sum()) == 16


def dense(mask: BlockMask) -> Tensor:
    return create_mask(mask.mask_mod, 1, 1, *mask.seq_lengths, device="cpu")[0, 0]


def test_numbers_that_are_none_stay_in_their_group() -> None:
    model = tiny_llama()
    require_isolation(model, PackedPasses(model, FusedPasses(model)))


def require_isolation(model: FrozenModel, passes: Passes) -> None:
    """A prompt whose numbers are none gives another of the same pass none."""
    healthy, broken = (torch.randn(4, model.hidden_size).requires_grad_() for _ in range(2))
    with torch.no_grad():
        broken.fill_(torch.nan)
    items = [Item(at % 2, item.example) for at, item in enumerate(items_of())]
    open_pass = passes.open([Group(healthy), Group(broken)])
    torch.autograd.backward(open_pass.states(items, is_whole=True).square().sum())
    open_pass.close()
    assert healthy.grad is not None
    assert broken.grad is not None
    assert bool(healthy.grad.isfinite().all())
    assert bool(broken.grad.isnan().any())
