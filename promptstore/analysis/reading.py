"""A reading of a prompt: what its virtual tokens lie near, against a control, as a value."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from promptstore.analysis.nearest import (
    CHUNK_ROWS,
    Neighbours,
    cosines_between,
    mean_of,
    nearest_tokens,
    random_like,
    tightness,
)
from promptstore.errors import InvalidInputError

CAUTION = (
    "Near tokens are not an explanation: prompts of equal accuracy can be made to lie near any text at all, "
    "unrelated or contrary to the task (Khashabi et al. 2022). Read them beside the control."
)
CONTROL_VECTORS = 64


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A vocabulary token near a virtual token."""

    token: str
    token_id: int
    cosine: float


@dataclass(frozen=True, slots=True)
class VirtualToken:
    """One row of a prompt. norm: relative to the table's median. tightness: the mean cosine of two neighbours."""

    index: int
    norm: float
    tightness: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """The same measures on random vectors with the table's mean and deviation: what chance alone gives."""

    vectors: int
    tightness_mean: float
    tightness_deviation: float
    nearest_cosine_mean: float
    nearest_cosine_deviation: float


@dataclass(frozen=True, slots=True)
class LabelTrace:
    """A label's first token among the neighbours of a virtual token. rank: 1 is the nearest."""

    label: str
    token: str
    virtual_token: int
    rank: int
    cosine: float


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What a prompt's virtual tokens lie near.

    labels: where label words persist, nearest first. duplicates: groups of virtual tokens that point the same way; a
    prompt with many may be longer than its task needs. alike: [P, P], the cosine of every two virtual tokens about the
    table's mean.
    """

    virtual_tokens: tuple[VirtualToken, ...]
    control: Control
    labels: tuple[LabelTrace, ...]
    duplicates: tuple[tuple[int, ...], ...]
    alike: tuple[tuple[float, ...], ...]
    caution: str = CAUTION

    @property
    def distinct_virtual_tokens(self) -> int:
        """How many virtual tokens are left when each group of duplicates counts once."""
        return len(self.virtual_tokens) - sum(len(group) - 1 for group in self.duplicates)

    def to_table(self) -> list[dict[str, Any]]:
        """One row per virtual token, for people."""
        return [
            {
                "virtual token": each.index,
                "nearest": " ".join(repr(neighbour.token) for neighbour in each.neighbours),
                "cosine": round(each.neighbours[0].cosine, 3),
                "tightness": round(each.tightness, 3),
                "control": round(self.control.tightness_mean, 3),
                "norm": round(each.norm, 2),
            }
            for each in self.virtual_tokens
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {**asdict(self), "distinct_virtual_tokens": self.distinct_virtual_tokens}


def read_prompt(
    prompt: Tensor,
    embeddings: Tensor,
    *,
    text_of: Callable[[int], str],
    labels: Mapping[str, int] | None = None,
    k: int = 5,
    duplicate_cosine: float = 0.9,
    seed: int = 0,
) -> PromptReading:
    """Reads a prompt against the embedding table it was fitted beside.

    prompt: [P, H]. embeddings: [V, H], the table as the model feeds it, of the tokens to look among. text_of: a token's
    text. labels: per label the id of the token that stands for it. k: neighbours per virtual token. duplicate_cosine:
    virtual tokens at least this alike are duplicates. seed: draws the control.

    Raises:
        InvalidInputError: prompt and table differ in width, or k is not 2 to V.
    """
    _check(prompt, embeddings, k)
    prompt = prompt.detach().to(embeddings.device).float()
    neighbours = nearest_tokens(prompt, embeddings, k)
    tight = tightness(neighbours, embeddings)
    alike = cosines_between(prompt, about=mean_of(embeddings))
    norms = prompt.norm(dim=1) / _median_norm(embeddings)
    virtual_tokens = tuple(
        VirtualToken(index, float(norms[index]), float(tight[index]), _named(neighbours, index, text_of))
        for index in range(len(prompt))
    )
    return PromptReading(
        virtual_tokens=virtual_tokens,
        control=_control(embeddings, k, seed),
        labels=_label_traces(virtual_tokens, labels or {}),
        duplicates=_duplicates(alike, duplicate_cosine),
        alike=tuple(tuple(row) for row in alike.tolist()),
    )


def _named(neighbours: Neighbours, index: int, text_of: Callable[[int], str]) -> tuple[Neighbour, ...]:
    pairs = zip(neighbours.ids[index].tolist(), neighbours.cosines[index].tolist(), strict=True)
    return tuple(Neighbour(text_of(token_id), token_id, cosine) for token_id, cosine in pairs)


def _control(embeddings: Tensor, k: int, seed: int) -> Control:
    found = nearest_tokens(random_like(embeddings, CONTROL_VECTORS, seed=seed), embeddings, k)
    tight = tightness(found, embeddings)
    nearest = found.cosines[:, 0]
    return Control(
        CONTROL_VECTORS, float(tight.mean()), float(tight.std()), float(nearest.mean()), float(nearest.std())
    )


def _label_traces(virtual_tokens: tuple[VirtualToken, ...], labels: Mapping[str, int]) -> tuple[LabelTrace, ...]:
    names = {token_id: label for label, token_id in labels.items()}
    traces = [
        LabelTrace(names[found.token_id], found.token, each.index, rank, found.cosine)
        for each in virtual_tokens
        for rank, found in enumerate(each.neighbours, start=1)
        if found.token_id in names
    ]
    return tuple(sorted(traces, key=lambda trace: -trace.cosine))


def _duplicates(cosines: Tensor, threshold: float) -> tuple[tuple[int, ...], ...]:
    """Groups of two or more virtual tokens, each like the first of its group."""
    alike = (cosines >= threshold).tolist()
    groups: list[tuple[int, ...]] = []
    grouped: set[int] = set()
    for first in range(len(alike)):
        group = tuple(other for other in range(first, len(alike)) if alike[first][other] and other not in grouped)
        if first not in grouped and len(group) > 1:
            groups.append(group)
            grouped.update(group)
    return tuple(groups)


def _median_norm(embeddings: Tensor) -> Tensor:
    return torch.cat([part.float().norm(dim=1) for part in torch.split(embeddings, CHUNK_ROWS)]).median()


def _check(prompt: Tensor, embeddings: Tensor, k: int) -> None:
    if prompt.ndim != 2 or embeddings.ndim != 2 or prompt.shape[1] != embeddings.shape[1]:
        raise InvalidInputError(
            f"a prompt of shape {list(prompt.shape)} cannot be read against a table of shape {list(embeddings.shape)}"
        )
    if not 2 <= k <= len(embeddings):
        raise InvalidInputError(f"k is {k}, expected 2 to {len(embeddings)}")
