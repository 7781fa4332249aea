"""The threshold below which a given share of the samples lies (PRISM)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisydml.functional.checks import require_floating, require_number, require_vector

Array = npt.NDArray[Any]

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


def smooth_top_r_on_host(
    probabilities: Array, noise_rate: float, known: Array, quantiles: Array, number: int
) -> tuple[float, Array, int]:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    ordered = np.sort(probabilities if known.all() else np.where(known, probabilities, math.inf))
    drops = int(noise_rate * np.count_nonzero(known) + _EXACT)
    quantile = float(ordered[drops - 1]) if drops else -math.inf
    if not quantile > -math.inf:
        return quantile, quantiles, number
    number = min(number + 1, len(quantiles))
    threshold = (float(quantiles[1:].sum()) + quantile) / number
    best = float(ordered[-1])
    if best <= threshold:
        threshold = min(quantile, math.nextafter(best, -math.inf))
        quantiles, number = np.zeros_like(quantiles), 1
    return threshold, np.concatenate([quantiles[1:], [quantile]]), number
