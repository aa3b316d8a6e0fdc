"""What a server makes of the model that its settings name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptstore.errors import InvalidInputError
from promptstore.lm.compilers import missing_compiler
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.head import read_head
from promptstore.lm.onednn import has_bf16
from promptstore.lm.ordered import OrderedLinear
from promptstore.serving.engines import open_engine, own_engine
from promptstore.serving.options import ServerOptions
from promptstore.settings import Settings
from promptstore.testing.tiny_models import tiny_llama


@pytest.mark.skipif(not has_bf16(), reason="this processor computes no bfloat16")
def test_in_bf16_on_a_cpu_every_engine_computes_with_ordered_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_llama()
    network = tiny.network.to(torch.bfloat16)
    model = replace(tiny, network=network, head=read_head(network))
    monkeypatch.setattr("promptstore.serving.engines.open_model", lambda *_, **__: model)

    served = open_engine(Settings(cache_dir=tmp_path), ServerOptions(parallel_batches=2))

    engines = served.answerer._engines  # type: ignore[attr-defined]
    models: list[FrozenModel] = [engine._model for engine in engines]
    weights = [[each.weight for each in model.network.modules() if isinstance(each, OrderedLinear)] for model in models]
    assert len(weights) == 2
    assert len(weights[0]) == 2 * 7
    assert all(ours is theirs for ours, theirs in zip(*weights, strict=True))
    assert all(model.head.ordered is not None for model in models)
    assert "computed once per version" in served.decoding


@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")
def test_a_server_that_is_told_so_answers_with_a_compiled_network(
    compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstore.serving.engines.open_model", lambda *_, **__: tiny_llama())
    settings = Settings(cache_dir=compiled_folder.parent)

    served = open_engine(settings, ServerOptions(parallel_batches=2, compile_network=True))

    engines = served.answerer._engines  # type: ignore[attr-defined]
    assert all(engine._model.compiled is not None and engine._model.row_attention is not None for engine in engines)
    assert served.decoding.endswith("the network is compiled")
    assert list(compiled_folder.glob("*.pass"))


def test_a_compiled_network_that_answers_otherwise_is_refused() -> None:
    wrong = replace(tiny_llama(), compiled=lambda _, embedded, __: torch.ones_like(embedded))
    with pytest.raises(InvalidInputError, match="gives other answers; leave --compile out"):
        own_engine(wrong, ServerOptions())


def test_what_vllm_runs_is_not_ours_to_compile() -> None:
    options = ServerOptions(engine="vllm", vllm_url="http://127.0.0.1:8000", compile_network=True)
    with pytest.raises(InvalidInputError, match="--compile is for the own engine"):
        options.check(has_keys=True)
