"""A short audited run that ranks share; importable when spawned."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses

from noisydml import KNNDenoiser, LabelAudit

SAMPLES = 30
CUTS = [5, 12, 0, 7]  # how many rows of each batch rank 0 has


def batch(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:12]
    features = torch.eye(4)[ids % 4] + 0.3 * torch.randn(12, 4, generator=generator)
    labels = torch.where(ids % 5 == 0, (ids + 1) % 4, ids % 4)
    return {"embeddings": features, "labels": labels, "sample_ids": ids}


def train(rank: int, world: int) -> dict[str, Any]:
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES, k=5)
    audit = LabelAudit(wrapper, SAMPLES)
    for step in range(12):
        cut = CUTS[step % len(CUTS)]
        rows = slice(None) if world == 1 else (slice(0, cut), slice(cut, None))[rank]
        wrapper(**{name: value[rows] for name, value in batch(step).items()})
    return audit.state_dict()
