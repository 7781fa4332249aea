"""Nearest neighbours: FAISS on the CPU, blocked matrix products elsewhere, one small interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.functional.checks import (
    require_choice,
    require_count,
    require_floating,
    require_integer,
)
from noisydml.functional.neighbors import smallest
from noisydml.functional.products import TILE, scaled

Metric = Literal["cosine", "euclidean"]
_FARTHEST = 2.0**50  # of a query, in units of the farthest of the features
_TRAINED = 64  # features for each cell of an inverted file, of FAISS' 256: a quarter of the time


class Neighbors(NamedTuple):
    """The k nearest of each query, the nearest first, of equally near ones the first in order.

    Where an approximate index found fewer, the distance is infinite and the position -1.
    """

    distance: Tensor  # (B, k) float32, half of the squared Euclidean distance, not negative
    position: Tensor  # (B, k) int64, which row of the features


def require_metric(metric: Metric) -> None:
    """Raise ValueError unless it is one that an index has."""
    require_choice("metric", metric, get_args(Metric))


def frame_of(features: Tensor, of_all_ranks: bool = False) -> tuple[Tensor, Tensor]:
    """The (D,) float64 mean of (N, D) features, and the 0-dim exponent of what is farthest from it.

    The mean of numbers rounded to a 2^26th of the largest, and then of what was left: such sums are
    exact in any order, so that parts on several ranks have, to the bit, the frame of the whole.
    """
    center = features.new_zeros(features.shape[1], dtype=torch.float64)
    count = center.new_full((), len(features))
    if of_all_ranks:
        distributed.sum_over_ranks([count])
    for _ in range(2):
        rows = features.detach().double() - center
        exponent = _exponent_of(rows, of_all_ranks)
        total = torch.ldexp(rows, 26 - exponent).round_().sum(dim=0)
        if of_all_ranks:
            distributed.sum_over_ranks([total])
        center = center + torch.ldexp(total / count.clamp_min(1), exponent - 26)
    return center, _exponent_of(features.detach().double() - center, of_all_ranks)


def _exponent_of(rows: Tensor, of_all_ranks: bool) -> Tensor:
    """The exponent of the largest number, 0-dim; of 0 where there is none."""
    largest = torch.nn.functional.pad(rows.abs().flatten(), (0, 1)).amax()
    if of_all_ranks:
        distributed.largest(largest)
    return torch.frexp(largest).exponent.clamp(-126, 126)


class NeighborIndex(ABC):
    """Finds the rows of a set of features that are nearest to each query.

    Args:
        metric: ``"euclidean"``, or ``"cosine"``, for which rows are normalised here: then the
            distance is 1 minus the cosine.
    """

    def __init__(self, metric: Metric = "cosine") -> None:
        require_metric(metric)
        self.metric = metric
        self.size = 0
        self.width = 0

    _center: Tensor
    _exponent: Tensor

    def build(self, features: Tensor, frame: tuple[Tensor, Tensor] | None = None) -> None:
        """Index (N, D) features in the place of any that were there before.

        ``frame`` is what :func:`frame_of` says of all features, where these are a part of them.
        """
        require_floating("features", features, ndim=2)
        self.size, self.width = features.shape
        # Euclidean distances are of centred and scaled rows: a common offset costs no digits, nor
        # does a scale at which squares overflow.
        self._center = features.new_zeros(self.width, dtype=torch.float64)
        self._exponent = features.new_zeros((), dtype=torch.int32)
        if self.metric == "euclidean" and features.numel() > 0:
            self._center, self._exponent = frame_of(features) if frame is None else frame
        self._build(self._prepared(features))

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> Neighbors:
        """The k nearest features of each query.

        Args:
            queries: (B, D) floating point.
            k: how many, at least 1.
            exclude: (B,) integers, for each query a position that is never returned, such as its
                own; -1 for none.

        Returns:
            :class:`Neighbors` of ``min(k, N)`` columns. With ``exclude`` and k of N or more, the
            last one is empty for the queries of which one was excluded.
        """
        require_floating("queries", queries, ndim=2)
        require_count("k", k)
        if queries.shape[1] != self.width:
            raise ValueError(
                f"queries must be as wide as the features, {self.width}, got {queries.shape[1]}"
            )
        k = int(k)  # FAISS takes no integer of NumPy
        if exclude is None:
            return self._nearest(queries, min(k, self.size))
        require_integer("exclude", exclude, len(queries), "query")
        distance, position = self._nearest(queries, min(k + 1, self.size))
        found = (position == exclude.unsqueeze(1)) & (position >= 0)
        passed = found.long().cumsum(dim=1)  # 1 from the excluded on
        columns = min(k, self.size)
        source = torch.arange(columns, device=passed.device) + passed.narrow(1, 0, columns)
        distance = torch.nn.functional.pad(distance, (0, 1), value=math.inf)
        position = torch.nn.functional.pad(position, (0, 1), value=-1)
        return Neighbors(distance.gather(1, source), position.gather(1, source))

    def _nearest(self, queries: Tensor, k: int) -> Neighbors:
        if k == 0 or len(queries) == 0:
            empty = torch.zeros(len(queries), k, device=queries.device)
            return Neighbors(empty, empty.long())
        distance, position = self._search(self._prepared(queries), k)
        if self.metric == "euclidean":
            distance = torch.ldexp(torch.ldexp(distance, self._exponent), self._exponent)
        return Neighbors(distance, position)

    def _prepared(self, rows: Tensor) -> Tensor:
        rows = rows.detach()
        if self.metric == "cosine":
            rows = rows if rows.dtype == torch.float64 else rows.float()
            return torch.nn.functional.normalize(scaled(rows).float())
        rows = torch.ldexp(rows.double() - self._center, -self._exponent)
        return rows.clamp(-_FARTHEST, _FARTHEST).float()  # whose squares float32 can hold

    @abstractmethod
    def _build(self, features: Tensor) -> None: ...

    @abstractmethod
    def _search(self, queries: Tensor, k: int) -> Neighbors: ...


class FaissIndex(NeighborIndex):
    """FAISS on the CPU; queries from elsewhere are brought there and their neighbours back.

    Args:
        factory: a `FAISS factory string <https://github.com/facebookresearch/faiss/wiki/
            The-index-factory>`_, such as ``"Flat"`` (exact), ``"IVF4096,Flat"`` for millions of
            samples, or ``"IVF4096,PQ64"``, compressed to 64 bytes a sample. An index that has to
            be trained is trained on all features, the cells of an inverted file on 64 for each.
        metric: ``"cosine"`` or ``"euclidean"``.
        nprobe: how many of the cells of an inverted file (``"IVF..."``) are searched; None for
            FAISS' own setting, which is 1 and misses many neighbours.

    Raises:
        TypeError, ValueError: if FAISS does not know the factory string, or ``nprobe`` is given
            without an inverted file; by ``build``, if there are too few features to train the
            index, or their width or the metric does not suit it.

    Example:
        >>> import torch
        >>> from noisydml.memory.index import FaissIndex
        >>> index = FaissIndex()
        >>> index.build(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]))
        >>> index.search(torch.tensor([[2.0, 0.0]]), k=2)
        Neighbors(distance=tensor([[0.0000, 0.2000]]), position=tensor([[0, 1]]))
    """

    def __init__(
        self, factory: str = "Flat", metric: Metric = "cosine", nprobe: int | None = None
    ) -> None:
        super().__init__(metric)
        import faiss

        if not isinstance(factory, str):
            raise TypeError(f"factory must be a FAISS factory string, got {type(factory).__name__}")
        if nprobe is not None:
            require_count("nprobe", nprobe)
        self.factory = factory
        self.nprobe = None if nprobe is None else int(nprobe)
        self._faiss: Any = None
        try:
            index = faiss.index_factory(64, factory)
        except RuntimeError as error:
            if "could not parse" in str(error):
                raise ValueError(f"index factory {factory!r} is none that FAISS knows") from error
            index = None  # one for another width or metric
        if nprobe is not None and index and faiss.try_extract_index_ivf(index) is None:
            raise ValueError(f"nprobe is for an inverted file, and {factory!r} is none")

    def __getstate__(self) -> dict[str, Any]:
        """Without what ``build`` has made."""
        return {**self.__dict__, "_faiss": None}

    def _build(self, features: Tensor) -> None:
        import faiss

        if self.size == 0:
            return  # nothing is searched
        kind = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        rows = features.cpu().contiguous().numpy()
        try:
            self._faiss = faiss.index_factory(self.width, self.factory, kind)
            if (cells := faiss.try_extract_index_ivf(self._faiss)) is not None:
                cells.cp.max_points_per_centroid = _TRAINED
                cells.nprobe = self.nprobe or cells.nprobe
            if not self._faiss.is_trained:
                self._faiss.train(rows)
            self._faiss.add(rows)
        except RuntimeError as error:
            # What FAISS says, without the place in its source.
            reason = str(error).rsplit("Error: ", 1)[-1].rsplit(" failed: ", 1)[-1].strip()
            raise ValueError(
                f"index factory {self.factory!r} cannot hold {self.size} features of width "
                f"{self.width} by the metric {self.metric!r}: {reason}"
            ) from error

    def _search(self, queries: Tensor, k: int) -> Neighbors:
        assert self._faiss is not None
        score, position = self._faiss.search(queries.cpu().contiguous().numpy(), k)
        score, position = torch.from_numpy(score), torch.from_numpy(position)
        distance = 1 - score if self.metric == "cosine" else 0.5 * score
        distance = torch.where(position < 0, math.inf, distance)  # an approximate index found fewer
        return Neighbors(distance.clamp_min(0).to(queries.device), position.to(queries.device))


class TorchIndex(NeighborIndex):
    """Exact search by blocks of matrix products, on the device of the features.

    On CUDA the host is never asked. A search takes ``B * block_size`` numbers beside the features.
    Matrices are padded with zeros to multiples of a tile, so that a distance does not depend on
    what else is compared: on a CPU a part of the features has, to the bit, those of the whole.

    Args:
        metric: ``"cosine"`` or ``"euclidean"``.
        block_size: how many features are compared with the queries at once, rounded up to a
            multiple of 64.
        dtype: in which the features are stored; ``torch.float16`` halves their memory.
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        block_size: int = 65_536,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(metric)
        require_count("block_size", block_size)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.block_size = int(block_size)
        self.dtype = dtype
        self._features: Tensor | None = None
        self._offset = torch.zeros(0)

    def _build(self, features: Tensor) -> None:
        missing = -len(features) % TILE[1]
        self._features = torch.nn.functional.pad(features.to(self.dtype), (0, 0, 0, missing))
        offset = features.new_zeros(len(features), dtype=torch.float32)
        if self.metric == "euclidean":
            offset = 0.5 * features.to(self.dtype).float().square().sum(dim=1)
        self._offset = torch.nn.functional.pad(offset, (0, missing), value=math.inf)

    def _search(self, queries: Tensor, k: int) -> Neighbors:
        assert self._features is not None
        size = len(queries)
        queries = torch.nn.functional.pad(queries, (0, 0, 0, -size % TILE[0]))
        own_part = queries.new_ones(len(queries), 1)
        if self.metric == "euclidean":
            own_part = 0.5 * queries.square().sum(dim=1, keepdim=True)
        block_size = -(-self.block_size // TILE[1]) * TILE[1]
        best: Neighbors | None = None
        start = 0
        for block, offset in zip(
            torch.split(self._features, block_size),
            torch.split(self._offset, block_size),
            strict=True,
        ):
            distance = torch.addmm(own_part + offset, queries, block.float().T, alpha=-1)
            distance = distance.narrow(0, 0, size).clamp_min_(0)  # (B, block)
            distance, position = smallest(distance, k)
            if best is not None:
                distance = torch.cat([best.distance, distance], dim=1)
                position = torch.cat([best.position, position + start], dim=1)
                distance, column = smallest(distance, k)
                position = position.gather(1, column)
            best = Neighbors(distance, position)
            start += len(block)
        assert best is not None
        return best
