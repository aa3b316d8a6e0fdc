"""Which fits run compiled. That they fit the same is tested on whatever device there is: tests/gpu."""

import pytest
import torch
from torch import Tensor, nn

from promptstore.errors import InvalidInputError
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import sentiment_job
from promptstore.tuning import compiled
from promptstore.tuning.compiled import WORTH_ROWS, choose_compiled
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fused_attention import Masks, Span, attend, block_masks, mask_tensors


def test_without_a_compiler_it_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidInputError, match="needs a C\\+\\+ compiler"):
        list(fit(tiny_llama(), [sentiment_job()], options=FitOptions(compile_layers=True)))


def test_unasked_only_a_long_fit_on_a_gpu_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    assert not choose_compiled(model, asked=None, rows=10 * WORTH_ROWS)
    monkeypatch.setattr(compiled, "may_fuse", lambda _: True)
    monkeypatch.setattr(compiled, "missing_compiler", lambda _: None)
    assert choose_compiled(model, asked=None, rows=WORTH_ROWS)
    assert not choose_compiled(model, asked=None, rows=WORTH_ROWS - 1)
    assert not choose_compiled(model, asked=False, rows=WORTH_ROWS)
    assert choose_compiled(model, asked=True, rows=1)
    monkeypatch.setattr(compiled, "missing_compiler", lambda _: "triton")
    assert not choose_compiled(model, asked=None, rows=WORTH_ROWS)


class Layer(nn.Module):
    """Attention as a compiled layer calls it, with a soft cap as Gemma's."""

    def __init__(self) -> None:
        super().__init__()
        self.cap = 50.0

    def forward(self, query: Tensor, key: Tensor, value: Tensor, masks: Masks) -> Tensor:
        return attend(self, query, key, value, None, masks=masks, softcap=self.cap)[0]


def test_a_compiled_layer_takes_any_number_of_tokens_without_being_traced_again() -> None:
    traces = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        traces.append(graph)
        return graph.forward

    layer = torch.compile(Layer(), dynamic=True, backend=backend)
    for size in (256, 384, 640, 512, 896):
        masks = block_masks(mask_tensors([Span(0, 20), Span(20, 150, 20, 0)], size, [None], "cpu"), [None])
        query, key, value = torch.randn(1, 4, size, 16), torch.randn(1, 2, size, 16), torch.randn(1, 2, size, 16)
        with torch.no_grad():
            assert layer(query, key, value, masks).shape == (1, size, 4, 16)
    assert len(traces) <= 2  # one size looks like another by chance, once
