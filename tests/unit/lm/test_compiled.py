"""What is compiled serves any batch on any thread, is kept for the next start, and is refused where it cannot be."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm import compiled
from promptstore.lm.compiled import compile_network
from promptstore.lm.compilers import missing_compiler
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.head import read_head
from promptstore.lm.keys_values import aligned, compute_keys_values
from promptstore.lm.onednn import has_bf16
from promptstore.lm.ordered import order_weights
from promptstore.lm.packed import enable_packing, run_packed, step_packed
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama, tiny_t5

needs_compiler = pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")


def states(model: FrozenModel, lengths: Sequence[int]) -> Tensor:
    """After the inputs of some rows under one prompt, and after one more token each."""
    enable_packing(model)
    known = compute_keys_values(model, model.embeddings[5:9].detach(), (11, 12))
    inputs = [list(range(20 + row, 20 + row + length)) for row, length in enumerate(lengths)]
    packed, first = run_packed(model, [known] * len(inputs), inputs)
    return torch.cat(
        [first, step_packed(model, aligned(packed.whole(), room=4), [row + 60 for row in range(len(inputs))])]
    )


class Traced:
    """What the compiler gives."""

    def __init__(self, program: str) -> None:
        self.program = program

    def save_compiled_function(self, path: str) -> None:
        Path(path).write_text(self.program)

    def disable_guard_check(self) -> None:
        pass


def refuse_to_compile(*_: object, **__: object) -> Any:
    raise AssertionError("compiled again")


@needs_compiler
@pytest.mark.parametrize("lengths", [[1], [3], [1, 1], [2, 17, 5], [30] * 20])
def test_what_was_compiled_once_computes_any_batch(
    lengths: list[int], compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compile_network(tiny_llama(), folder=compiled_folder)
    monkeypatch.setattr(torch, "compile", refuse_to_compile)
    assert torch.allclose(states(model, lengths), states(tiny_llama(), lengths), atol=1e-5)


@needs_compiler
def test_it_is_kept_for_the_next_start_and_for_twins_on_other_threads(
    compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_network(tiny_llama(), folder=compiled_folder)
    monkeypatch.setattr(torch, "compile", refuse_to_compile)
    model = compile_network(tiny_llama(seed=1), folder=compiled_folder)  # other weights of the same network
    expected = states(tiny_llama(seed=1), [2, 9])

    def computed(twin: FrozenModel) -> list[Tensor]:
        torch.set_num_threads(1)
        return [states(twin, [2, 9]) for _ in range(10)]

    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(computed, [model.twin() for _ in range(3)]):
            assert all(torch.allclose(each, expected, atol=1e-5) for each in found)


@needs_compiler
def test_what_was_kept_and_is_damaged_is_compiled_again(
    compiled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_network(tiny_llama(), folder=compiled_folder)
    for kept in compiled_folder.glob("*.pass"):
        (tmp_path / kept.name).write_bytes(kept.read_bytes()[:1000])
    monkeypatch.setattr(compiled, "_traced", lambda _: Traced("again"))
    model = compile_network(tiny_llama(), folder=tmp_path)
    assert getattr(model.compiled, "program", "") == "again"
    assert b"again" in [each.read_bytes() for each in tmp_path.glob("*.pass")]


@needs_compiler
@pytest.mark.skipif(not has_bf16(), reason="this processor computes no bfloat16")
def test_ordered_weights_are_multiplied_in_their_order(compiled_folder: Path) -> None:
    def ordered() -> FrozenModel:
        tiny = tiny_llama()
        network = tiny.network.to(torch.bfloat16)
        return order_weights(replace(tiny, network=network, head=read_head(network)))

    found, expected = states(compile_network(ordered(), folder=compiled_folder), [2, 9]), states(ordered(), [2, 9])
    assert (found - expected).norm(dim=1).le(0.03 * expected.norm(dim=1)).all()


@needs_compiler
@pytest.mark.parametrize(("make", "reason"), [(tiny_gemma, "attention of its own"), (tiny_t5, "no positions")])
def test_a_network_that_cannot_be_compiled_is_refused(
    make: Callable[[], FrozenModel], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=f"cannot be compiled; leave --compile out: .*{reason}"):
        compile_network(make(), folder=tmp_path)


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidInputError, match=r"C\+\+ compiler.*leave --compile out"):
        compile_network(tiny_llama(), folder=tmp_path)


@needs_compiler
def test_where_nothing_can_be_kept_it_computes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "_traced", lambda _: Traced("never"))
    assert compile_network(tiny_llama(), folder=tmp_path / "file").compiled is not None
    assert "the next start compiles again" in caplog.text
