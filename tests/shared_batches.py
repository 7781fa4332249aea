"""Batches of which every rank has a share, for wrappers that hold a part of what they remember."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLES, WIDTH, CLASSES, BATCH = 61, 8, 5, 26


def drawn(step: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B, D) embeddings around the centers of their classes, labels, a third wrong, and ids."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    true = ids % CLASSES
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    embeddings = centers[true] + spread * torch.randn(BATCH, WIDTH, generator=generator)
    return embeddings, torch.where(ids % 3 == 0, (true + 1) % CLASSES, true), ids


def corners(ids: Tensor) -> Tensor:
    """(B, 4) corners of a cube, of which many samples share one, of all labels."""
    cube = torch.tensor([[(i >> bit) & 1 for bit in range(4)] for i in range(16)])
    return cube[ids % 16].float()


def share(step: int, rank: int, world: int) -> slice:
    """Uneven; the last rank has none in every fifth step."""
    ends = [BATCH * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    if step % 5 == 3 and world > 1:
        ends[-2] = BATCH
    return slice(ends[rank], ends[rank + 1])
