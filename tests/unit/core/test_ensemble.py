"""Several prompts that answer as one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from promptstore.core.ensemble import COMBINATIONS, MAX_MEMBERS, Combination, Ensemble
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError, IncompatibleModelError, InvalidInputError
from promptstore.testing.store_samples import sample_fingerprint, sample_prompt

scores_of_members = array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-50, 50))
)


def test_the_vote_goes_to_the_majority_and_the_mean_to_the_likeliest() -> None:
    """Two members say b, a little; one says a, surely."""
    scores = np.log([[0.39, 0.41, 0.2], [0.39, 0.41, 0.2], [0.97, 0.02, 0.01]])
    assert Ensemble(3, "vote").combine(scores).argmax() == 1
    assert Ensemble(3, "mean").combine(scores).argmax() == 0
    mean, vote = (np.exp(Ensemble(3, each).combine(scores)) for each in COMBINATIONS)
    assert vote == pytest.approx((np.array([1, 2, 0]) + 0.5 * mean) / 3.5)


def test_a_tied_vote_goes_to_the_label_that_is_likelier_on_average() -> None:
    scores = np.log([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]])
    assert Ensemble(2, "vote").combine(scores).argmax() == 1
    assert Ensemble(2, "vote").combine(scores[::-1]).argmax() == 1


@given(scores_of_members, st.sampled_from(COMBINATIONS))
def test_the_result_is_a_distribution_that_no_constant_and_no_order_of_members_changes(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]], combination: Combination
) -> None:
    ensemble = Ensemble(len(scores), combination)
    found = ensemble.combine(scores)
    assert found.shape == scores.shape[1:]
    assert np.isfinite(found).all()
    assert np.exp(found).sum(axis=-1) == pytest.approx(1.0)
    assert ensemble.combine(scores[::-1]) == pytest.approx(found, abs=1e-9)
    assert Ensemble(len(scores), "mean").combine(scores + 7.0) == pytest.approx(
        Ensemble(len(scores), "mean").combine(scores), abs=1e-9
    )


@given(scores_of_members)
def test_a_label_that_every_member_says_wins(scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    scores[..., 1] = 60.0
    for combination in COMBINATIONS:
        assert (Ensemble(len(scores), combination).combine(scores).argmax(axis=-1) == 1).all()


def test_members_are_kept_as_they_were() -> None:
    members = [sample_prompt(seed) for seed in range(3)]
    together = SoftPrompt.together(members, "vote")
    assert together.ensemble == Ensemble(3, "vote")
    assert (together.num_virtual_tokens, together.hidden_size) == (2, 4)
    assert [each.embeddings.tolist() for each in together.members] == [each.embeddings.tolist() for each in members]
    assert all(each.ensemble is None for each in together.members)
    assert members[0].members == (members[0],)


def test_what_cannot_answer_together_is_refused() -> None:
    one = sample_prompt()
    with pytest.raises(InvalidInputError, match="2 to 64"):
        SoftPrompt.together([one])
    with pytest.raises(InvalidInputError, match="one length"):
        SoftPrompt.together([one, sample_prompt(num_virtual_tokens=3)])
    with pytest.raises(InvalidInputError, match="ensemble itself"):
        SoftPrompt.together([one, SoftPrompt.together([one, one])])
    with pytest.raises(IncompatibleModelError):
        SoftPrompt.together([one, SoftPrompt(one.embeddings, sample_fingerprint(model="other"))])
    with pytest.raises(InvalidInputError, match="no 3 prompts"):
        SoftPrompt(one.embeddings, one.fingerprint, Ensemble(3))
    for members, combination in ((1, "mean"), (MAX_MEMBERS + 1, "mean"), (2, "median")):
        with pytest.raises(InvalidInputError, match=r"members|combination"):
            Ensemble(members, combination)  # type: ignore[arg-type]


def test_only_what_it_writes_is_read() -> None:
    assert Ensemble.from_json(Ensemble(5, "vote").to_json()) == Ensemble(5, "vote")
    with pytest.raises(CorruptError, match="unknown field"):
        Ensemble.from_json({**Ensemble(5).to_json(), "weights": []})
