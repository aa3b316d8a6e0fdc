"""Several prompts of one task that answer as one (Lester et al. 2021, section 6)."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from promptstore.core.fields import Fields
from promptstore.errors import InvalidInputError

Combination = Literal["mean", "vote"]

COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
MAX_MEMBERS = 64


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How many prompts answer, and how their answers become one.

    combination: "mean" takes the label that is likeliest on average (of the log-probabilities), "vote" the label that
    most members say; a tie goes to the one of them that is likelier on average.

    Raises:
        InvalidInputError: fewer than 2 members or more than 64, or a combination that there is not.
    """

    members: int
    combination: Combination = "mean"

    def __post_init__(self) -> None:
        if not 2 <= self.members <= MAX_MEMBERS:
            raise InvalidInputError(f"an ensemble has 2 to {MAX_MEMBERS} members, found {self.members}")
        if self.combination not in COMBINATIONS:
            raise InvalidInputError(f"combination is {self.combination!r}, expected one of {', '.join(COMBINATIONS)}")

    def combine(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Log-probabilities of the labels as all members together give them.

        scores: of each member, [K, ..., labels], logits or log-probabilities over the task's labels. Returns
        [..., labels]. Under "vote" a label's probability is its share of the votes, smoothed by half a vote that is
        shared out as the members give it on average.
        """
        alone = _normalised(np.asarray(scores, dtype=np.float64))
        mean = _normalised(alone.mean(axis=0))
        if self.combination == "mean":
            return mean
        labels = np.arange(alone.shape[-1])
        votes = (alone.argmax(axis=-1)[..., None] == labels).sum(axis=0)
        # Half a vote, shared out, decides between equal whole numbers and nothing else.
        return np.asarray(np.log((votes + 0.5 * np.exp(mean)) / (len(alone) + 0.5)))

    def to_json(self) -> dict[str, Any]:
        return {"members": self.members, "combination": self.combination}

    @classmethod
    def from_json(cls, value: Any) -> "Ensemble":
        """Raises CorruptError, InvalidInputError: not what `to_json` gives."""
        fields = Fields(value, "ensemble")
        ensemble = cls(fields.integer("members"), cast("Combination", fields.text("combination")))
        fields.done()
        return ensemble


def _normalised(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-softmax over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
