"""The memory of past features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_integer,
    require_tensor,
    require_values,
)
from noisydml.functional.products import finite
from noisydml.memory.centers import EMPTY, ClassCenters, unit_features
from noisydml.memory.entries import Entries
from noisydml.memory.state import require_state_in_range


class FeatureMemory(Entries):
    r"""A ring of the latest features with their labels, and the mean feature of every class.

    New entries overwrite the oldest, strictly first in, first out; entries may also be written
    in place by sample id. With ``num_classes`` the memory keeps the plain mean of every class,
    :math:`w_k = \frac{1}{M_k}\sum_{y_j = k} v_j / \lVert v_j \rVert` (PRISM, Eq. 6), for **all**
    classes at every step, exactly: :class:`~noisydml.memory.centers.ClassCenters`.

    Args:
        memory_size: number of entries, M, at least 1.
        embedding_size: width of the features, D, at least 1; None to take it from the first
            embeddings that are stored, or from the state that is loaded. Centers need it, and so
            do loaders that write into a state in place.
        num_classes: number of classes, C, with labels in ``[0, C)``; None for a memory without
            centers and with any labels that are not negative.
        normalize: whether features are divided by their Euclidean norm on the way in. Centers
            need it.
        dtype: of the stored features; ``torch.float16`` halves the memory.
        shard: whether each rank of ``torch.distributed`` holds a part:
            :class:`~noisydml.memory.dealt.Dealt`. All ranks make the same calls with the same
            rows. Centers are of all entries, on every rank; to keep them so each call sends what
            leaves, and ``.half()`` the sums.

    Attributes:
        features: (M, D), on entry normalised and detached, zeros where nothing is stored. M is
            ``dealt.part_size`` where the memory is in parts, here and below.
        labels: (M,) int64, -1 where nothing is stored.
        sample_ids: (M,) int64, -1 where unknown.
        total: 0-dim int64, how many entries have been enqueued in all.
        version: a number on the host that changes whenever an entry may have.
        centers: (C, D) float32, zeros for a class without entries. Only with ``num_classes``.
        counts: (C,) int64, entries of each class. Only with ``num_classes``.
        dealt: which rank holds which entries, if it is in parts.
        ranks: how many parts; 1 for a whole.

    Everything is in ``state_dict`` but what follows from it, the centers and counts, which are
    computed afresh by ``load_state_dict``. No method transfers anything to the host. Memory:
    ``M (4 D + 16)`` bytes in float32, and ``C (12 D + 8)`` for the centers.

    Raises:
        TypeError: if a size is no integer, or ``dtype`` is none of floating point.
        ValueError: if a size is below 1, or ``num_classes`` is given without ``embedding_size``, or
            with ``normalize=False``.

    References:
        Liu et al., Noise-resistant Deep Metric Learning with Ranking-based Instance Selection,
        CVPR 2021. Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.

    Example:
        >>> import torch
        >>> from noisydml.memory import FeatureMemory
        >>> memory = FeatureMemory(memory_size=3, embedding_size=2, num_classes=2)
        >>> memory.enqueue(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
        >>> memory.centers
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])
        >>> memory.enqueue(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([1, 1]))
        >>> memory.labels, memory.counts  # the oldest entry is gone
        (tensor([1, 0, 1]), tensor([1, 2]))
    """

    def __init__(
        self,
        memory_size: int,
        embedding_size: int | None = None,
        num_classes: int | None = None,
        *,
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
        shard: bool = False,
    ) -> None:
        if num_classes is not None:
            require_count("num_classes", num_classes)
            if embedding_size is None:
                raise ValueError("num_classes needs embedding_size, the width of the centers")
            if not normalize:
                raise ValueError(
                    "num_classes needs normalize=True: centers are means of unit vectors"
                )
        super().__init__(memory_size, embedding_size, normalize=normalize, dtype=dtype, shard=shard)
        self.num_classes = num_classes
        self.classes: ClassCenters | None = None
        if num_classes is not None and embedding_size is not None:
            self.classes = ClassCenters(num_classes, embedding_size)
            self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                FeatureMemory._recount
            )

    @property
    def centers(self) -> Tensor:
        return self._with_classes().centers

    @property
    def counts(self) -> Tensor:
        return self._with_classes().counts

    def _with_classes(self) -> ClassCenters:
        if self.classes is None:
            raise AttributeError("there are centers and counts only with num_classes")
        return self.classes

    def enqueue(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor | None = None,
        keep: Tensor | None = None,
        leaving: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Store rows in their order, over the oldest entries.

        Args:
            embeddings: (B, D) floating point; of more than M rows the last M remain. A row that
                is not finite, in the dtype of the memory, is not stored.
            labels: (B,) integers. Their range is not checked, as that would make the host wait.
            sample_ids: (B,) integers, or None.
            keep: (B,) bool, which rows to store; None for all of them.
            leaving: what :meth:`leaving` has returned of the same rows; None to ask for it here.
        """
        self._check(embeddings, labels, sample_ids, keep)
        if len(labels) == 0:
            return
        slots, rows, fresh, kept = self._ring(embeddings, keep)
        self._store(slots, rows, fresh, fresh, embeddings, labels, sample_ids, leaving)
        self.total.add_(kept)

    def leaving(
        self, embeddings: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Features and labels that :meth:`enqueue` will overwrite, from the ranks that hold them.

        All ranks ask. None where nobody needs to: without centers, or if the memory is whole.
        """
        if self.ranks == 1 or self.num_classes is None or len(embeddings) == 0:
            return None
        slots, *_ = self._ring(embeddings, keep)
        features, labels = self.dealt.at(slots, self.features, self.labels)
        return features, labels

    def _ring(
        self, embeddings: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where rows go: (B',) entries, which row each is, whether it is stored; how many are."""
        size = len(embeddings)
        keep = self._storable(embeddings) if keep is None else keep & self._storable(embeddings)
        # Only the device knows how many are kept, so no shape may depend on it: the kept rows come
        # first, from the last to the first, then the others, which write back what is there.
        newest = min(size, self.memory_size)
        order = keep.flip(0).logical_not().argsort(stable=True).narrow(0, 0, newest)
        age = torch.arange(newest, device=keep.device)
        kept = keep.sum()
        slots = (self.total + kept - 1 - age).remainder(self.memory_size)
        return slots, size - 1 - order, age < kept, kept

    def write(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> None:
        """Store rows in place: the row with sample id i becomes entry i.

        Args:
            embeddings: (B, D) floating point; a row that is not finite is not stored.
            labels: (B,) integers.
            sample_ids: (B,) integers in ``[0, M)``; of equal ids the last row counts.
        """
        self._check(embeddings, labels, sample_ids, None)
        if len(labels) == 0:
            return
        last = last_of_equals(sample_ids)
        once = last == torch.arange(len(last), device=last.device)  # each entry, to be counted
        fresh = self._storable(embeddings).index_select(0, last)
        self._store(sample_ids, last, fresh, once & fresh, embeddings, labels, sample_ids)
        self.total.add_(fresh.sum())

    def remember(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None) -> None:
        """:meth:`write` where the rows have ids, else :meth:`enqueue`."""
        if sample_ids is None:
            self.enqueue(embeddings, labels)
        else:
            self.write(embeddings, labels, sample_ids)

    def labels_of(self, entries: Tensor) -> Tensor:
        """(B,) labels of some entries; of a memory in parts all ranks ask for the same ones."""
        if self.ranks > 1:
            self.agree()  # or raises: nobody asks alone
        return self.dealt.at(entries, self.labels)[0]

    def first_filled(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Copies of the features and labels of a ring; None if it is empty. Asks the host."""
        filled = min(int(self.total), self.memory_size)
        if filled == 0:
            return None
        return self.features[:filled].to(dtype, copy=True), self.labels[:filled].clone()

    def extra_repr(self) -> str:
        return (
            f"memory_size={self.memory_size}, embedding_size={self.embedding_size}, "
            f"num_classes={self.num_classes}"
        )

    def _check(
        self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None, keep: Tensor | None
    ) -> None:
        require_values(embeddings=embeddings, labels=labels, sample_ids=sample_ids, keep=keep)
        require_floating("embeddings", embeddings, ndim=2)
        width = embeddings.shape[1]
        if self.embedding_size is not None and width != self.embedding_size:
            raise ValueError(
                f"embeddings must be as wide as the memory, {self.embedding_size}, got {width}"
            )
        require_integer("labels", labels, len(embeddings))
        if sample_ids is not None:
            require_integer("sample_ids", sample_ids, len(embeddings))
        if keep is not None:
            require_tensor("keep", keep)
        if keep is not None and (keep.dtype != torch.bool or keep.shape != labels.shape):
            raise ValueError(
                f"keep must be bool of shape ({len(embeddings)},), "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        if self.embedding_size is None and width > 0:
            self._widen(width)

    def _storable(self, embeddings: Tensor) -> Tensor:
        """(B,) bool, which rows are finite, as they would be stored."""
        rows = embeddings if self.normalize else embeddings.to(self.features.dtype)
        return finite(rows.detach(), dim=1)

    def _store(
        self,
        slots: Tensor,
        rows: Tensor,
        fresh: Tensor,
        counted: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor | None,
        leaving: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Some rows of a batch into the slots where ``fresh``; classes count where ``counted``."""
        self.version += 1
        features = embeddings.detach().index_select(0, rows)
        features = unit_features(features) if self.normalize else features
        features = features.to(self.features.dtype)
        labels = labels.index_select(0, rows).to(torch.int64)
        ids = torch.full_like(labels, EMPTY)
        if sample_ids is not None:
            ids = sample_ids.index_select(0, rows).to(torch.int64)
        if self.classes is not None:
            old_features, old_labels = leaving or self.dealt.at(slots, self.features, self.labels)
            self.classes.exchange(features, labels, old_features, old_labels, counted)
        slots, fresh, features, labels, ids = self.dealt.to_write(
            slots, fresh, features, labels, ids
        )
        old = [each.index_select(0, slots) for each in self._entries()]
        old_features, old_labels, old_ids = old
        features = torch.where(fresh.unsqueeze(1), features, old_features)
        self.features.index_copy_(0, slots, features)
        self.labels.index_copy_(0, slots, torch.where(fresh, labels, old_labels))
        self.sample_ids.index_copy_(0, slots, torch.where(fresh, ids, old_ids))

    def agree(self) -> None:
        """Raise RuntimeError unless the parts are of one memory; class sums become those of all.

        All ranks call it: before the first step, whenever a state was loaded, and where they meet.
        """
        self.dealt.require_same(int(self.total), self.embedding_size or 0)
        self._recount(parts=True)

    def _recount(self, *_: Any, parts: bool = False) -> None:
        """Centers and counts from the entries of this part, or of the parts of all ranks."""
        if self.classes is not None:
            self.classes.recount(self.features, self.labels)
            if parts and self.ranks > 1:
                self.classes.sum_over_ranks()

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureMemory:
        """``.half()`` and the like change the stored features, not the precision of the centers."""
        super()._apply(fn, recurse)
        if self.classes is not None and not self.classes.is_exact:
            self._recount(parts=True)
        return self

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that this memory cannot have had."""
        super().refuse_values(state, prefix)
        if self.num_classes is not None:
            labels = state.get(f"{prefix}labels")
            require_state_in_range(f"{prefix}labels", labels, EMPTY, self.num_classes)

    def holding(
        self,
        features: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        dtype: torch.dtype | None = None,
    ) -> FeatureMemory:
        """Another of the same settings, without centers, that holds these rows and no others.

        In parts all ranks call it, each with all rows or with those of its own part. ``dtype`` is
        this memory's, if None. Raises ValueError if ranks have rows of different widths.
        """
        width = features.shape[1]
        other = FeatureMemory(
            self.memory_size,
            width,
            normalize=self.normalize,
            dtype=self.features.dtype if dtype is None else dtype,
            shard=self.ranks > 1,
        ).to(self.features.device)
        if self.ranks > 1:
            widths = distributed.number_of_each(width)
            if len(set(widths)) > 1:
                raise ValueError(f"features must be as wide on all ranks, got {widths}")
            own = self.dealt.mine(sample_ids)
            features, labels, sample_ids = features[own], labels[own], sample_ids[own]
        other.write(features, labels, sample_ids)
        if self.ranks > 1:
            distributed.sum_over_ranks([other.total])
        return other


def last_of_equals(ids: Tensor) -> Tensor:
    """(B,) for each id the last position at which it occurs, in O(B log B)."""
    if len(ids) == 0:
        return torch.zeros_like(ids, dtype=torch.int64)
    ordered, order = ids.sort(stable=True)  # of equal ids the last comes last
    last = torch.searchsorted(ordered, ids.contiguous(), right=True) - 1
    return order.gather(0, last)
