"""First values of a prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama, tiny_t5
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.examples import encode_rows
from promptstore.tuning.initialise import initialise
from promptstore.tuning.rows import Row

TASK = TaskSpec(
    name="t",
    kind="classification",
    template="{text}",
    data=DataSource("a", "b"),
    labels=(Label("good", "good"), Label("bad", "bad")),
)
ROWS = [
    {"text": "a great film", "label": "good"},
    {"text": "the worst film", "label": "bad"},
    *({"text": "a review of a film that was long, and long again, and longer than the others", "label": "good"},) * 8,
]


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


def values(
    model: FrozenModel,
    how: str,
    *,
    tokens: int = 7,
    seed: int = 0,
    task: TaskSpec = TASK,
    rows: Sequence[Row] = tuple(ROWS),
) -> torch.Tensor:
    config = TuneConfig(num_virtual_tokens=tokens, initialise=how, seed=seed)
    found = initialise(model, task, config, encode_rows(task, model, rows, num_virtual_tokens=tokens))
    assert found.shape == (tokens, model.hidden_size)
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize("how", ["random", "uniform", "vocabulary", "labels", "examples", "text:good film"])
def test_the_seed_alone_decides(model: FrozenModel, how: str) -> None:
    torch.manual_seed(1)
    first = values(model, how)
    torch.manual_seed(2)
    assert torch.equal(first, values(model, how))
    differs = not torch.equal(first, values(model, how, seed=1))
    assert differs == (how != "text:good film")


def test_random_values_have_the_scale_of_the_embeddings_as_the_network_sees_them() -> None:
    gemma = tiny_gemma()  # scales its embeddings on the way in
    seen = gemma.embed(torch.arange(512)[None])[0]
    found = values(gemma, "random", tokens=400)
    assert float(found.std() / seen.std()) == pytest.approx(1, abs=0.05)
    assert float(seen.std()) > 3 * float(gemma.embeddings.std())


def test_vocabulary_draws_different_rows_of_the_table_and_no_special_token(model: FrozenModel) -> None:
    special = model.embeddings[torch.tensor(model.tokenizer.all_special_ids)]
    found = values(model, "vocabulary", tokens=100)
    matches = (found[:, None] == model.embeddings[None]).all(-1)
    assert bool((matches.sum(1) >= 1).all())
    assert len({tuple(row.tolist()) for row in found}) == 100
    assert not bool((found[:, None] == special[None]).all(-1).any())


def test_vocabulary_of_the_n_most_common_stays_among_them(model: FrozenModel) -> None:
    found = values(model, "vocabulary:10", tokens=25)
    assert len({tuple(row.tolist()) for row in found}) == 10


def test_labels_come_first_and_sampled_tokens_fill_up(model: FrozenModel) -> None:
    found = values(model, "labels")
    for at, word in enumerate((" good", " bad")):
        ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        assert torch.allclose(found[at], model.embeddings[torch.tensor(ids)].mean(0))
    assert len({tuple(row.tolist()) for row in found}) == 7
    assert torch.equal(values(model, "labels", tokens=1)[0], found[0])


def plain(model: FrozenModel, text: str) -> list[int]:
    return [int(index) for index in model.tokenizer(text, add_special_tokens=False)["input_ids"]]


def rows_in(model: FrozenModel, tokens: torch.Tensor, *texts: str) -> list[str]:
    """Those of `texts` that `tokens` end with, one before the other, from the last on."""
    found = []
    while tokens.shape[0]:
        ends = [each for each in texts if is_end(model, tokens, each)]
        if not ends:
            break
        found.append(ends[0])
        tokens = tokens[: -len(plain(model, ends[0]))]
    return found


def is_end(model: FrozenModel, tokens: torch.Tensor, text: str) -> bool:
    wanted = model.embeddings[torch.tensor(plain(model, text))].float()
    return len(wanted) <= len(tokens) and torch.equal(tokens[-len(wanted) :], wanted)


@pytest.mark.parametrize("seed", range(4))
def test_examples_are_short_rows_with_their_answers_behind_the_labels(model: FrozenModel, seed: int) -> None:
    good, bad = "a great film good\n\n", "the worst film bad\n\n"
    whole = len(plain(model, good)) + len(plain(model, bad))
    found = values(model, "examples", tokens=2 + whole, seed=seed)
    assert torch.equal(found[:2], values(model, "labels")[:2])
    assert set(rows_in(model, found[2:], good, bad)) == {good, bad}
    shorter = values(model, "examples", tokens=2 + len(plain(model, good)), seed=seed)
    assert torch.equal(shorter[2:], found[-len(plain(model, good)) :])


def test_examples_are_repeated_where_rows_are_few_and_left_out_where_labels_fill_the_prompt(
    model: FrozenModel,
) -> None:
    row = "a great film good\n\n"
    found = values(model, "examples", tokens=2 + 2 * len(plain(model, row)), rows=ROWS[:1])
    assert rows_in(model, found[2:], row) == [row, row]
    assert torch.equal(values(model, "examples", tokens=2), values(model, "labels", tokens=2))


def test_a_prompt_behind_the_input_begins_as_with_labels(model: FrozenModel) -> None:
    after = replace(TASK, placement="after")
    assert torch.equal(values(model, "examples", task=after), values(model, "labels"))


def test_a_task_without_labels_begins_with_the_vocabulary_or_with_its_rows(model: FrozenModel) -> None:
    task = TaskSpec(name="g", kind="generation", template="{text}", data=DataSource("a", "b"))
    assert torch.equal(values(model, "labels", task=task), values(model, "vocabulary", task=task))
    row = "a great film good\n\n"
    found = values(model, "examples", task=task, tokens=len(plain(model, row)), rows=ROWS[:1])
    assert rows_in(model, found, row) == [row]


@pytest.mark.parametrize("how", ["labels", "examples"])
def test_an_encoders_prompt_holds_no_special_token(how: str) -> None:
    model = tiny_t5()
    found = values(model, how, tokens=30)
    special = model.embed(torch.tensor(model.tokenizer.all_special_ids)[None])[0]
    assert not bool((found[:, None] == special[None]).all(-1).any())


def test_a_text_is_repeated_or_cut_to_length(model: FrozenModel) -> None:
    ids = model.tokenizer("good film", add_special_tokens=False)["input_ids"]
    expected = model.embeddings[torch.tensor((ids * 20)[:20])]
    assert torch.equal(values(model, "text:good film", tokens=20), expected)
    assert torch.equal(values(model, "text:good film", tokens=1), expected[:1])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_gives_its_only_tensor(model: FrozenModel, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompt{suffix}"
    tensor = torch.randn(7, model.hidden_size)
    if suffix == ".npy":
        np.save(path, tensor.numpy())
    else:
        save_file({"prompt_embeddings": tensor}, path)
    assert torch.equal(values(model, f"file:{path}"), tensor)


def test_a_file_of_another_shape_is_refused_with_both_shapes(model: FrozenModel, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    save_file({"prompt_embeddings": torch.randn(7, 8)}, path)
    with pytest.raises(InvalidInputError, match=r"\[7, 8\], expected one tensor \[7, 32\]"):
        values(model, f"file:{path}")


def test_a_file_that_is_missing_or_broken_is_refused(model: FrozenModel, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        values(model, f"file:{tmp_path / 'absent.npy'}")
    for name in ("broken.npy", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(InvalidInputError, match=name):
            values(model, f"file:{tmp_path / name}")
