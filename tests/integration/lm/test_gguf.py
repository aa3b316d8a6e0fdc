"""A GGUF file is converted once, whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from promptstore.errors import CorruptError
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_logits
from promptstore.lm.source import describe_source, open_model
from promptstore.testing.tiny_models import tiny_llama


def write_gguf(path: Path, *, seed: int = 0) -> Any:
    """Writes a tiny llama as llama.cpp does, with other names and query and key rows in another order; returns it."""
    model = tiny_llama(seed=seed)
    config = model.network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, model.tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.network.named_parameters():
        values = weight.detach().numpy()
        if "q_proj" in name:
            values = _interleaved(values, config.num_attention_heads)
        if "k_proj" in name:
            values = _interleaved(values, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.network


def _interleaved(values: Any, heads: int) -> Any:
    return values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _write_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([vocabulary.get(index, f"<unused{index}>") for index in range(size)])
    writer.add_token_types([3 if index < 3 else 1 for index in range(size)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def test_a_gguf_opens_as_the_model_it_was_made_from(tiny_gguf: Path, tmp_path: Path) -> None:
    original = tiny_llama()

    model = open_model(str(tiny_gguf), cache_dir=tmp_path, device="cpu", dtype="float32")

    assert model.fingerprint.architecture == "LlamaForCausalLM"
    assert model.fingerprint.name == "tiny.gguf"
    weights = dict(original.network.named_parameters())
    for name, weight in model.network.named_parameters():
        torch.testing.assert_close(weight, weights[name].to(torch.bfloat16).float(), atol=0, rtol=0)
    text = "the film was great"
    assert model.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]


def test_the_second_start_converts_nothing_and_has_the_same_fingerprint(tiny_gguf: Path, tmp_path: Path) -> None:
    assert describe_source(str(tiny_gguf), cache_dir=tmp_path).endswith("GGUF file")
    first = open_model(str(tiny_gguf), cache_dir=tmp_path, device="cpu", dtype="float32")
    (folder,) = (tmp_path / "models").iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns

    second = open_model(str(tiny_gguf), cache_dir=tmp_path, device="cpu", dtype="bfloat16")

    assert second.fingerprint == first.fingerprint
    assert [folder] == list((tmp_path / "models").iterdir())
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_another_file_in_the_same_place_is_converted_anew(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, seed=0)
    first = open_model(str(path), cache_dir=tmp_path, device="cpu", dtype="float32")
    write_gguf(path, seed=1)

    second = open_model(str(path), cache_dir=tmp_path, device="cpu", dtype="float32")

    assert first.fingerprint.weights_digest != second.fingerprint.weights_digest
    ours, theirs = (label_logits(each, lay_out(each, [None], [[5, 6, 7]]), (8, 9)) for each in (first, second))
    assert not torch.allclose(ours, theirs, atol=0.01)


def test_a_file_that_is_no_gguf_is_called_corrupt_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really" * 100)

    with pytest.raises(CorruptError, match=r"broken\.gguf cannot be read as a GGUF model"):
        open_model(str(path), cache_dir=tmp_path / "cache")

    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_truncated_gguf_is_called_corrupt(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-5000])

    with pytest.raises(CorruptError, match=r"short\.gguf cannot be read"):
        open_model(str(path), cache_dir=tmp_path / "cache")


NO_ROOM = """
import resource, sys
from pathlib import Path
from promptstore.lm.source import open_model
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    open_model(sys.argv[1], cache_dir=Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_no_room_for_the_conversion_is_said_and_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk: it fails the same write, and needs no rights."""
    cache = tmp_path / "cache"

    run = [sys.executable, "-c", NO_ROOM, str(tiny_gguf), str(cache)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("StoreUnavailableError the cache folder"), done
    assert list((cache / "models").iterdir()) == []


CONVERT = """
import sys
from pathlib import Path
from promptstore.lm.source import open_model
print(open_model(sys.argv[1], cache_dir=Path(sys.argv[2]), device="cpu").fingerprint.weights_digest)
"""


def test_processes_that_convert_one_file_at_once_agree(tiny_gguf: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-c", CONVERT, str(tiny_gguf), str(tmp_path)]

    all_three = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=300)[0] for process in all_three}

    assert [process.returncode for process in all_three] == [0, 0, 0]
    assert len(printed) == 1
    assert len(list((tmp_path / "models").iterdir())) == 1
