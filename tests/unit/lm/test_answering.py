"""What a model is made for answering alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from promptstore.lm import packed
from promptstore.lm.answering import for_answers
from promptstore.lm.compilers import missing_compiler
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.keys_values import aligned, compute_keys_values
from promptstore.lm.packed import enable_packing, run_packed, step_packed
from promptstore.testing.tiny_models import tiny_llama
from tests.unit.lm.test_architectures import FAMILIES, build


def refuse_to_attend(*_: object) -> Tensor:
    raise AssertionError("torch attends")


def states(model: FrozenModel, lengths: Sequence[int]) -> Tensor:
    """After the inputs of some rows under one prompt, and after two more tokens each."""
    enable_packing(model)
    known = compute_keys_values(model, model.embeddings[5:9].detach(), (11, 12))
    inputs = [list(range(20 + row, 20 + row + length)) for row, length in enumerate(lengths)]
    rows, first = run_packed(model, [known] * len(inputs), inputs)
    cache = aligned(rows.whole(), room=4)
    steps = [step_packed(model, cache, [token + row for row in range(len(inputs))]) for token in (60, 61)]
    return torch.cat([first, *steps])


@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")
@pytest.mark.parametrize("family", ["normalised queries", "sliding window", "scaled embeddings", "rotary on a part"])
def test_on_a_cpu_rows_are_attended_to_by_the_kernel(
    family: str, compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [1, 9, 4, 30]
    expected = states(build(*FAMILIES[family]), lengths)
    monkeypatch.setattr(packed, "_attention_over", refuse_to_attend)
    found = states(for_answers(build(*FAMILIES[family]), folder=compiled_folder), lengths)
    assert torch.allclose(found, expected, atol=1e-4)


def test_without_a_compiler_torch_attends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    model = for_answers(tiny_llama(), folder=tmp_path)
    assert model.row_attention is None
    assert torch.equal(states(model, [2, 5]), states(tiny_llama(), [2, 5]))
