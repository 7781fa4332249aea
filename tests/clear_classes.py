"""Classes that are clear, with a quarter of the labels wrong."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES, WIDTH = 6, 8


def data(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of clear classes; labels of which every fourth is wrong; the true ones."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(size) % CLASSES
    centers = 3 * torch.randn(CLASSES, WIDTH, generator=generator)
    embeddings = centers[truth] + torch.randn(size, WIDTH, generator=generator)
    wrong = torch.randperm(size, generator=generator)[: size // 4]
    shift = torch.randint(1, CLASSES, (len(wrong),), generator=generator)
    labels = truth.index_copy(0, wrong, (truth[wrong] + shift) % CLASSES)
    return embeddings, labels, truth
