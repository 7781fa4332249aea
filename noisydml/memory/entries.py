"""What a memory stores of a sample, and the means of what it stores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EMPTY = -1  # the label of an entry that holds nothing, and the id of one that has none

# Features are rounded to multiples of 2^-26, the last place of a float32 between 1/8 and 1/4: what
# is larger is one already. Sums of up to 2^26 of them are exact in float64, in any order, so that
# subtracting what leaves undoes exactly what adding it did.
_GRAIN = 2.0**26
_TINY = 1e-12  # as in torch.nn.functional.normalize


class Entries(NamedTuple):
    """Samples as they are stored."""

    features: Tensor  # (B, D)
    labels: Tensor  # (B,) int64
    sample_ids: Tensor  # (B,) int64

    def where(self, mask: Tensor, others: Entries) -> Entries:
        """These entries, or the others where the mask (B,) is false."""
        masks = (mask.unsqueeze(1), mask, mask)
        return Entries(*map(torch.where, masks, self, others))


def unit_features(features: Tensor) -> Tensor:
    """(B, D) of length 1, of numbers whose sums are exact; zeros stay zeros."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features.mul(_grains(features)).round_().mul_(1 / _GRAIN)


def make_unit_on_host(features: npt.NDArray[Any]) -> None:
    """The same to the bit, by NumPy and in place."""
    features *= _grains(torch.from_numpy(features)).numpy()
    np.rint(features, out=features)
    features *= 1 / _GRAIN


def _grains(features: Tensor) -> Tensor:
    """(B, 1) what takes each row to a length of ``_GRAIN``."""
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return length.clamp_min_(_TINY).reciprocal_().mul_(_GRAIN)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """(C, D) float32; zeros for a class of no entries."""
    return sums.float().mul_(counts.clamp_min(1).float().reciprocal_().unsqueeze(1))


def update_centers(centers: Tensor, sums: Tensor, counts: Tensor, classes: Tensor) -> None:
    """Those of some classes, any of them more than once, in place."""
    some = (values.index_select(0, classes) for values in (sums, counts))
    centers.index_copy_(0, classes, class_means(*some))
