"""The soft prompt itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promptstore.core.ensemble import Combination, Ensemble
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import InvalidInputError

MAX_VIRTUAL_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class SoftPrompt:
    """A prompt and the model it belongs to (Lester et al. 2021, section 2), or several prompts that answer as one.

    embeddings: float32 [P, H], read-only, finite; row p is virtual token p, next to the input embeddings of the model.
    ensemble: then embeddings are [K·P, H], those of one member after the other; `None` for a single prompt.

    Raises:
        InvalidInputError: another dtype, rank or width, no rows, more than 4,096 rows of a member, NaN or infinity.
    """

    embeddings: npt.NDArray[np.float32]
    fingerprint: BaseModelFingerprint
    ensemble: Ensemble | None = None

    def __post_init__(self) -> None:
        check_embeddings(self.embeddings, self.fingerprint.hidden_size, self.ensemble)
        frozen = np.ascontiguousarray(self.embeddings).copy()
        frozen.setflags(write=False)
        object.__setattr__(self, "embeddings", frozen)

    @classmethod
    def together(cls, members: Sequence["SoftPrompt"], combination: Combination = "mean") -> "SoftPrompt":
        """An ensemble of single prompts of one length for one model.

        Raises:
            InvalidInputError: fewer than two, one that is an ensemble itself, or other lengths or models.
        """
        if any(member.ensemble is not None for member in members):
            raise InvalidInputError("a member of an ensemble is an ensemble itself; take its members")
        lengths = sorted({member.num_virtual_tokens for member in members})
        if len(lengths) > 1:
            raise InvalidInputError(f"members of an ensemble have {lengths} virtual tokens; they must be of one length")
        ensemble = Ensemble(len(members), combination)
        for member in members[1:]:
            member.fingerprint.require_match(members[0].fingerprint, "a member of an ensemble")
        return cls(np.concatenate([member.embeddings for member in members]), members[0].fingerprint, ensemble)

    @property
    def members(self) -> tuple["SoftPrompt", ...]:
        """Each prompt alone; a single prompt is its only member."""
        if self.ensemble is None:
            return (self,)
        return tuple(SoftPrompt(each, self.fingerprint) for each in np.split(self.embeddings, self.ensemble.members))

    @property
    def num_virtual_tokens(self) -> int:
        """P: positions that an input is preceded by, under each member."""
        return len(self.embeddings) // (1 if self.ensemble is None else self.ensemble.members)

    @property
    def hidden_size(self) -> int:
        return int(self.embeddings.shape[1])


def check_embeddings(embeddings: npt.NDArray[np.float32], hidden_size: int, ensemble: Ensemble | None = None) -> None:
    """Refuse what cannot be a prompt, or an ensemble of prompts, for a model of width `hidden_size`."""
    if embeddings.dtype != np.float32:
        raise InvalidInputError(f"prompt embeddings are {embeddings.dtype}, expected float32; convert them first")
    if embeddings.ndim != 2 or embeddings.shape[1] != hidden_size:
        raise InvalidInputError(
            f"prompt embeddings have shape {list(embeddings.shape)}, expected [P, {hidden_size}] for this base model"
        )
    members = 1 if ensemble is None else ensemble.members
    tokens, left_over = divmod(len(embeddings), members)
    if left_over:
        raise InvalidInputError(f"{len(embeddings)} rows are no {members} prompts of one length")
    if not 1 <= tokens <= MAX_VIRTUAL_TOKENS:
        raise InvalidInputError(f"prompt has {tokens} virtual tokens, expected 1 to {MAX_VIRTUAL_TOKENS}")
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise InvalidInputError(
            f"prompt embeddings hold NaN or infinity, first in virtual token {row}; the fit diverged"
        )
