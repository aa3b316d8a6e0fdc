"""A model's identity comes from its stored bytes and its tokenizer's behaviour, and from nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptstore.errors import CorruptError, NotFoundError
from promptstore.lm.fingerprint import (
    BLOCK_BYTES,
    SAMPLED_BLOCKS,
    tensors_in_folder,
    tensors_in_memory,
    tokenizer_digest,
    weights_digest,
)
from promptstore.testing.tiny_models import tiny_llama, tiny_tokenizer


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = SAMPLED_BLOCKS * BLOCK_BYTES
    return {
        "embed.weight": torch.randn(large, 3, generator=generator).to(torch.bfloat16),
        "norm.weight": torch.randn(17, generator=generator),
        "scale": torch.tensor(0.5, dtype=torch.float16),
    }


def folder_digest(folder: Path) -> str:
    return weights_digest(tensors_in_folder(folder))


def test_memory_and_every_storage_form_have_one_digest(tmp_path: Path) -> None:
    values = tensors()
    (one, sharded, pickled) = (tmp_path / name for name in ("one", "sharded", "pickled"))
    for folder in (one, sharded, pickled):
        folder.mkdir()
    save_file(values, one / "model.safetensors")
    save_file({"norm.weight": values["norm.weight"]}, sharded / "model-00001-of-00002.safetensors")
    save_file({name: values[name] for name in ("embed.weight", "scale")}, sharded / "model-00002-of-00002.safetensors")
    (sharded / "model.safetensors.index.json").write_text(
        '{"weight_map": {"norm.weight": "model-00001-of-00002.safetensors",'
        ' "embed.weight": "model-00002-of-00002.safetensors", "scale": "model-00002-of-00002.safetensors"}}'
    )
    torch.save(values, pickled / "pytorch_model.bin")

    digests = {folder_digest(folder) for folder in (one, sharded, pickled)}

    assert digests == {weights_digest(tensors_in_memory(values))}


@pytest.mark.parametrize("name", ["embed.weight", "norm.weight", "scale"])
def test_any_tensor_that_changes_changes_the_digest(name: str) -> None:
    values = tensors()
    before = weights_digest(tensors_in_memory(values))

    values[name] = values[name] * 1.01

    assert weights_digest(tensors_in_memory(values)) != before


def test_name_dtype_and_shape_take_part() -> None:
    weight = torch.zeros(4, 6)
    variants = [
        {"a": weight},
        {"b": weight},
        {"a": weight.reshape(6, 4)},
        {"a": weight.to(torch.int32)},
        {"a": weight, "b": weight},
    ]

    assert len({weights_digest(tensors_in_memory(values)) for values in variants}) == len(variants)


def test_the_first_and_the_last_row_of_a_large_tensor_are_among_the_sampled() -> None:
    values = tensors()
    before = weights_digest(tensors_in_memory(values))
    for row in (0, -1):
        changed = {**values, "embed.weight": values["embed.weight"].clone()}
        changed["embed.weight"][row] += 1
        assert weights_digest(tensors_in_memory(changed)) != before


def test_a_truncated_file_is_called_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(CorruptError, match="ends within tensor"):
        folder_digest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_file_is_called_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CorruptError, match="is not a safetensors file"):
        folder_digest(tmp_path)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no model\.safetensors"):
        folder_digest(tmp_path)


def test_files_beside_the_model_take_no_part(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    before = folder_digest(tmp_path)

    save_file({"other": torch.ones(3)}, tmp_path / "consolidated.safetensors")

    assert folder_digest(tmp_path) == before


def test_what_transformers_saves_has_the_digest_of_the_live_weights(tmp_path: Path) -> None:
    model = tiny_llama()
    model.network.save_pretrained(tmp_path)

    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors"), "the head is not tied"
    assert folder_digest(tmp_path) == model.fingerprint.weights_digest


def test_a_tokenizers_digest_ignores_the_state_that_calls_leave() -> None:
    tokenizer = tiny_tokenizer(has_pad=True)
    before = tokenizer_digest(tokenizer)

    tokenizer(["good", "a bad film"], padding="longest", truncation=True, max_length=2)
    tokenizer.padding_side = "left"

    assert tokenizer_digest(tokenizer) == before


def test_a_tokenizers_digest_tells_vocabulary_and_added_tokens_apart() -> None:
    plain, with_start, with_end = (
        tiny_tokenizer(),
        tiny_tokenizer(has_start=True),
        tiny_tokenizer(is_encoder_decoder=True),
    )
    grown = tiny_tokenizer()
    grown.add_tokens(["promptstore"])

    assert len({tokenizer_digest(each) for each in (plain, with_start, with_end, grown)}) == 4


def test_a_saved_tokenizer_has_the_same_digest(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer(has_start=True)
    tokenizer.save_pretrained(tmp_path)

    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_digest(tokenizer)
