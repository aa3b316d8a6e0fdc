import math

import pytest
import torch

from promptstore.errors import InvalidInputError
from promptstore.runtime.sampling import Sampler, Sampling


def _draws(sampling: Sampling, logits: torch.Tensor, count: int) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(logits).token_id for _ in range(count)]


def test_the_default_takes_the_likeliest_token() -> None:
    assert Sampler(Sampling(1)).choose(torch.tensor([0.1, 3.0, 2.9])).token_id == 1


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    logits = torch.zeros(1000)
    once = _draws(Sampling(1, temperature=1.0, seed=7), logits, 20)
    assert once == _draws(Sampling(1, temperature=1.0, seed=7), logits, 20)
    assert once != _draws(Sampling(1, temperature=1.0, seed=8), logits, 20)
    assert once != _draws(Sampling(1, temperature=1.0), logits, 20)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = _draws(Sampling(1, temperature=1.0, seed=0), probabilities.log(), 4000)
    found = torch.bincount(torch.tensor(draws), minlength=4) / 4000
    # Four standard errors of the largest share.
    assert torch.allclose(found, probabilities, atol=4 * math.sqrt(0.25 / 4000))


def test_temperature_sharpens_the_distribution() -> None:
    logits = torch.tensor([0.6, 0.4]).log()
    cold = _draws(Sampling(1, temperature=0.2, seed=0), logits, 1000).count(0)
    hot = _draws(Sampling(1, temperature=2.0, seed=0), logits, 1000).count(0)
    assert cold > 840
    assert hot < 600


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(_draws(Sampling(1, temperature=1.0, top_p=0.79, seed=0), logits, 300)) == {0, 1}
    assert set(_draws(Sampling(1, temperature=1.0, top_p=0.81, seed=0), logits, 300)) == {0, 1, 2}
    assert set(_draws(Sampling(1, temperature=1.0, top_p=1e-9, seed=0), logits, 50)) == {0}


def test_log_probabilities_are_those_of_the_model_not_of_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    token = Sampler(Sampling(1, temperature=0.5, seed=1, top_logprobs=2)).choose(logits)
    expected = logits.log_softmax(-1)
    assert token.logprob == pytest.approx(float(expected[token.token_id]))
    assert [index for index, _ in token.top] == [0, 1]
    assert [value for _, value in token.top] == pytest.approx(expected[:2].tolist())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("stop", ("",)),
        ("stop", tuple("abcdefghi")),
        ("seed", 2**63),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=field):
        Sampling(**{"max_tokens": 1, field: value})  # type: ignore[arg-type]
