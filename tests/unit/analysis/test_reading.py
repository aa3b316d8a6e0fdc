"""A reading finds what was put there, and its control tells it from chance."""

import json

import pytest
import torch

from promptstore.analysis.figure import draw_reading
from promptstore.analysis.nearest import CHUNK_ROWS, nearest_tokens, random_like, tightness
from promptstore.analysis.reading import PromptReading, read_prompt
from promptstore.errors import InvalidInputError


def clustered_table(groups: int = 40, size: int = 6, width: int = 32) -> torch.Tensor:
    """A table [groups * size, width] whose tokens lie in tight groups, as words of one meaning do."""
    generator = torch.Generator().manual_seed(77)
    centres = torch.randn(groups, 1, width, generator=generator)
    return (centres + 0.2 * torch.randn(groups, size, width, generator=generator)).reshape(-1, width)


def read(prompt: torch.Tensor, table: torch.Tensor, **more: object) -> PromptReading:
    return read_prompt(prompt, table, text_of=lambda token: f"t{token}", **more)  # type: ignore[arg-type]


def test_a_virtual_token_that_is_a_token_has_it_as_nearest_whatever_its_length() -> None:
    table = clustered_table()

    reading = read(torch.stack([table[7] * 3, table[100] * 0.1]), table)

    first, second = reading.virtual_tokens
    assert [each.neighbours[0].token for each in (first, second)] == ["t7", "t100"]
    assert first.neighbours[0].cosine == pytest.approx(1, abs=1e-5)
    assert {each.token_id for each in first.neighbours} <= set(range(6, 12)), "its own group, 6 to 11"
    assert first.norm > 2
    assert second.norm < 0.5


def test_neighbours_in_a_table_of_several_chunks_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(2 * CHUNK_ROWS + 5, 8, generator=generator).to(torch.bfloat16)
    vectors = torch.randn(3, 8, generator=generator)

    found = nearest_tokens(vectors, table, 4)

    whole = torch.nn.functional.cosine_similarity(vectors[:, None], table.float()[None], dim=-1).topk(4, dim=1)
    assert torch.equal(found.ids, whole.indices)
    torch.testing.assert_close(found.cosines, whole.values)


def test_a_prompt_of_words_is_tighter_than_the_control_and_noise_is_not() -> None:
    lonely = torch.randn(3000, 32, generator=torch.Generator().manual_seed(4))
    table = torch.cat([clustered_table(), lonely])
    words = read(table[[3, 50, 77]], table)
    noise = read(random_like(table, 12, seed=99), table)

    limit = words.control.tightness_mean + 2 * words.control.tightness_deviation
    assert all(each.tightness > limit for each in words.virtual_tokens)
    mean = sum(each.tightness for each in noise.virtual_tokens) / 12
    assert abs(mean - noise.control.tightness_mean) < noise.control.tightness_deviation


def test_tightness_is_the_mean_cosine_of_two_neighbours() -> None:
    pair = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    table = torch.cat([pair, -pair])

    found = nearest_tokens(torch.tensor([[1.0, 0.1, 0.0]]), table, 2)

    assert found.ids.tolist() == [[0, 1]]
    assert float(tightness(found, table)[0]) == pytest.approx(0.6)


def test_a_direction_that_all_tokens_share_makes_nothing_alike() -> None:
    lonely = torch.randn(500, 32, generator=torch.Generator().manual_seed(4))

    plain, shifted = (read(table[[3, 50]], table) for table in (lonely, lonely + 20))

    assert shifted.control.nearest_cosine_mean > 0.95, "in plain cosines everything is near everything"
    assert shifted.control.tightness_mean < plain.control.tightness_mean + 0.1
    assert shifted.duplicates == ()


def test_label_words_that_persist_are_found_with_their_rank() -> None:
    table = clustered_table()

    reading = read(table[[3, 50]], table, labels={"positive": 3, "negative": 200})

    (trace,) = reading.labels
    assert (trace.label, trace.token, trace.virtual_token, trace.rank) == ("positive", "t3", 0, 1)


def test_virtual_tokens_that_point_the_same_way_are_counted_once() -> None:
    table = clustered_table()
    a, b, c = table[0], table[60], table[120]

    reading = read(torch.stack([a, b, a * 2, c, b + 0.01, a]), table)

    assert reading.duplicates == ((0, 2, 5), (1, 4))
    assert reading.distinct_virtual_tokens == 3


def test_the_same_seed_gives_the_same_reading() -> None:
    table = clustered_table()

    assert read(table[:3], table, seed=5) == read(table[:3], table, seed=5)


def test_a_reading_goes_out_as_json_table_and_figure() -> None:
    table = clustered_table()
    prompt = table[[3, 50, 3]]
    reading = read_prompt(prompt, table, text_of=lambda token: f" $t\n{token}", labels={"positive": 3})

    as_json = json.loads(json.dumps(reading.to_json()))
    figure = draw_reading(reading)
    figure.canvas.draw()

    assert as_json["virtual_tokens"][1]["neighbours"][0]["token_id"] == 50
    assert as_json["duplicates"] == [[0, 2]]
    assert "Khashabi" in as_json["caution"]
    assert [row["virtual token"] for row in reading.to_table()] == [0, 1, 2]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [r" \$t\n3", r" \$t\n50", r" \$t\n3"]


def test_a_prompt_of_another_width_or_a_bad_k_is_refused() -> None:
    table = clustered_table()

    with pytest.raises(InvalidInputError, match=r"shape \[2, 31\] cannot be read against a table of shape \[240, 32\]"):
        read(torch.zeros(2, 31), table)
    with pytest.raises(InvalidInputError, match="k is 1, expected 2 to 240"):
        read(table[:2], table, k=1)
