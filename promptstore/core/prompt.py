"""The soft prompt itself."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import InvalidInputError

MAX_VIRTUAL_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class SoftPrompt:
    """A prompt and the model it belongs to (Lester et al. 2021, section 2).

    embeddings: float32 [P, H], read-only, finite; row p is virtual token p, next to the input embeddings of the model.

    Raises:
        InvalidInputError: another dtype, rank or width, no rows, more than 4,096 rows, NaN or infinity.
    """

    embeddings: npt.NDArray[np.float32]
    fingerprint: BaseModelFingerprint

    def __post_init__(self) -> None:
        check_embeddings(self.embeddings, self.fingerprint.hidden_size)
        frozen = np.ascontiguousarray(self.embeddings).copy()
        frozen.setflags(write=False)
        object.__setattr__(self, "embeddings", frozen)

    @property
    def num_virtual_tokens(self) -> int:
        return int(self.embeddings.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.embeddings.shape[1])


def check_embeddings(embeddings: npt.NDArray[np.float32], hidden_size: int) -> None:
    """Refuse what cannot be a prompt for a model of width `hidden_size`."""
    if embeddings.dtype != np.float32:
        raise InvalidInputError(f"prompt embeddings are {embeddings.dtype}, expected float32; convert them first")
    if embeddings.ndim != 2 or embeddings.shape[1] != hidden_size:
        raise InvalidInputError(
            f"prompt embeddings have shape {list(embeddings.shape)}, expected [P, {hidden_size}] for this base model"
        )
    if not 1 <= embeddings.shape[0] <= MAX_VIRTUAL_TOKENS:
        raise InvalidInputError(f"prompt has {embeddings.shape[0]} virtual tokens, expected 1 to {MAX_VIRTUAL_TOKENS}")
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise InvalidInputError(
            f"prompt embeddings hold NaN or infinity, first in virtual token {row}; the fit diverged"
        )
