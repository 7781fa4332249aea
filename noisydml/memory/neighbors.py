"""A set of labelled features, and which of them may vote about a label."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noisydml.functional.neighbors import REPEATED, may_be_own
from noisydml.memory.index import FaissIndex, Metric, NeighborIndex, TorchIndex, require_metric

_EXACT = 2**34  # pairs of a query and a feature, up to which all are compared
_PROBED = 16  # cells of an inverted file


def exact_index(device: torch.device, metric: Metric = "cosine") -> NeighborIndex:
    """FAISS's on the CPU, and torch's on any other device."""
    return FaissIndex(metric=metric) if device.type == "cpu" else TorchIndex(metric)


def default_index(queries: int, entries: int, device: torch.device) -> NeighborIndex:
    """Exact up to a number of pairs on the CPU and on any other device; else an inverted file."""
    many = device.type == "cpu" and queries * entries > _EXACT
    return inverted_file(entries) if many else exact_index(device)


def inverted_file(entries: int) -> FaissIndex:
    """FAISS's, with a number of cells that suits the number of features."""
    cells = min(4 * math.sqrt(entries), entries / 64)
    return FaissIndex(f"IVF{2 ** max(round(math.log2(cells)), 0)},Flat", nprobe=_PROBED)


class Neighborhood:
    """Labelled features that can be asked about labels.

    Args:
        index: ``"torch"``, a FAISS factory string, an index, or None: exact, by FAISS on the CPU
            and :class:`~noisydml.memory.TorchIndex` on any other device.
        metric: ``"cosine"`` or ``"euclidean"``.

    Attributes:
        labels: of the features that :meth:`build` has taken.
        size: the number of these features.
        class_size: the median number of features of a class.
    """

    labels: Tensor

    def __init__(self, index: str | NeighborIndex | None, metric: Metric) -> None:
        require_metric(metric)
        if isinstance(index, NeighborIndex) and index.metric != metric:
            raise ValueError(f"index must have the metric {metric!r}, got {index.metric!r}")
        if isinstance(index, str) and index != "torch":
            index = FaissIndex(index, metric)
        elif index is not None and not isinstance(index, (str, NeighborIndex)):
            raise TypeError(
                f"index must be a string, a NeighborIndex or None, got {type(index).__name__}"
            )
        self.metric = metric
        self._given = index
        self.size = self.class_size = 0

    def build(
        self, features: Tensor, labels: Tensor, frame: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Take (N, D) features and their (N,) labels; rows with a negative label are left out.

        ``frame`` is what the index takes with them. Asks the host.
        """
        rows = (labels >= 0).nonzero().squeeze(1)
        self.labels = labels.index_select(0, rows)
        # Where each entry has gone; -1, which excludes nobody, for those left out.
        self._row = torch.full_like(labels, -1)
        self._row.index_copy_(0, rows, torch.arange(len(rows), device=rows.device))
        self._classes, self._counts = torch.unique(self.labels, return_counts=True)
        self.size = len(rows)
        self.class_size = int(self._counts.median()) if len(self._counts) > 0 else 0
        self._index = self._make(features.device)
        self._index.build(features if len(rows) == len(features) else features[rows], frame)

    def __getstate__(self) -> dict[str, Any]:
        """Without what ``build`` has made, and builds again."""
        return {"metric": self.metric, "_given": self._given, "size": 0, "class_size": 0}

    def _make(self, device: torch.device) -> NeighborIndex:
        if isinstance(self._given, NeighborIndex):
            return self._given
        if self._given == "torch":
            return TorchIndex(self.metric)
        return exact_index(device, self.metric)

    def neighbors(
        self, queries: Tensor, labels: Tensor, k: int, entries: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k nearest who may vote about each query's label.

        Args:
            queries: (B, D) floating point.
            labels: (B,) int64.
            k: number of neighbours.
            entries: (B,) int64, the row of ``features`` that is the query's own and has no vote;
                -1 for a query that has none. None where it is not known: then the nearest have
                no vote as long as they have the same label, three at most.

        Returns:
            (B, k) distances, (B, k) positions in :attr:`labels`, infinite and -1 where nobody
            votes (an approximate index found fewer, or it may be the query's own; without
            ``entries`` there are k + 3 columns), and (B,) bool, for whom there are others of the
            same class who could vote.
        """
        if entries is not None:
            row = self._row.index_select(0, entries.clamp_min(0))
            row = torch.where(entries < 0, -1, row)  # -1, too, for an entry left out
            others = self._count(labels) > self._has_label(labels, row)
            return *self._index.search(queries, k, row), others
        distance, position = self._index.search(queries, k + REPEATED)
        excluded = may_be_own(self.labels_at(position), labels)
        distance = torch.where(excluded, math.inf, distance)
        return distance, torch.where(excluded, -1, position), self._count(labels) > 1

    def labels_at(self, position: Tensor) -> Tensor:
        """Labels at positions as :meth:`neighbors` gives them; -1 where there is none."""
        return torch.where(position < 0, -1, self.labels.take(position.clamp_min(0)))

    def _has_label(self, labels: Tensor, row: Tensor) -> Tensor:
        """(B,) int64, 1 where the row is there and has the label."""
        if len(self.labels) == 0:
            return torch.zeros_like(labels)
        return ((row >= 0) & (self.labels.take(row.clamp_min(0)) == labels)).long()

    def _count(self, labels: Tensor) -> Tensor:
        """(B,) int64, how many of each label there are."""
        if len(self._classes) == 0:
            return torch.zeros_like(labels)
        place = torch.searchsorted(self._classes, labels).clamp_max(len(self._classes) - 1)
        return torch.where(self._classes.take(place) == labels, self._counts.take(place), 0)
