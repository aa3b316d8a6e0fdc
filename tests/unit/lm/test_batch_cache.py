"""Rows come, leave and grow in a batch's cache; what each one holds is its own."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from promptstore.lm.keys_values import BatchCache, KeysValues, aligned

LAYERS, HEADS, WIDTH = 2, 3, 4


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def row(length: int) -> KeysValues:
    return KeysValues(torch.randn(LAYERS, HEADS, length, WIDTH), torch.randn(LAYERS, HEADS, length, WIDTH + 1))


def same(found: KeysValues, expected: KeysValues) -> bool:
    return torch.equal(found.keys, expected.keys) and torch.equal(found.values, expected.values)


def test_a_row_from_the_end_takes_the_place_of_one_that_leaves() -> None:
    rows = [row(length) for length in (3, 5, 2, 4)]
    cache = aligned(rows, room=8)
    places = cache.keep([0, 2, 3])
    assert (places, cache.rows) == ([0, 2, 1], 3)
    assert all(same(cache.slots(place), rows[at]) for place, at in zip(places, (0, 2, 3), strict=True))


def test_a_newcomer_takes_a_free_place_and_nothing_else_moves() -> None:
    rows = [row(3), row(5), row(4)]
    cache = aligned(rows, room=8)
    buffers = cache.keys, cache.values
    assert cache.keep([0, 1]) == [0, 1]
    newcomer = row(2)
    cache.join([newcomer])
    assert all(now is before for now, before in zip((cache.keys, cache.values), buffers, strict=True))
    assert [same(cache.slots(place), each) for place, each in enumerate([rows[0], rows[1], newcomer])] == [True] * 3


@pytest.mark.parametrize("newcomers", [[7], [1, 1, 1]], ids=["longer than any", "more than places"])
def test_where_there_is_no_room_the_cache_grows(newcomers: list[int]) -> None:
    rows = [row(3), row(5)]
    cache = aligned(rows, room=8)
    cache.keep([0, 1])
    joining = [row(length) for length in newcomers]
    cache.join(joining)
    assert all(same(cache.slots(place), each) for place, each in enumerate([*rows, *joining]))


def test_masked_slots_hold_numbers() -> None:
    """0 * NaN is NaN: what is behind the mask still takes part."""
    cache = aligned([row(6), row(6)], room=2)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    cache.keep([])
    cache.join([row(2), row(6)])
    assert not any(part[:, :, :, : cache.end].isnan().any() for part in (cache.keys, cache.values))


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_coming_and_leaving_keeps_every_row(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    first = row(4)
    cache, held = aligned([first], room=3), {0: first}
    for _ in range(40):
        if held and rng.random() < 0.4:
            left = sorted(held)
            rng.shuffle(left)
            left = left[: rng.randrange(1, len(left) + 1)]
            held = dict(zip(cache.keep(left), [held[place] for place in left], strict=True))
        else:
            joining = [row(rng.randrange(1, 9)) for _ in range(rng.randrange(1, 4))]
            held |= dict(enumerate(joining, start=cache.rows))
            cache.join(joining)
        grow(cache, held)
        assert sorted(held) == list(range(cache.rows))
        assert all(same(cache.slots(place), each) for place, each in held.items())


def grow(cache: BatchCache, held: dict[int, KeysValues]) -> None:
    """What a step of the model does: every row one slot longer."""
    cache.make_room(1)
    cache.keys[:, : cache.rows, :, cache.end] = 1.0
    cache.values[:, : cache.rows, :, cache.end] = 1.0
    cache.end += 1
    cache.stops = [cache.end] * cache.rows
    for place, each in held.items():
        held[place] = KeysValues(*(_longer(part) for part in (each.keys, each.values)))


def _longer(part: Tensor) -> Tensor:
    return torch.cat([part, torch.ones_like(part[:, :, :1])], dim=2)
