"""One sequence for each prompt gives the states and gradients of padded rows, and leaves large steps to packing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama
from promptstore.tuning import grouped, packed
from promptstore.tuning.grouped import GroupedPasses
from promptstore.tuning.packed import PackedPasses, choose_passes
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item, Passes
from tests.unit.tuning.test_fused import require_isolation
from tests.unit.tuning.test_passes import PREFIXES, items_of, prompts_of

MakeModel = Callable[[], FrozenModel]
DECODERS = [tiny_llama, tiny_gpt2, tiny_gemma]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences there were in each call of the grouped attention."""
    seen: list[int] = []

    def attend(module: object, query: Tensor, *rest: object, **named: object) -> object:
        seen.append(len(query))
        return whole(module, query, *rest, **named)  # type: ignore[arg-type]

    whole = grouped.attend
    monkeypatch.setattr(grouped, "attend", attend)
    return seen


def states(model: FrozenModel, passes: Passes, *, is_whole: bool = True) -> tuple[Tensor, list[Tensor]]:
    prompts = prompts_of(model)
    open_pass = passes.open([Group(prompt, prefix) for prompt, prefix in zip(prompts, PREFIXES, strict=True)])
    found = open_pass.states(items_of(), is_whole=is_whole)
    torch.autograd.backward(found.square().sum())
    open_pass.close()
    return found.detach(), [prompt.grad for prompt in prompts if prompt is not None and prompt.grad is not None]


@pytest.mark.parametrize("make", DECODERS)
def test_grouped_is_padded(make: MakeModel, calls: list[int]) -> None:
    model = make()
    expected, gradients = states(model, PaddedPasses(model))
    found, grouped_gradients = states(model, PackedPasses(model, GroupedPasses(model)))
    assert calls == [4] * model.network.config.num_hidden_layers
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert len(gradients) == 3
    for ours, theirs in zip(grouped_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("limit", ["MOST_POSITIONS", "MOST_PAIRS"])
def test_large_steps_are_packed(limit: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    expected, _ = states(model, PackedPasses(model))
    monkeypatch.setattr(grouped, limit, 30)
    found, _ = states(model, PackedPasses(model, GroupedPasses(model)))
    assert not calls
    torch.testing.assert_close(found, expected)


def test_parts_of_a_step_and_passes_without_gradients_are_packed(calls: list[int]) -> None:
    model = tiny_llama()
    passes = PackedPasses(model, GroupedPasses(model))
    states(model, passes, is_whole=False)
    with torch.no_grad():
        passes.open([Group(None)]).states([Item(0, item.example) for item in items_of()], is_whole=True)
    assert not calls


def test_numbers_that_are_none_stay_in_their_group() -> None:
    model = tiny_llama()
    require_isolation(model, PackedPasses(model, GroupedPasses(model)))


@pytest.mark.parametrize("make", DECODERS)
def test_a_gpu_gets_it_where_nothing_is_compiled(
    make: MakeModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    states(model, choose_passes(model))
    assert not calls
    monkeypatch.setattr(packed, "may_fuse", lambda _: True)
    passes = choose_passes(model)
    calls.clear()
    states(model, passes)
    assert calls
