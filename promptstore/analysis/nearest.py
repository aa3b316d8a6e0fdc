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
    """How alike each vector's neighbours are: the mean cosine of two of them, float32 [N]. k: at least 2."""
    found = _unit(embeddings[neighbours.ids.reshape(-1)]).reshape(*neighbours.ids.shape, -1)
    k = neighbours.ids.shape[1]
    pairs = (found @ found.transpose(1, 2)).sum(dim=(1, 2)) - k
    return pairs / (k * (k - 1))


@torch.no_grad()
def random_like(embeddings: Tensor, count: int, *, seed: int) -> Tensor:
    """Vectors [count, H] with the table's mean and deviation in every dimension, and nothing else of it."""
    generator = torch.Generator().manual_seed(seed)
    # Means and deviations of a sample of rows: exact enough for a control, and small for the largest tables.
    sample = embeddings[torch.randperm(len(embeddings), generator=generator)[:CHUNK_ROWS].to(embeddings.device)].float()
    drawn = torch.randn(count, embeddings.shape[1], generator=generator).to(embeddings.device)
    return drawn * sample.std(dim=0) + sample.mean(dim=0)


def cosines_between(vectors: Tensor) -> Tensor:
    """Cosine of every two vectors. vectors: [N, H]. Returns float32 [N, N]."""
    directions = _unit(vectors)
    return directions @ directions.T


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
