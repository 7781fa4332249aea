"""The threshold below which a given share of the samples lies (PRISM), and that share itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from noisydml.functional.checks import require_floating, require_number, require_vector

# A product that a rounding error keeps below a whole number is that number: 0.29 * 100.
_EXACT = 1e-9


def top_r_threshold(
    probabilities: Tensor, noise_rate: float | Tensor, known: Tensor | None = None
) -> Tensor:
    r"""The :math:`\lfloor R n \rfloor`-th smallest probability: what is above it is kept (TRM).

    Args:
        probabilities: (B,) floating point.
        noise_rate: :math:`R`, a number in ``[0, 1]``, or a 0-dim tensor.
        known: (B,) bool, the n samples that take part; None for all. Samples of a class that the
            memory does not hold have probability 1 without evidence and must stay out, or they
            would push the quantile up.

    Returns:
        0-dim float64 tensor; ``-inf``, which drops nobody, where :math:`\lfloor R n \rfloor` is 0.
        No transfer to the host.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import top_r_threshold
        >>> top_r_threshold(torch.tensor([0.4, 0.1, 0.3, 0.2]), noise_rate=0.5)
        tensor(0.2000, dtype=torch.float64)
    """
    require_floating("probabilities", probabilities, ndim=1)
    n: int | Tensor = len(probabilities)
    taking_part = probabilities.double()
    if known is not None:
        require_vector("known", known, len(probabilities), "probability")
        taking_part = torch.where(known, taking_part, math.inf)
        n = known.sum(dtype=torch.float64)  # of an integer the product has single precision
    if not isinstance(noise_rate, Tensor):
        require_number("noise_rate", noise_rate)
        if not 0 <= noise_rate <= 1:
            raise ValueError(f"noise_rate must be in [0, 1], got {noise_rate}")
    # With -inf in front the k-th smallest has the index k, from 0 on.
    ordered = torch.nn.functional.pad(taking_part.sort().values, (1, 0), value=-math.inf)
    drops = torch.as_tensor(noise_rate * n + _EXACT, device=ordered.device).long()
    return ordered.gather(0, drops.reshape(1)).squeeze(0)


class SmoothTopR(NamedTuple):
    """The threshold of a batch, and the window of quantiles after it.

    Attributes:
        threshold: 0-dim float64; ``-inf`` drops nobody.
        quantiles: (W,) float64, the latest at the end, zeros in front of the first.
        number: 0-dim int64, how many of them there are.
    """

    threshold: Tensor
    quantiles: Tensor
    number: Tensor


def smooth_top_r(
    probabilities: Tensor,
    noise_rate: float | Tensor,
    known: Tensor,
    quantiles: Tensor,
    number: Tensor,
) -> SmoothTopR:
    r"""The mean of the last W of :func:`top_r_threshold`, this batch's included (PRISM, Eq. 4).

    Where nobody would be above it, the window starts again with this batch alone; the best ones
    are above the threshold even then. A batch with the quantile ``-inf`` does not enter the
    window.

    Args:
        probabilities: (B,) as in :func:`top_r_threshold`, with B >= 1.
        noise_rate: as there.
        known: (B,) as there.
        quantiles: (W,) float64, of the batches before.
        number: 0-dim int64, how many there are.
    """
    if probabilities.device.type == "cpu":
        return _smooth_on_host(probabilities, noise_rate, known, quantiles, number)
    return _smooth_on_device(probabilities, noise_rate, known, quantiles, number)


def _smooth_on_device(
    probabilities: Tensor,
    noise_rate: float | Tensor,
    known: Tensor,
    quantiles: Tensor,
    number: Tensor,
) -> SmoothTopR:
    quantile = top_r_threshold(probabilities, noise_rate, known)
    older = quantiles.narrow(0, 1, len(quantiles) - 1)
    number_now = (number + 1).clamp_max_(len(quantiles))
    mean = (older.sum() + quantile) / number_now

    best = torch.where(known, probabilities.double(), math.inf).amax()
    starts_again = best <= mean
    just_below = torch.nextafter(best, torch.full_like(best, -math.inf))
    threshold = torch.where(starts_again, torch.minimum(quantile, just_below), mean)

    older = older.masked_fill(starts_again, 0)
    number_now = number_now.masked_fill_(starts_again, 1)
    counts = quantile > -math.inf
    return SmoothTopR(
        threshold,
        torch.where(counts, torch.cat([older, quantile.reshape(1)]), quantiles),
        torch.where(counts, number_now, number),
    )


def _smooth_on_host(
    probabilities: Tensor,
    noise_rate: float | Tensor,
    known: Tensor,
    quantiles: Tensor,
    number: Tensor,
) -> SmoothTopR:
    """The same where numbers can be read without a wait: they take no time, small tensors do."""
    ordered = torch.where(known, probabilities.double(), math.inf).sort().values
    drops = int(float(noise_rate) * int(known.count_nonzero()) + _EXACT)
    quantile = ordered.select(0, drops - 1).item() if drops else -math.inf
    if not quantile > -math.inf:
        return SmoothTopR(ordered.new_full((), quantile), quantiles, number)
    older = quantiles.narrow(0, 1, len(quantiles) - 1)
    number_now = min(int(number) + 1, len(quantiles))
    threshold = (older.sum().item() + quantile) / number_now
    best = ordered.select(0, len(ordered) - 1).item()
    if best <= threshold:
        threshold = min(quantile, math.nextafter(best, -math.inf))
        older, number_now = torch.zeros_like(older), 1
    return SmoothTopR(
        ordered.new_full((), threshold),
        torch.cat([older, ordered.narrow(0, drops - 1, 1)]),
        torch.full_like(number, number_now),
    )


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
    present = (similarities.narrow(0, 0, min(1, len(similarities))) > -math.inf).count_nonzero()
    known = (own > -math.inf) & (present > 1)
    if counted is not None:
        require_vector("counted", counted, len(similarities), "row of similarities")
        known = known & counted
    # How many classes are above, 0 where the own is the nearest: a wrong label has 1 to K, the
    # right class being one of them. A sum of floats is several times as fast as one of bools, and
    # exact up to 2^24 classes.
    dtype = torch.promote_types(similarities.dtype, torch.float32)
    higher = torch.empty_like(similarities, dtype=dtype)
    above = torch.gt(similarities, own.unsqueeze(1), out=higher).sum(dim=1)
    # 1 in the lower half of the ranks, -1 in the upper one, 0 in the middle.
    half = torch.sub(above, present, alpha=0.5).sign_()
    expected = known.sum(dtype=torch.float64) / 2
    return (half * known).sum(dtype=torch.float64).div_(2).add_(expected), expected
