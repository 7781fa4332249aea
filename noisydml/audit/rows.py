"""Embeddings that need not be in memory: arrays on disk, and lists of parts."""

from __future__ import annotations

import copy
import math
from bisect import bisect, bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.audit.labels import read_embeddings, refuse_masked
from noisydml.functional.checks import require_dense
from noisydml.functional.products import largest_magnitude, unit_rows
from noisydml.memory.index import Metric

_FIRST = 1024  # rows that say what all have in common
_SHARED = 1000.0  # spreads of a column: a middle above takes ten bits of what tells rows apart
_FAR = 100  # the power of two, up to which numbers are far from the largest and least of float32
_LARGEST = torch.finfo(torch.float32).max / 4  # of which float32 holds differences


class TooFarApart(ValueError):
    """Of embeddings of which float32 does not hold the distances."""


class EmbeddingRows:
    """(N, D) embeddings, of which the rows that are asked for come as float32.

    A memory-mapped array, and a list or tuple of parts with two dimensions, stay where they are;
    everything else is read as :func:`~noisydml.audit.labels.read_embeddings` does. Rows are
    normalised for ``metric="cosine"``. Where float32 would round away what tells rows of float64
    apart, they come less an offset and times a factor, which are the same for all.

    Raises:
        TypeError, ValueError: for what are no embeddings, among them NaN, infinity, masked entries
            and numbers that float32 does not hold beside the first; in part only by ``[]``.
    """

    def __init__(self, value: Any, metric: Metric) -> None:
        parts = value if _is_sharded(value) else [value]
        if len(parts) == 1 and not isinstance(parts[0], np.memmap):
            parts = [read_embeddings(parts[0])]
        self._parts: Sequence[Any] = parts
        for part in parts:
            _refuse(part, width=parts[0].shape[1] if parts[0].ndim == 2 else 0)
        self._ends = list(accumulate(len(part) for part in parts))
        self.shape = (self._ends[-1], int(parts[0].shape[1]))
        tensors = [part for part in parts if isinstance(part, Tensor)]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self._compare_by(metric)

    def compared_by(self, metric: Metric) -> EmbeddingRows:
        """The same embeddings for another metric."""
        rows = copy.copy(self)
        rows._compare_by(metric)
        return rows

    def _compare_by(self, metric: Metric) -> None:
        self._normalized = metric == "cosine"
        self._kind, self._scale = torch.float32, 1.0
        self._offset: Tensor | None = None
        if self.shape[0] > 0 and any(map(_is_wide, self._parts)):
            self._compare_first()

    def __getitem__(self, rows: slice) -> Tensor:
        embeddings = self.read(rows)
        return embeddings if self._offset is None else (embeddings - self._offset).float()

    def read(self, rows: slice) -> Tensor:
        """The rows but for an offset and a factor, which all have; float64 where they have one."""
        embeddings = self._given(rows).to(self._kind)
        if self._normalized:
            embeddings = _directions(embeddings)
        elif self._scale != 1:
            embeddings = embeddings * self._scale
        if not largest_magnitude(embeddings) <= _LARGEST:
            raise TooFarApart(
                f"embeddings must be numbers that float32 holds beside the first {_FIRST} of them, "
                "got larger ones"
            )
        return embeddings

    def _given(self, rows: slice) -> Tensor:
        """Finite rows as they are, float32 or float64."""
        start, stop, _ = rows.indices(self.shape[0])
        found = []
        for place in range(bisect(self._ends, start), bisect_left(self._ends, stop) + 1):
            part = self._parts[place]
            first = self._ends[place] - len(part)
            block = part[max(start - first, 0) : stop - first]
            kind = torch.float64 if _is_wide(part) else torch.float32
            if not isinstance(block, Tensor):
                block = torch.from_numpy(np.array(block, dtype=str(kind).removeprefix("torch.")))
            found.append(block.detach().to(self.device, kind))
        embeddings = found[0] if len(found) == 1 else torch.cat(found)
        if not embeddings.isfinite().all():
            raise ValueError("embeddings must be finite, got NaN or infinity")
        return embeddings

    def _compare_first(self) -> None:
        """Find an offset and a factor where float32 would round away what tells rows apart."""
        rows = self._given(slice(_FIRST)).double()
        exponent = math.frexp(float(largest_magnitude(rows)))[1]
        if far := abs(exponent) > _FAR:
            self._scale = math.ldexp(1.0, -max(exponent, -1000))
        rows = _directions(rows) if self._normalized else rows * self._scale
        middle = rows.median(dim=0).values
        spread = (rows - middle).abs().median(dim=0).values
        shared = middle.abs() > _SHARED * spread
        if far or shared.any():
            self._kind, self._offset = torch.float64, middle.where(shared, 0)


def _directions(rows: Tensor) -> Tensor:
    if rows.dtype == torch.float32:
        return unit_rows(rows)
    largest = rows.abs().amax(dim=1, keepdim=True)
    return normalize(rows / largest.clamp_min(torch.finfo(rows.dtype).tiny))


def _is_wide(part: Any) -> bool:
    """Whether it has numbers of 64 bits or more."""
    return int(part.dtype.itemsize) > 4


def _is_sharded(value: Any) -> bool:
    """Whether it is a list of parts, and not of rows."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(x, (Tensor, np.ndarray)) and x.ndim == 2 for x in value)
    )


def _refuse(part: Any, width: int) -> None:
    """Raise unless a part has floating-point rows of the width of the others."""
    refuse_masked("embeddings", part)
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
