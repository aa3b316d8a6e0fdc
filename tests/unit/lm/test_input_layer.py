"""The input end of a model, read without the rest of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.input_layer import load_input_layer
from promptstore.lm.model_files import ModelFiles
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5


def saved(model: FrozenModel, folder: Path) -> ModelFiles:
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return ModelFiles(folder, "tiny")


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma])
def test_it_embeds_as_the_whole_model_does_and_has_its_fingerprint(make: type, tmp_path: Path) -> None:
    model: FrozenModel = make()
    layer = load_input_layer(saved(model, tmp_path))
    ids = torch.tensor([3, 9, 200, 3])
    assert torch.equal(layer.embed(ids), model.embed(ids[None])[0])
    assert layer.fingerprint.identity == model.fingerprint.identity
    assert (layer.max_length, layer.dtype, layer.end_ids) == (model.max_length, torch.float32, frozenset({1}))


def test_it_is_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    files = saved(tiny_llama(), tmp_path)
    assert load_input_layer(files, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(InvalidInputError, match="int8"):
        load_input_layer(files, dtype="int8")


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="encoder-decoder"):
        load_input_layer(saved(tiny_t5(), tmp_path))


def test_a_folder_without_its_table_or_with_one_of_another_size_is_refused(tmp_path: Path) -> None:
    files = saved(tiny_llama(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError, match=r"no tensor model\.embed_tokens\.weight"):
        load_input_layer(files)
    save_file({**weights, "model.embed_tokens.weight": table[:100].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError, match=r"\[100, 32\]"):
        load_input_layer(files)
