"""Embeddings that need not be in memory: arrays on disk, and lists of parts."""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.audit.labels import read_embeddings
from noisydml.functional.checks import require_dense
from noisydml.functional.products import scaled
from noisydml.memory.index import Metric


class EmbeddingRows:
    """(N, D) embeddings, of which the rows that are asked for come as float32.

    A memory-mapped array, and a list or tuple of parts with two dimensions, stay where they are;
    everything else is read as :func:`~noisydml.audit.labels.read_embeddings` does. Rows are
    normalised for ``metric="cosine"``.

    Raises:
        TypeError, ValueError: for what are no embeddings; by ``[]`` for NaN or infinity.
    """

    def __init__(self, value: Any, metric: Metric) -> None:
        parts = value if _is_sharded(value) else [value]
        if len(parts) == 1 and not isinstance(parts[0], np.memmap):
            parts = [read_embeddings(parts[0])]
        self._parts: Sequence[Any] = parts
        self._normalized = metric == "cosine"
        for part in parts:
            _refuse(part, width=parts[0].shape[1] if parts[0].ndim == 2 else 0)
        self._ends = list(accumulate(len(part) for part in parts))
        self.shape = (self._ends[-1], int(parts[0].shape[1]))
        tensors = [part for part in parts if isinstance(part, Tensor)]
        self.device = tensors[0].device if tensors else torch.device("cpu")

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        found = []
        for place in range(bisect(self._ends, start), bisect_left(self._ends, stop) + 1):
            part = self._parts[place]
            first = self._ends[place] - len(part)
            block = part[max(start - first, 0) : stop - first]
            if not isinstance(block, Tensor):
                block = torch.from_numpy(np.array(block, dtype=np.float32))
            found.append(block.detach().to(self.device).float())
        embeddings = found[0] if len(found) == 1 else torch.cat(found)
        if not embeddings.isfinite().all():
            raise ValueError("embeddings must be finite, got NaN or infinity")
        return normalize(scaled(embeddings)) if self._normalized else embeddings


def _is_sharded(value: Any) -> bool:
    """Whether it is a list of parts, and not of rows."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(x, (Tensor, np.ndarray)) and x.ndim == 2 for x in value)
    )


def _refuse(part: Any, width: int) -> None:
    """Raise unless a part has floating-point rows of the width of the others."""
    if isinstance(part, Tensor):
        require_dense("embeddings", part)
    floating = part.is_floating_point() if isinstance(part, Tensor) else part.dtype.kind == "f"
    if not floating:
        raise TypeError(f"embeddings must be floating point, got dtype {part.dtype}")
    if part.ndim != 2:
        raise ValueError(f"embeddings must have 2 dimensions, got shape {tuple(part.shape)}")
    if width == 0:
        raise ValueError("embeddings must have at least 1 column, got 0")
    if part.shape[1] != width:
        raise ValueError(
            f"embeddings must have parts of one width, got {width} and {part.shape[1]} columns"
        )
