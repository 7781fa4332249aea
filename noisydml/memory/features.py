"""The memory of past features, with exact class centers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisydml.functional.checks import on_host, require_count, require_floating, require_integer
from noisydml.functional.repeats import last_of_equals
from noisydml.memory import on_host as memory_on_host
from noisydml.memory.entries import EMPTY, Entries, class_means, unit_features, update_centers


class FeatureMemory(nn.Module):
    r"""A ring of the latest features with their labels, and the mean feature of every class.

    New entries overwrite the oldest, strictly first in, first out; entries may also be written
    in place by sample id. With ``num_classes`` the memory keeps the plain mean of every class,
    :math:`w_k = \frac{1}{M_k}\sum_{y_j = k} v_j / \lVert v_j \rVert` (PRISM, Eq. 6), for **all**
    classes at every step, in O(B D): what enters is added, what leaves is subtracted, without
    any rounding error, so that a class that has left the memory leaves no trace.

    Args:
        memory_size: number of entries, M, at least 1.
        embedding_size: width of the features, D, at least 1; None to take it from the first
            embeddings that are stored, or from the state that is loaded. Centers need it.
        num_classes: number of classes, C, with labels in ``[0, C)``; None for a memory without
            centers and with any labels that are not negative.
        normalize: whether features are divided by their Euclidean norm on the way in. Centers
            need it.
        dtype: of the stored features; ``torch.float16`` halves the memory.

    Attributes:
        features: (M, D), on entry normalised and detached, zeros where nothing is stored.
        labels: (M,) int64, -1 where nothing is stored.
        sample_ids: (M,) int64, -1 where unknown.
        total: 0-dim int64, how many entries have been enqueued in all.
        centers: (C, D) float32, zeros for a class without entries. Only with ``num_classes``.
        counts: (C,) int64, entries of each class. Only with ``num_classes``.

    Everything is in ``state_dict`` but what follows from it, the centers and counts, which are
    computed afresh by ``load_state_dict``. No method transfers anything to the host. Memory:
    ``M (4 D + 16)`` bytes in float32, and ``C (12 D + 8)`` for the centers.

    Raises:
        TypeError, ValueError: for an impossible setting.

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

    features: Tensor
    labels: Tensor
    sample_ids: Tensor
    total: Tensor
    sums: Tensor
    counts: Tensor
    centers: Tensor

    def __init__(
        self,
        memory_size: int,
        embedding_size: int | None = None,
        num_classes: int | None = None,
        *,
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        require_count("memory_size", memory_size)
        if embedding_size is not None:
            require_count("embedding_size", embedding_size)
        if num_classes is not None:
            require_count("num_classes", num_classes)
            if embedding_size is None:
                raise ValueError("num_classes needs embedding_size, the width of the centers")
            if not normalize:
                raise ValueError(
                    "num_classes needs normalize=True: centers are means of unit vectors"
                )
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.memory_size = memory_size
        self.embedding_size = embedding_size
        self.num_classes = num_classes
        self.normalize = normalize
        width = embedding_size or 0
        self.register_buffer("features", torch.zeros(memory_size, width, dtype=dtype))
        self.register_buffer("labels", torch.full((memory_size,), EMPTY))
        self.register_buffer("sample_ids", torch.full((memory_size,), EMPTY))
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_take_width)  # type: ignore[no-untyped-call]
        if num_classes is not None:
            shape = (num_classes, width)
            sums = torch.zeros(shape, dtype=torch.float64)
            self.register_buffer("sums", sums, persistent=False)
            counts = torch.zeros(num_classes, dtype=torch.int64)
            self.register_buffer("counts", counts, persistent=False)
            self.register_buffer("centers", torch.zeros(shape), persistent=False)
            self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                FeatureMemory._recount
            )

    def __len__(self) -> int:
        return self.memory_size

    def enqueue(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> None:
        """Store rows in their order, over the oldest entries.

        Args:
            embeddings: (B, D) floating point; of more than M rows the last M remain.
            labels: (B,) integers. Their range is not checked, as that would make the host wait.
            sample_ids: (B,) integers, or None.
            keep: (B,) bool, which rows to store; None for all of them.
        """
        self._check(embeddings, labels, sample_ids, keep)
        if on_host(self.total):
            memory_on_host.enqueue(self, embeddings, labels, sample_ids, keep)
        else:
            keep = torch.ones_like(labels).bool() if keep is None else keep
            self._enqueue_masked(embeddings, labels, sample_ids, keep)

    def write(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> None:
        """Store rows in place: the row with sample id i becomes entry i.

        Args:
            embeddings: (B, D) floating point.
            labels: (B,) integers.
            sample_ids: (B,) integers in ``[0, M)``; of equal ids the last row counts.
        """
        self._check(embeddings, labels, sample_ids, None)
        if len(embeddings) == 0:
            return
        last, old = last_of_equals(sample_ids), self._entries(sample_ids)
        new = self._converted(embeddings, labels, sample_ids, last)
        # Of an entry that is written twice only the last row counts.
        counts = last == torch.arange(len(last), device=last.device)
        self._count(old, new.where(counts, old))
        self._overwrite(sample_ids, new)
        self.total.add_(len(embeddings))

    @property
    def filled(self) -> Tensor:
        """(M,) bool, which entries hold something."""
        return self.labels != EMPTY

    def allocate(self, embedding_size: int | None) -> None:
        """Make room for features of this width where it was left open; what is stored is lost."""
        self.embedding_size = embedding_size
        self.features = self.features.new_zeros(self.memory_size, embedding_size or 0)

    def reset(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()
        self.labels.fill_(EMPTY)
        self.sample_ids.fill_(EMPTY)

    def extra_repr(self) -> str:
        return (
            f"memory_size={self.memory_size}, embedding_size={self.embedding_size}, "
            f"num_classes={self.num_classes}"
        )

    def _check(
        self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None, keep: Tensor | None
    ) -> None:
        require_floating("embeddings", embeddings, ndim=2)
        if self.embedding_size is None and embeddings.shape[1] > 0:
            self.allocate(embeddings.shape[1])
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings must be as wide as the memory, {self.embedding_size}, "
                f"got {embeddings.shape[1]}"
            )
        require_integer("labels", labels, len(embeddings))
        if sample_ids is not None:
            require_integer("sample_ids", sample_ids, len(embeddings))
        if keep is not None and (keep.dtype != torch.bool or keep.shape != labels.shape):
            raise ValueError(
                f"keep must be bool of shape ({len(embeddings)},), "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )

    def _enqueue_masked(
        self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None, keep: Tensor
    ) -> None:
        """Store rows of which only the device knows how many are kept.

        The kept rows come first, from the last to the first, then the others, which write back
        what is there: no shape depends on how many are kept.
        """
        size, device = len(embeddings), embeddings.device
        if size == 0:
            return
        newest = min(size, self.memory_size)
        order = keep.flip(0).logical_not().argsort(stable=True).narrow(0, 0, newest)
        age = torch.arange(newest, device=device)
        kept = keep.sum()
        slots = (self.total + kept - 1 - age).remainder(self.memory_size)
        fresh, old = age < kept, self._entries(slots)
        new = self._converted(embeddings, labels, sample_ids, size - 1 - order).where(fresh, old)
        self._count(old, new)
        self._overwrite(slots, new)
        self.total.add_(kept)

    def _columns(self) -> Entries:
        return Entries(self.features, self.labels, self.sample_ids)

    def _entries(self, slots: Tensor) -> Entries:
        return Entries(*(buffer.index_select(0, slots) for buffer in self._columns()))

    def _overwrite(self, slots: Tensor, new: Entries) -> None:
        for buffer, column in zip(self._columns(), new, strict=True):
            buffer.index_copy_(0, slots, column)

    def _converted(
        self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None, rows: Tensor | None
    ) -> Entries:
        """The rows of a batch, or some of them, as they are stored."""
        features = embeddings.detach()
        if rows is not None:
            features, labels = features.index_select(0, rows), labels.index_select(0, rows)
            sample_ids = None if sample_ids is None else sample_ids.index_select(0, rows)
        if self.normalize:
            features = unit_features(features)
        return Entries(
            features.to(self.features.dtype),
            labels.to(torch.int64),
            torch.full_like(labels, EMPTY) if sample_ids is None else sample_ids.to(torch.int64),
        )

    def _count(self, old: Entries, new: Entries) -> None:
        """What follows from the entries, before ``old`` ones become ``new``."""
        if self.num_classes is None:
            return
        self._add(new, 1)
        self._add(old, -1)
        if 4 * len(new.labels) >= len(self.centers):  # picking them out would cost more
            self.centers = class_means(self.sums, self.counts)
        else:
            classes = torch.cat([new.labels, old.labels]).clamp_min_(0)
            update_centers(self.centers, self.sums, self.counts, classes)

    def _add(self, entries: Entries, sign: int) -> None:
        present = (entries.labels != EMPTY).long()
        classes = entries.labels.clamp_min(0)  # what is not there adds zeros to class 0
        self.sums.index_add_(0, classes, entries.features.double(), alpha=sign)
        self.counts.index_add_(0, classes, present, alpha=sign)

    def _recount(self, *_: Any) -> None:
        """Centers and counts from the entries alone."""
        self.sums = torch.zeros_like(self.sums, dtype=torch.float64)
        self.counts = torch.zeros_like(self.counts)
        self._add(self._columns(), 1)
        self.centers = class_means(self.sums, self.counts)

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureMemory:
        """``.half()`` and the like change the stored features, not the precision of the centers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        exact = (torch.float64, torch.float32)
        if self.num_classes is not None and (self.sums.dtype, self.centers.dtype) != exact:
            self._recount()
        return self


def _take_width(memory: FeatureMemory, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A memory whose width was left open has that of the state it loads."""
    features = state.get(f"{prefix}features")
    if features is not None and memory.num_classes is None and features.ndim == 2:
        memory.allocate(features.shape[1] or None)
