"""Otsu's threshold: the two-cluster split of a batch of losses (ProcSim, Algorithm 1)."""

import math

import torch
from torch import Tensor

from noisydml.functional.checks import require_floating

_MIN_CLUSTER = 2  # Alg. 1, line 4: the candidates leave two samples on each side
# Variances between the groups closer than this share of the largest are equal but for rounding:
# the lower threshold wins, as in the loop of Alg. 1 with exact arithmetic.
_TIE = 1e-12


def otsu_threshold(values: Tensor) -> Tensor:
    r"""Threshold that splits ``values`` into two groups of least variance (ProcSim, Algorithm 1).

    Of the midpoints :math:`\tau` of consecutive sorted values that leave two samples or more on
    each side, the one of least :math:`(|C_0| Var[C_0] + |C_1| Var[C_1]) / B`, with
    :math:`C_0 = \{v < \tau\}`, :math:`C_1 = \{v \ge \tau\}` and population variances:
    one-dimensional 2-means. Of equal costs the lowest threshold wins.

    Args:
        values: (B,) floating point, finite, for instance one loss per sample.

    Returns:
        0-dim float64, as a midpoint needs more digits than the values; ``inf`` for fewer than 4 or
        all equal values. O(B log B), no transfer to the host.

    Raises:
        TypeError: if ``values`` are not floating point.
        ValueError: if they are not of one dimension.

    Example:
        >>> import torch
        >>> from noisydml.functional import otsu_threshold
        >>> otsu_threshold(torch.tensor([0.1, 0.2, 0.3, 2.0, 2.2]))
        tensor(1.1500, dtype=torch.float64)
    """
    require_floating("values", values, ndim=1)
    n = len(values)
    if n < 2 * _MIN_CLUSTER:
        return torch.full((), math.inf, dtype=torch.float64, device=values.device)
    ordered = values.double().sort().values
    n_candidates = n - 2 * _MIN_CLUSTER + 1
    low = ordered.narrow(0, _MIN_CLUSTER - 1, n_candidates)
    high = ordered.narrow(0, _MIN_CLUSTER, n_candidates)
    total = low + high
    candidates = torch.where(total.isinf(), low / 2 + high / 2, total / 2)
    # Counted, not taken from the position: values equal to a midpoint are all above it.
    n_below = torch.searchsorted(ordered, candidates)
    threshold = candidates.take(_best_split(ordered, n_below))
    return torch.where(ordered.select(0, 0) == ordered.select(0, -1), math.inf, threshold)


def _best_split(ordered: Tensor, n_below: Tensor) -> Tensor:
    """Index of the first entry of ``n_below`` whose split has the least cost."""
    n = len(ordered)
    # To [0, 1] from the lowest value, so that neither a common offset nor an extreme scale costs
    # digits; halved first where even the span of the values would overflow.
    lowest, highest = ordered.select(0, 0), ordered.select(0, -1)
    scale = torch.where((highest - lowest).isinf(), 0.5, 1.0).double()
    span = (highest * scale - lowest * scale).clamp(min=torch.finfo(torch.float64).tiny)
    unit = (ordered * scale - lowest * scale) / span
    sums = torch.cumsum(unit - unit.mean(), dim=0)
    total = sums.select(0, -1)
    below = sums.take((n_below - 1).clamp(min=0))
    n_above = n - n_below
    # The total variance is the cost and the variance between the groups: most of it, least cost.
    gap = below / n_below.clamp(min=1) - (total - below) / n_above
    between = gap.square() * n_below * n_above / n  # 0 where nothing lies below
    best = between >= between.max() * (1 - _TIE)
    return best.to(torch.uint8).argmax()
