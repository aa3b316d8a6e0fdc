"""Nearest vocabulary tokens by cosine, in bounded memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

# 16,384 rows of 4,096 float32 are 256 MiB: tables of a quarter of a million rows are never held whole in float32.
CHUNK_ROWS = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest tokens of N vectors, nearest first. ids: [N, k]. cosines: float32 [N, k]."""

    ids: Tensor
    cosines: Tensor


@torch.no_grad()
def nearest_tokens(vectors: Tensor, embeddings: Tensor, k: int) -> Neighbours:
    """vectors: [N, H]; embeddings: [V, H] of any dtype, on the same device; k: at most V."""
    directions = _unit(vectors)
    cosines = torch.full((len(vectors), 0), 0.0, device=vectors.device)
    ids = torch.zeros((len(vectors), 0), dtype=torch.long, device=vectors.device)
    for start in range(0, len(embeddings), CHUNK_ROWS):
        chunk = directions @ _unit(embeddings[start : start + CHUNK_ROWS]).T
        cosines = torch.cat([cosines, chunk], dim=1)
        here = torch.arange(start, start + chunk.shape[1], device=vectors.device)
        ids = torch.cat([ids, here.expand(len(vectors), -1)], dim=1)
        cosines, kept = cosines.topk(min(k, cosines.shape[1]), dim=1)
        ids = ids.gather(1, kept)
    return Neighbours(ids, cosines)


@torch.no_grad()
def tightness(neighbours: Neighbours, embeddings: Tensor) -> Tensor:
    """How alike each vector's neighbours are: the mean cosine of two of them about the table's mean, float32 [N].

    About the mean, because embedding tables share a large common direction: without that, words of one meaning are no
    more alike than the neighbours of noise (SmolLM2: 0.75 against 0.78; about the mean 0.66 against 0.49).
    neighbours: at least 2 per vector.
    """
    found = embeddings[neighbours.ids.reshape(-1)].float() - mean_of(embeddings)
    found = _unit(found).reshape(*neighbours.ids.shape, -1)
    k = neighbours.ids.shape[1]
    pairs = (found @ found.transpose(1, 2)).sum(dim=(1, 2)) - k
    return pairs / (k * (k - 1))


@torch.no_grad()
def random_like(embeddings: Tensor, count: int, *, seed: int) -> Tensor:
    """Vectors [count, H] with the table's mean and deviation in every dimension, and nothing else of it."""
    generator = torch.Generator().manual_seed(seed)
    mean = mean_of(embeddings)
    squares = torch.zeros_like(mean)
    for part in torch.split(embeddings, CHUNK_ROWS):
        squares += (part.float() - mean).square().sum(dim=0)
    drawn = torch.randn(count, embeddings.shape[1], generator=generator).to(embeddings.device)
    return drawn * (squares / len(embeddings)).sqrt() + mean


@torch.no_grad()
def mean_of(embeddings: Tensor) -> Tensor:
    """The mean row of a table, float32 [H]."""
    total = torch.zeros(embeddings.shape[1], device=embeddings.device)
    for part in torch.split(embeddings, CHUNK_ROWS):
        total += part.float().sum(dim=0)
    return total / len(embeddings)


@torch.no_grad()
def cosines_between(vectors: Tensor, *, about: Tensor) -> Tensor:
    """Cosine of every two vectors as seen from `about`. vectors: [N, H]; about: [H]. Returns float32 [N, N]."""
    directions = _unit(vectors.float() - about)
    return directions @ directions.T


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
