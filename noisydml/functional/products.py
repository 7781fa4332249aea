"""The product of a batch with a matrix, in full precision whatever autocast is on around it."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def affine(rows: Tensor, matrix: Tensor, offsets: Tensor | None = None) -> Tensor:
    """(B, C) ``rows @ matrix.T + offsets`` of (B, D), (C, D) and (C,), all of one dtype."""
    kind = rows.device.type  # of which "meta" has no autocast
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        return rows @ matrix.T if offsets is None else torch.addmm(offsets, rows, matrix.T)
