"""A model folder is loaded whole or refused with the reason."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from promptstore.errors import CorruptError, InvalidInputError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.placement import choose_device, choose_dtype, choose_placement
from promptstore.lm.scoring import label_logits
from promptstore.lm.source import describe_source, open_model
from promptstore.testing.tiny_models import tiny_llama, tiny_t5


def saved(model: FrozenModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.network.to(dtype).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def opened(source: Path | str, *, dtype: str = "float32") -> FrozenModel:
    return open_model(str(source), cache_dir=Path("/nonexistent"), device="cpu", dtype=dtype)


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_a_folder_opens_as_the_model_that_was_saved(make: type, tmp_path: Path) -> None:
    model: FrozenModel = make()

    loaded = opened(saved(model, tmp_path / "tiny"))

    assert loaded.fingerprint.identity == model.fingerprint.identity
    assert loaded.fingerprint.name == "tiny"
    ours, theirs = (label_logits(each, lay_out(each, [None], [[5, 6, 7]]), (8, 9)) for each in (model, loaded))
    assert torch.equal(ours, theirs)


def test_the_dtype_of_loading_takes_no_part_in_the_fingerprint(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path / "tiny", torch.bfloat16)

    models = [opened(folder, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]

    assert [model.dtype for model in models] == [torch.float32, torch.bfloat16, torch.float16]
    assert len({model.fingerprint.identity for model in models}) == 1
    assert len({model.weights_digest_now() for model in models}) == 3, "what is live does differ"


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    first, second = (opened(saved(tiny_llama(seed=seed), tmp_path / str(seed))) for seed in (0, 1))

    assert first.fingerprint.weights_digest != second.fingerprint.weights_digest
    assert first.fingerprint.tokenizer_digest == second.fingerprint.tokenizer_digest


def test_a_model_stored_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidInputError, match=r"has no weights for lm_head\.weight of LlamaForCausalLM"):
        opened(folder)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)

    with pytest.raises(InvalidInputError, match="no causal or encoder-decoder language model"):
        opened(tmp_path)


def test_a_masked_language_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_llama().tokenizer.save_pretrained(tmp_path)

    with pytest.raises(InvalidInputError, match="BertForMaskedLM"):
        opened(tmp_path)


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_llama().network.save_pretrained(tmp_path)

    with pytest.raises(InvalidInputError, match="has no tokenizer"):
        opened(tmp_path)


def test_a_truncated_weights_file_is_called_corrupt(tmp_path: Path) -> None:
    path = saved(tiny_llama(), tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CorruptError, match="fetch the model again"):
        opened(tmp_path)


def test_weights_that_do_not_fit_the_configuration_are_called_corrupt(tmp_path: Path) -> None:
    path = saved(tiny_llama(), tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 80}))

    with pytest.raises(CorruptError, match=r"config\.json and weights have different shapes"):
        opened(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    path = saved(tiny_llama(), tmp_path) / "model.safetensors"
    path.unlink()

    with pytest.raises(NotFoundError, match=r"holds no model\.safetensors"):
        opened(tmp_path)


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    saved(tiny_llama(), tmp_path)
    (tmp_path / "config.json").write_text("{")

    with pytest.raises((InvalidInputError, CorruptError), match=tmp_path.name):
        opened(tmp_path)


def test_an_architecture_of_the_future_is_refused(tmp_path: Path) -> None:
    saved(tiny_llama(), tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama99", "architectures": ["Llama99ForCausalLM"]})
    )

    with pytest.raises(InvalidInputError, match="llama99"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["tpu", "cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"device '{name}' cannot be used"):
        choose_device(name)


def test_an_unknown_dtype_is_refused_and_auto_is_one_that_a_cpu_computes() -> None:
    with pytest.raises(
        InvalidInputError, match="dtype 'fp8' is unknown; use auto, float32, bfloat16, float16, int8, int4"
    ):
        choose_dtype("fp8", torch.device("cpu"))

    assert choose_dtype("auto", torch.device("cpu")) in {torch.float32, torch.bfloat16}


def test_a_network_spread_over_all_devices_answers_as_on_one(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path)
    on_one = opened(folder)

    spread = open_model(str(folder), cache_dir=tmp_path, device="balanced", dtype="float32")

    assert choose_placement("balanced", "float32").loading == {"device_map": "balanced"}
    prompt = torch.ones(3, 32)
    batches = (lay_out(model, [prompt.to(model.device)], [[5, 6, 7]]) for model in (on_one, spread))
    ours, theirs = (label_logits(model, batch, (8, 9)) for model, batch in zip((on_one, spread), batches, strict=True))
    torch.testing.assert_close(theirs.cpu(), ours, atol=1e-4, rtol=0)


def test_a_quantised_base_gives_prompts_gradients_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved(tiny_llama(hidden_size=64), tmp_path)
    plain = opened(folder)

    model = opened(folder, dtype="int8")

    assert any(weight.dtype in {torch.int8, torch.uint8} for weight in model.network.parameters())
    assert model.fingerprint == plain.fingerprint
    before = model.weights_digest_now()
    prompt = torch.ones(3, 64, requires_grad=True)
    logits = label_logits(model, lay_out(model, [prompt, None], [[5, 6, 7], [8] * 20]), (8, 9))
    (gradient,) = torch.autograd.grad(logits.sum(), [prompt])
    assert bool((gradient.abs().sum(dim=1) > 0).all())
    assert model.weights_digest_now() == before


def test_without_the_library_that_quantises_it_says_what_to_install() -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")

    with pytest.raises(
        InvalidInputError, match=r"dtype int8 needs bitsandbytes; pip install 'promptstore\[quantised\]'"
    ):
        choose_placement("cpu", "int8")


def test_a_form_of_weights_that_would_silently_give_no_gradient_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="int4 gives prompts no gradient on a CPU"):
        choose_placement("cpu", "int4")


@pytest.mark.parametrize("source", ["smollm2", "openai:gpt-4", ""])
def test_an_unknown_kind_of_source_is_refused_with_the_known_ones(source: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"hf:<repository>\[@<revision>\], a model folder, a \.gguf file, or asset:"
    ):
        opened(source)


def test_a_repository_without_prefix_gets_a_hint() -> None:
    with pytest.raises(NotFoundError, match=r"for a model of the hub write hf:qwen/qwen3$"):
        opened("qwen/qwen3")


def test_a_path_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "model", tmp_path / "model.gguf"):
        with pytest.raises(NotFoundError, match=f"there is no model at {path}$"):
            opened(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")

    with pytest.raises(InvalidInputError, match=r"is a file but no \.gguf"):
        opened(tmp_path / "model.bin")


def test_an_unknown_asset_is_refused_and_one_not_fetched_says_how(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="assets are: asset:smollm2-135m"):
        open_model("asset:gpt5", cache_dir=tmp_path)
    for ask in (open_model, describe_source):
        with pytest.raises(NotFoundError, match="run `promptstore assets fetch`"):
            ask("asset:smollm2-135m", cache_dir=tmp_path)
