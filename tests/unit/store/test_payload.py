"""A soft prompt as bytes."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save

from promptstore.core.ensemble import COMBINATIONS, Combination
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError
from promptstore.store.payload import decode_payload, encode_payload, payload_shape
from promptstore.testing.store_samples import sample_fingerprint, sample_prompt

MODEL = sample_fingerprint(4)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
prompts = st.integers(1, 9).flatmap(
    lambda hidden: arrays(np.float32, st.tuples(st.integers(1, 12), st.just(hidden)), elements=finite).map(
        lambda values: SoftPrompt(values, sample_fingerprint(hidden))
    )
)


@given(prompts)
def test_a_payload_reads_back_bit_for_bit_here_and_in_safetensors(prompt: SoftPrompt) -> None:
    data = encode_payload(prompt)
    assert decode_payload(data, prompt.fingerprint).embeddings.tobytes() == prompt.embeddings.tobytes()
    assert payload_shape(data).dimensions == prompt.embeddings.shape
    assert data == save({"prompt_embeddings": prompt.embeddings})
    assert load(data)["prompt_embeddings"].tobytes() == prompt.embeddings.tobytes()


@given(prompts, st.integers(2, 5), st.sampled_from(COMBINATIONS))
def test_an_ensemble_reads_back_bit_for_bit_here_and_in_safetensors(
    prompt: SoftPrompt, count: int, combination: Combination
) -> None:
    members = [SoftPrompt(prompt.embeddings + np.float32(at), prompt.fingerprint) for at in range(count)]
    together = SoftPrompt.together(members, combination)
    data = encode_payload(together)
    found = decode_payload(data, prompt.fingerprint)
    assert found.ensemble == together.ensemble
    assert found.embeddings.tobytes() == together.embeddings.tobytes()
    stacked = load(data)["prompt_embeddings"]
    assert stacked.shape == payload_shape(data).dimensions == (count, *prompt.embeddings.shape)
    assert data == save({"prompt_embeddings": stacked}, metadata={"combination": combination})


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: struct.pack("<Q", len(data)) + data))
def test_arbitrary_bytes_are_corrupt_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(CorruptError, match="payload"):
        decode_payload(data, MODEL)


@given(st.data())
def test_no_flipped_bit_of_the_head_goes_unnoticed(data: st.DataObject) -> None:
    one = sample_prompt()
    prompt = data.draw(st.sampled_from([one, SoftPrompt.together([one, one])]))
    good = encode_payload(prompt)
    head = len(good) - prompt.embeddings.nbytes
    bit = data.draw(st.integers(0, 8 * head - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        decode_payload(bytes(bad), MODEL)


def _file(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _tensor(dtype: str = "F32", shape: tuple[int, ...] = (1, 4), size: int = 16) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000) + b" " * 100_000,
        _file({"prompt_embeddings": _tensor("F16", size=8)}, bytes(8)),
        _file({"prompt_embeddings": _tensor("F64", size=32)}, bytes(32)),
        _file({"prompt_embeddings": _tensor("I32")}, bytes(16)),
        _file({"prompt_embeddings": _tensor(shape=(4,))}, bytes(16)),
        _file({"prompt_embeddings": _tensor(shape=(1, 2, 2))}, bytes(16)),
        _file({"prompt_embeddings": _tensor(shape=(0, 4), size=0)}, b""),
        _file({"prompt_embeddings": _tensor(shape=(-1, -4))}, bytes(16)),
        _file({"prompt_embeddings": _tensor(shape=(2**40, 4))}, bytes(16)),
        _file({"prompt_embeddings": _tensor(shape=(4, 2**40))}, bytes(16)),
        _file({"prompt_embeddings": _tensor(), "more": _tensor(size=0)}, bytes(16)),
        _file({"other": _tensor()}, bytes(16)),
        _file({"__metadata__": {"a": "b"}, "prompt_embeddings": _tensor()}, bytes(16)),
        _file({"prompt_embeddings": _tensor()}, bytes(15)),
        _file({"prompt_embeddings": _tensor()}, bytes(17)),
        _file(b"[" * 200, bytes(16)),
        _file({"prompt_embeddings": _tensor()}, np.array([0, 1, np.nan, 2], "<f4").tobytes()),
        _file({"prompt_embeddings": _tensor()}, np.array([0, 1, -np.inf, 2], "<f4").tobytes()),
        _file({"prompt_embeddings": _tensor(shape=(1, 5), size=20)}, bytes(20)),
    ],
)
def test_a_file_that_is_not_exactly_one_prompt_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_payload(data, MODEL)


def test_the_plain_case_of_those_files_is_fine() -> None:
    data = _file({"prompt_embeddings": _tensor()}, bytes(16))
    assert decode_payload(data, MODEL).embeddings.shape == (1, 4)
