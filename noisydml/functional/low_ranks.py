"""The share of wrong labels, from how low the given classes rank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisydml.functional.checks import require_floating, require_vector

Array = npt.NDArray[Any]

_NONE = 1e-9  # less than any number of samples


def low_rank_counts(
    similarities: Tensor, own: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""How many labels rank in the lower half of the classes, and how many would if all were wrong.

    Their ratio estimates the share of wrong labels. A wrong label says nothing of its sample, so
    that the rank of the given class among the others is uniform; a right label ranks near the
    top. Hence the lower half of the ranks holds half of the wrong labels and next to none of the
    right ones: Storey's estimate of the proportion of true null hypotheses, at
    :math:`\lambda = 1/2`. Labels that are wrong *and* similar to the right ones, such as a class's
    neighbour in a hierarchy, rank high and are not counted: the estimate is a lower bound then.

    Args:
        similarities: (B, C) floating point, of each sample with each class; ``-inf`` for classes
            that are not there, for all samples alike. Only their order counts.
        own: (B,) the similarity to the class of each sample's label, from
            :func:`~noisydml.functional.own_similarity`.
        counted: (B,) bool, the samples that take part; None for all.

    Returns:
        Two 0-dim float64 tensors, to be summed over batches before they are divided. The middle
        one of an odd number of ranks counts half. Samples whose own class is not there, or is the
        only one, count in neither. No transfer to the host.

    References:
        Storey, A direct approach to false discovery rates, JRSS B 2002.

    Example:
        >>> import torch
        >>> from noisydml.functional import low_rank_counts, own_similarity
        >>> similarities = torch.eye(8) - torch.arange(8) / 100
        >>> labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 6])  # the last two are wrong
        >>> found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
        >>> found / expected
        tensor(0.2500, dtype=torch.float64)
    """
    require_floating("similarities", similarities, ndim=2)
    require_floating("own", own, ndim=1)
    require_vector("own", own, len(similarities), "row of similarities")
    present = _present(similarities)
    known = (own > -math.inf) & (present > 1)
    if counted is not None:
        require_vector("counted", counted, len(similarities), "row of similarities")
        known = known & counted
    # 1 in the lower half of the ranks, -1 in the upper one, 0 in the middle.
    half = torch.sub(_above(similarities, own), present, alpha=0.5).sign_()
    expected = known.sum(dtype=torch.float64) / 2
    return (half * known).sum(dtype=torch.float64).div_(2).add_(expected), expected


def smooth_noise_rate(
    similarities: Tensor, own: Tensor, counted: Tensor | None, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The estimate over the last W batches, this one included, but never above 1.

    Args:
        similarities: (B, C) as in :func:`low_rank_counts`.
        own: (B,) as there.
        counted: (B,) bool or None, as there.
        counts: (W, 2) float64, :func:`low_rank_counts` of the batches before, the latest at the
            end.

    Returns:
        The rate, 0-dim float64, 0 where there is nothing to go by; (W, 2) the counts after it.
    """
    latest = torch.stack(low_rank_counts(similarities, own, counted)).unsqueeze(0)
    counts = torch.cat([counts.double().narrow(0, 1, len(counts) - 1), latest])
    in_all = counts.sum(dim=0)
    rate = in_all.select(0, 0) / in_all.select(0, 1).clamp_min(_NONE)
    return rate.clamp_max(1), counts


def smooth_noise_rate_on_host(
    similarities: Array, own: Array, counted: Array, counts: Array
) -> tuple[float, Array]:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    found = expected = 0.0
    present = np.count_nonzero(similarities[0] > -math.inf)
    if present > 1:
        narrow = np.min_scalar_type(similarities.shape[1])  # the fewer bytes, the faster
        above = (similarities > own[:, np.newaxis]).sum(axis=1, dtype=narrow)
        half = np.sign(above[counted] - 0.5 * present)
        found, expected = float(half.sum() + len(half)) / 2, len(half) / 2
    counts = np.concatenate([counts[1:], [[found, expected]]])
    found, expected = counts.sum(axis=0).tolist()
    return min(found / max(expected, _NONE), 1.0), counts


def _present(similarities: Tensor) -> Tensor:
    """0-dim int64, how many classes are there."""
    return (similarities.narrow(0, 0, min(1, len(similarities))) > -math.inf).count_nonzero()


def _above(similarities: Tensor, own: Tensor) -> Tensor:
    """(B,) how many classes are above the own one, 0 where that is the nearest.

    A wrong label has 1 to K, the right class being one of them. A sum of floats is several times
    as fast as one of bools, and exact up to 2^24 classes.
    """
    dtype = torch.promote_types(similarities.dtype, torch.float32)
    higher = torch.empty_like(similarities, dtype=dtype)
    return torch.gt(similarities, own.unsqueeze(1), out=higher).sum(dim=1)
