"""The mean feature of every class, exact however often features come and go."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisydml import distributed
from noisydml.functional.products import scaled
from noisydml.memory.state import overwrite

EMPTY = -1  # the label of an entry that holds nothing, and the id of one that has none

# Features are rounded to multiples of 2^-26, the last place of a float32 between 1/8 and 1/4: what
# is larger is one already. Sums of up to 2^26 of them are exact in float64, in any order, so that
# subtracting what leaves undoes exactly what adding it did.
_GRAIN = 2.0**26
_TINY = 1e-12  # as in torch.nn.functional.normalize


class ClassCenters(nn.Module):
    r"""Sums, counts and means of the unit features of every class (PRISM, Eq. 6).

    What enters is added and what leaves subtracted, in O(B D) and without any rounding error, so
    that a class that has left leaves no trace. None of it is in ``state_dict``, as it follows from
    the features.

    Args:
        num_classes: C.
        embedding_size: D.

    Attributes:
        sums: (C, D) float64.
        counts: (C,) int64.
        centers: (C, D) float32, zeros for a class of no features.

    Example:
        >>> import torch
        >>> from noisydml.memory.centers import ClassCenters, unit_features
        >>> classes = ClassCenters(num_classes=2, embedding_size=2)
        >>> classes.recount(unit_features(torch.eye(2)), torch.tensor([1, 1]))
        >>> classes.centers
        tensor([[0.0000, 0.0000],
                [0.5000, 0.5000]])
    """

    sums: Tensor
    counts: Tensor
    centers: Tensor

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        shape = (num_classes, embedding_size)
        follows = {
            "sums": torch.zeros(shape, dtype=torch.float64),
            "counts": torch.zeros(num_classes, dtype=torch.int64),
            "centers": torch.zeros(shape, dtype=torch.float32),
        }
        for name, buffer in follows.items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def is_exact(self) -> bool:
        """Whether no ``.half()`` has taken precision away."""
        return (self.sums.dtype, self.centers.dtype) == (torch.float64, torch.float32)

    def exchange(
        self, new: Tensor, new_labels: Tensor, old: Tensor, old_labels: Tensor, counted: Tensor
    ) -> None:
        """(B, D) rows enter, and those that were in their place leave, where ``counted`` says."""
        times = torch.cat([counted.long(), counted.long().neg_()])
        labels = torch.cat([new_labels, old_labels])
        self._add(torch.cat([new, old]), labels, times)
        if 2 * len(labels) >= len(self.counts):  # picking classes out would cost more
            overwrite(self.centers, class_means(self.sums, self.counts))
        else:
            classes = labels.clamp_min(0)
            sums, counts = self.sums.index_select(0, classes), self.counts.take(classes)
            self.centers.index_copy_(0, classes, class_means(sums, counts))

    def recount(self, features: Tensor, labels: Tensor) -> None:
        """Begin anew with (M, D) features; a label of -1 stands for none."""
        self.sums = torch.zeros_like(self.sums, dtype=torch.float64)
        self.counts = torch.zeros_like(self.counts)
        self._add(features, labels, torch.ones_like(labels))
        self.centers = class_means(self.sums, self.counts)

    def sum_over_ranks(self) -> None:
        """Make those of a part those of all ranks."""
        distributed.sum_over_ranks([self.sums, self.counts])
        self.centers = class_means(self.sums, self.counts)

    def _add(self, features: Tensor, labels: Tensor, times: Tensor) -> None:
        """Each row so many times to the sums of its class."""
        times = times.masked_fill(labels == EMPTY, 0)
        classes = labels.clamp_min(0)  # what is not there adds zeros to class 0
        rows = features.double().masked_fill((times == 0).unsqueeze(1), 0)
        self.sums.index_add_(0, classes, rows.mul_(times.unsqueeze(1)))
        self.counts.index_add_(0, classes, times)


def unit_features(features: Tensor) -> Tensor:
    """(B, D) of length 1, of numbers whose sums are exact; zeros stay zeros."""
    features = scaled(features.to(torch.promote_types(features.dtype, torch.float32)))
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    grains = length.clamp_min_(_TINY).reciprocal_().mul_(_GRAIN)
    return features.mul(grains).round_().mul_(1 / _GRAIN)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """(C, D) float32; zeros for a class of no entries."""
    return sums.float().mul_(counts.clamp_min(1).float().reciprocal_().unsqueeze(1))
