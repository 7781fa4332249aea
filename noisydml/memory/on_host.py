"""Enqueueing where the host may read numbers: in runs of slots, the small things by NumPy.

With the few rows of a batch most of the time goes into calling, and there NumPy is quicker.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisydml.memory.entries import EMPTY, make_unit_on_host, update_centers

Array = npt.NDArray[Any]


class Memory(Protocol):
    """A ``FeatureMemory``, for which this is written."""

    features: Tensor
    labels: Tensor
    sample_ids: Tensor
    total: Tensor
    sums: Tensor
    counts: Tensor
    centers: Tensor
    num_classes: int | None
    normalize: bool


def enqueue(
    memory: Memory,
    embeddings: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    keep: Tensor | None,
) -> None:
    """What ``FeatureMemory.enqueue`` does."""
    rows = np.arange(len(labels)) if keep is None else keep.numpy().nonzero()[0]
    features = _stored(memory, embeddings.detach(), rows)
    classes = labels.numpy()[rows].astype(np.int64)
    ids = None if sample_ids is None else sample_ids.numpy()[rows]
    stored, stored_classes = memory.features, memory.labels.numpy()
    total, size, slots = int(memory.total), len(rows), len(stored)
    done = max(0, size - slots)
    while done < size:  # twice where the end of the ring is reached
        start = (total + done) % slots
        run = min(size - done, slots - start)
        these, there = slice(done, done + run), slice(start, start + run)
        old = stored.narrow(0, start, run)
        new = features if run == size else features[these]
        if memory.num_classes is not None:
            _exchange(memory, old, stored_classes[there], new, classes[these])
        old.copy_(new)
        stored_classes[there] = classes[these]
        memory.sample_ids.numpy()[there] = EMPTY if ids is None else ids[these]
        done += run
    memory.total.add_(size)


def _stored(memory: Memory, embeddings: Tensor, rows: Array) -> Tensor:
    """(len(rows), D) those rows as the memory has them."""
    single = torch.promote_types(embeddings.dtype, torch.float32)
    features = embeddings.to(single).numpy()[rows]
    if memory.normalize:
        make_unit_on_host(features)
    return torch.from_numpy(features).to(memory.features.dtype)


def _exchange(memory: Memory, old: Tensor, old_classes: Array, new: Tensor, classes: Array) -> None:
    """Sums, counts and centers, when ``old`` features make way for ``new`` ones."""
    sums, counts = memory.sums, memory.counts.numpy()
    rows = _add(sums, counts, new, classes, 1)
    old_rows = _add(sums, counts, old, old_classes, -1)
    if 4 * len(classes) >= len(counts):  # picking them out would cost more
        share = 1 / np.maximum(counts, 1).astype(np.float32)
        memory.centers.copy_(sums).mul_(torch.from_numpy(share[:, np.newaxis]))
    else:
        update_centers(memory.centers, sums, memory.counts, torch.cat([rows, old_rows]))


def _add(sums: Tensor, counts: Array, features: Tensor, classes: Array, sign: int) -> Tensor:
    """Returns the classes as a tensor, 0 for what is not there, which adds zeros to it."""
    filled = classes != EMPTY
    np.add.at(counts, classes, sign * filled)
    rows = torch.from_numpy(classes * filled)
    sums.index_add_(0, rows, features.double(), alpha=sign)
    return rows
