"""Prompts in the forms of other tools, and in bundles."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError, IncompatibleModelError, InvalidInputError, NotFoundError, PromptStoreError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.bundle import read_bundle, write_bundle
from promptstore.store.interchange import export_prompt, import_prompt
from promptstore.store.payload import encode_payload
from promptstore.store.prompt_store import PulledPrompt
from promptstore.testing.store_samples import sample_fingerprint, sample_prompt, sample_store, sample_task

MODEL = sample_fingerprint()


@pytest.fixture
def pulled() -> PulledPrompt:
    prompts = sample_store(MemoryObjectStore())
    prompts.publish(sample_prompt(), sample_task(), metrics={"accuracy": 0.5})
    prompts.attest("sst2:1", "gate", {"verdict": "pass"})
    return prompts.pull("sst2:1", for_model=None)


@pytest.mark.parametrize("name", ["adapter", "prompt.npy", "prompt.safetensors", "prompt.bundle"])
def test_a_round_trip_keeps_the_payloads_digest(pulled: PulledPrompt, tmp_path: Path, name: str) -> None:
    path = export_prompt(pulled, tmp_path / name)
    back = import_prompt(path, MODEL)
    assert encode_payload(back) == encode_payload(pulled.prompt)
    published = sample_store(MemoryObjectStore()).publish(back, sample_task("other"))
    assert published.payload == pulled.version.payload


def test_a_bundle_published_elsewhere_is_the_same_version(pulled: PulledPrompt) -> None:
    bundle = read_bundle(write_bundle(pulled, "origin"))
    elsewhere = sample_store(MemoryObjectStore())
    manifest = bundle.manifest
    version = elsewhere.publish(bundle.prompt, manifest.task, provenance=manifest.provenance, metrics=manifest.metrics)
    assert version.digest == pulled.version.digest
    assert bundle.origin["store"] == "origin"
    assert [(each.kind, each.body) for each in bundle.statements] == [("gate", {"verdict": "pass"})]
    assert write_bundle(pulled) == write_bundle(pulled)


def test_an_ensemble_travels_in_a_bundle_and_in_nothing_else(tmp_path: Path) -> None:
    prompts = sample_store(MemoryObjectStore())
    prompts.publish(SoftPrompt.together([sample_prompt(1), sample_prompt(2)], "vote"), sample_task())
    pulled = prompts.pull("sst2:1", for_model=None)
    for name in ("adapter", "prompt.npy", "prompt.safetensors"):
        with pytest.raises(InvalidInputError, match=r"export a \.bundle instead"):
            export_prompt(pulled, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    bundle = read_bundle(export_prompt(pulled, tmp_path / "prompt.bundle").read_bytes())
    version = sample_store(MemoryObjectStore()).publish(bundle.prompt, bundle.manifest.task)
    assert version.digest == pulled.version.digest


@given(st.data())
def test_no_flipped_bit_in_a_bundle_changes_a_prompt(data: st.DataObject) -> None:
    prompts = sample_store(MemoryObjectStore())
    prompts.publish(sample_prompt(), sample_task())
    good = write_bundle(prompts.pull("sst2:1", for_model=None))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        bundle = read_bundle(bytes(bad))
    except CorruptError:
        return
    assert encode_payload(bundle.prompt) == encode_payload(sample_prompt())
    assert bundle.manifest == read_bundle(good).manifest


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(CorruptError):
        read_bundle(data)


def test_a_bundle_with_more_or_compressed_entries_is_refused(pulled: PulledPrompt) -> None:
    good = write_bundle(pulled)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for extra, how in (({"../evil": b""}, zipfile.ZIP_STORED), ({}, zipfile.ZIP_DEFLATED)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as archive:
            for name, data in {**entries, **extra}.items():
                archive.writestr(name, data)
        with pytest.raises(CorruptError, match="bundle"):
            read_bundle(file.getvalue())


def test_a_bundle_of_another_model_is_refused(pulled: PulledPrompt, tmp_path: Path) -> None:
    path = export_prompt(pulled, tmp_path / "x.bundle")
    with pytest.raises(IncompatibleModelError):
        import_prompt(path, sample_fingerprint(model="huge"))


def test_half_precision_is_widened_without_changing_a_value(tmp_path: Path) -> None:
    values = np.array([[0.5, -2, 3.25, 0]], np.float16)
    save_file({"prompt_embeddings": values}, tmp_path / "half.safetensors")
    assert import_prompt(tmp_path / "half.safetensors", MODEL).embeddings.tolist() == [[0.5, -2, 3.25, 0]]
    np.save(tmp_path / "half.npy", values)
    assert import_prompt(tmp_path / "half.npy", MODEL).embeddings.tolist() == [[0.5, -2, 3.25, 0]]


def test_bfloat16_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_torch({"prompt_embeddings": values}, tmp_path / "b.safetensors")
    assert import_prompt(tmp_path / "b.safetensors", MODEL).embeddings.tolist() == values.float().tolist()


def _adapter(folder: Path, config: object, **tensors: npt.NDArray[Any]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_the_decoders_rows_of_an_encoder_decoder_adapter_are_left_out(tmp_path: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "num_transformer_submodules": 2}
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert import_prompt(_adapter(tmp_path / "a", config, prompt_embeddings=rows), MODEL).embeddings.tolist() == (
        rows[:2].tolist()
    )


def test_what_is_no_prompt_is_refused_with_its_name(tmp_path: Path) -> None:
    rows = np.zeros((2, 4), np.float32)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    lora = _adapter(tmp_path / "lora", {"peft_type": "LORA"}, prompt_embeddings=rows)
    other = _adapter(tmp_path / "other", config, weights=rows)
    wide = _adapter(tmp_path / "wide", config, prompt_embeddings=np.zeros((2, 5), np.float32))
    whole = _adapter(tmp_path / "int", config, prompt_embeddings=np.zeros((2, 4), np.int32))
    listed = _adapter(tmp_path / "list", [], prompt_embeddings=rows)
    short = _adapter(tmp_path / "short", {**config, "num_virtual_tokens": 9}, prompt_embeddings=rows)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "double.npy", np.zeros((2, 4)))
    np.save(tmp_path / "nan.npy", np.full((2, 4), np.nan, np.float32))
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "x.pt").touch()
    files = [
        tmp_path / name for name in ("object.npy", "double.npy", "nan.npy", "junk.safetensors", "empty.npy", "x.pt")
    ]
    for path in (lora, other, wide, whole, listed, short, *files):
        with pytest.raises(InvalidInputError):
            import_prompt(path, MODEL)
    with pytest.raises(NotFoundError):
        import_prompt(tmp_path / "nothing.npy", MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        import_prompt(tmp_path / "empty", MODEL)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash_the_import(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("fuzz.npy", "fuzz.safetensors", "fuzz.bundle"):
        (folder / name).write_bytes(data)
        with pytest.raises(PromptStoreError):
            import_prompt(folder / name, MODEL)


def test_an_unknown_ending_or_place_is_refused(pulled: PulledPrompt, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected a folder"):
        export_prompt(pulled, tmp_path / "x.bin")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="give another place"):
        export_prompt(pulled, tmp_path / "file" / "x.npy")


def test_peft_loads_what_we_export_and_we_load_what_peft_saves(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=4, vocab_size=16, n_positions=32)
    base = transformers.GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    fingerprint = replace(sample_fingerprint(), name=str(tmp_path / "base"))
    prompts = sample_store(MemoryObjectStore())
    prompts.publish(SoftPrompt(sample_prompt(3).embeddings, fingerprint), sample_task())
    export_prompt(prompts.pull("sst2:1", for_model=None), tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    found = loaded.get_prompt_embedding_to_save("default")
    assert torch.equal(found, torch.from_numpy(sample_prompt(3).embeddings.copy()))
    loaded.save_pretrained(tmp_path / "theirs")
    back = import_prompt(tmp_path / "theirs", MODEL)
    assert encode_payload(back) == encode_payload(sample_prompt(3))
    assert isinstance(back, SoftPrompt)
