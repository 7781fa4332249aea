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

    The candidates are the midpoints of consecutive sorted values that leave at least two
    samples on each side; the one with the least
    :math:`(|C_0| Var[C_0] + |C_1| Var[C_1]) / B` is taken, with
    :math:`C_0 = \{v < \tau\}`, :math:`C_1 = \{v \ge \tau\}` and population variances, which makes
    it one-dimensional 2-means. Equal values fall on the same side; of equal costs the lowest
    threshold wins.

    Args:
        values: (B,) floating-point tensor of finite values, for instance one loss per sample.

    Returns:
        0-dim float64 tensor (the midpoint of two floats needs more digits than they have), on the
        device of ``values``. It is ``inf``, which no value exceeds, where there is nothing to
        split: fewer than 4 values, or all of them equal. NaN or infinite values give no defined
        threshold.

    Raises:
        TypeError: if ``values`` is not a floating-point tensor.
        ValueError: if it has not exactly one dimension.

    Notes:
        O(B log B) by a sort and prefix sums in float64, centred so that a large common offset
        costs no digits. No transfer to the host.

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
    # A midpoint that equals some values has all of them above it, so the split is counted, not
    # taken from the position.
    n_below = torch.searchsorted(ordered, candidates)

    threshold = candidates.take(_best_split(ordered, n_below))
    return torch.where(ordered.select(0, 0) == ordered.select(0, -1), math.inf, threshold)


def _best_split(ordered: Tensor, n_below: Tensor) -> Tensor:
    """Index of the first entry of ``n_below`` whose split has the least cost.

    The cost is the total variance less the variance between the groups, so the most of the
    latter is looked for: it needs sums only, no squares, and loses no digits.
    """
    n = len(ordered)
    # To [0, 1] from the lowest value, so that neither a common offset nor an extreme scale costs
    # digits; halved first where even the span of the values would overflow.
    lowest, highest = ordered.select(0, 0), ordered.select(0, -1)
    scale = torch.where((highest - lowest).isinf(), 0.5, 1.0).double()
    span = (highest * scale - lowest * scale).clamp(min=torch.finfo(torch.float64).tiny)
    unit = (ordered * scale - lowest * scale) / span
    centred = unit - unit.mean()
    sums = torch.cumsum(centred, dim=0)
    total = sums.select(0, -1)
    below = sums.take((n_below - 1).clamp(min=0))
    n_above = n - n_below
    gap = below / n_below.clamp(min=1) - (total - below) / n_above
    between = gap.square() * n_below * n_above / n  # 0 where nothing lies below
    best = between >= between.max() * (1 - _TIE)
    return best.to(torch.uint8).argmax()
