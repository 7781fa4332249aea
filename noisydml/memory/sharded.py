"""Labelled features of which every rank holds a part, asked about labels by all ranks at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.functional.neighbors import REPEATED, may_be_own, nearest_of_parts
from noisydml.memory.index import Metric, NeighborIndex, frame_of
from noisydml.memory.neighbors import Neighborhood

_CONTIGUOUS = torch.contiguous_format


class ShardedNeighborhood(Neighborhood):
    """This rank's part of a set of labelled features: entry i is ``i // R`` of rank ``i % R``.

    :meth:`build` and what asks are called by all ranks. ``size`` and ``class_size`` are those of
    the whole set, ``labels`` those of this part.

    Args:
        index: as of :class:`Neighborhood`.
        metric: as of :class:`Neighborhood`.
        start: the entry of this rank's first row, where those of a rank stand together.
    """

    start: int | None = None

    def __init__(
        self, index: str | NeighborIndex | None, metric: Metric, start: int | None = None
    ) -> None:
        super().__init__(index, metric)
        self.start = start

    def build(
        self, features: Tensor, labels: Tensor, frame: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Take this rank's (N, D) features and (N,) labels; negative labels are left out."""
        if self.metric == "euclidean":
            frame = frame_of(features[labels >= 0], of_all_ranks=True)
        with distributed.together():
            super().build(features, labels, frame)
        ranks, rank = distributed.world_size(), distributed.rank()
        rows = (labels >= 0).nonzero().squeeze(1)
        self._first, self._step = (rank, ranks) if self.start is None else (self.start, 1)
        self._entry = self._first + rows * self._step
        sizes = distributed.number_of_each(len(self._classes))
        classes, counts = distributed.gather_rows([self._classes, self._counts], sizes)
        self._classes, place = torch.unique(classes, return_inverse=True)
        self._counts = torch.zeros_like(self._classes).index_add_(0, place, counts)
        self.size = int(self._counts.sum())
        self.class_size = int(self._counts.median()) if len(self._counts) > 0 else 0

    def neighbors(
        self, queries: Tensor, labels: Tensor, k: int, entries: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of a whole set, with entries in the place of positions; each rank asks for itself."""
        sizes = distributed.number_of_each(len(queries))
        columns = [queries, labels] if entries is None else [queries, labels, entries]
        queries, labels, *own = distributed.gather_rows(columns, sizes)
        entries = own[0] if own else None
        distance, entry, _, others = self._found(queries, labels, k, entries, sizes)
        return distance, entry, others

    def voters(
        self, queries: Tensor, labels: Tensor, k: int, entries: Tensor | None, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k nearest in all parts who may vote about the labels of this rank's queries.

        Args:
            queries: (N, D) floating point, those of all ranks, in rank order.
            labels: (N,) int64.
            k: number of neighbours.
            entries: (N,) int64 or None, as :meth:`neighbors` has them.
            sizes: how many queries each rank has; each one N where all of them have all.

        Returns:
            (B, k) distances, (B, k) labels, infinite and -1 where nobody votes (without
            ``entries`` there are k + 3 columns), and (B,) bool, for whom there are others of the
            same class who could vote. To the bit what :meth:`neighbors` finds in the whole set,
            as far as the index gives a part the distances of the whole.
        """
        distance, _, label, others = self._found(queries, labels, k, entries, sizes)
        return distance, label, others

    def _found(
        self, queries: Tensor, labels: Tensor, k: int, entries: Tensor | None, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, k) distances, entries and labels, and (B,) who has others of the same class."""
        ranks, columns = distributed.world_size(), k if entries is not None else k + REPEATED
        own_row, own = None, torch.ones_like(labels)  # 1: the query's own entry has its label
        if entries is not None:
            own_row = self._at(self._row, self._here(entries))
            own = self._has_label(labels, own_row)
        with distributed.together():
            distance, position = self._index.search(queries, columns, own_row)
        missing = (0, columns - distance.shape[1])
        distance = torch.nn.functional.pad(distance, missing, value=math.inf)
        position = torch.nn.functional.pad(position, missing, value=-1)
        found = torch.stack([self._at(self._entry, position), self.labels_at(position)])
        answer = [*found.view(torch.int32), distance.view(torch.int32), own.int().unsqueeze(1)]
        packed = torch.cat(answer, dim=1)  # (N, 5 K + 1): 20 K + 4 bytes a query
        if sum(sizes) > len(packed):  # every rank has all queries
            packed = packed.repeat(ranks, 1)
        answers = distributed.deal_rows(packed, sizes)
        widths = [2 * columns, 2 * columns, columns, 1]
        columns_of = torch.split(answers, widths, dim=2)
        row, label, distance, own = (part.clone(memory_format=_CONTIGUOUS) for part in columns_of)
        row, label = row.view(torch.int64), label.view(torch.int64)  # (R, B, K)
        distance, own = distance.view(torch.float32), own.sum(dim=(0, 2))
        distance, place = nearest_of_parts(distance, row, min(columns, self.size))
        row, label = (each.transpose(0, 1).flatten(1).gather(1, place) for each in (row, label))
        first = sum(sizes[: distributed.rank()]) if sum(sizes) == len(queries) else 0
        labels = labels.narrow(0, first, len(label))
        if entries is None:
            copies = may_be_own(label, labels)
            distance = torch.where(copies, math.inf, distance)
            row, label = (torch.where(copies, -1, each) for each in (row, label))
            return distance, row, label, self._count(labels) > 1
        return distance, row, label, self._count(labels) > own

    def _here(self, entries: Tensor) -> Tensor:
        """Which row of this rank each entry is, -1 for one of another rank, or an entry of -1."""
        row = (entries - self._first).div(self._step, rounding_mode="floor")
        here = (entries >= 0) & (row >= 0) & (row < len(self._row))
        return torch.where(here & (row * self._step + self._first == entries), row, -1)

    def labels_at(self, position: Tensor) -> Tensor:
        return self._at(self.labels, position)

    @staticmethod
    def _at(values: Tensor, position: Tensor) -> Tensor:
        """Values at positions, -1 where there is none, be the part empty."""
        values = torch.nn.functional.pad(values, (0, 1), value=-1)
        return values.take(torch.where(position < 0, len(values) - 1, position))
