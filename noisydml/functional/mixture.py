"""A mixture of two Gaussians as the threshold of a batch of losses (ProcSim, Table 1)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from noisydml.functional.checks import require_floating
from noisydml.functional.otsu import otsu_threshold

_STEPS = 100  # scikit-learn's most; to stop early the host would have to be asked
_FLOOR = 1e-6  # scikit-learn's reg_covar, here for values of variance 1


class Mixture(NamedTuple):
    """Two Gaussians, that of the lower mean first; float64 tensors of shape (2,)."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def gaussian_mixture(values: Tensor) -> Mixture:
    r"""Mixture of two Gaussians fitted to ``values`` by 100 steps of expectation-maximisation.

    It starts from Otsu's split. From there scikit-learn's ``GaussianMixture`` gives this mixture,
    too, with ``tol=0`` and standardised values.

    Args:
        values: (B,) floating point, finite; B >= 4 and not all equal, else the result is NaN.

    Returns:
        Weights, means and variances, (2,) float64 each; a variance is at least a millionth of that
        of all values. No transfer to the host.

    Raises:
        TypeError: if ``values`` are not floating point.
        ValueError: if they are not of one dimension.

    Example:
        >>> import torch
        >>> from noisydml.functional import gaussian_mixture
        >>> gaussian_mixture(torch.tensor([0.0, 1.0, 2.0, 10.0, 12.0])).mean
        tensor([ 1.0000, 11.0000], dtype=torch.float64)
    """
    require_floating("values", values, ndim=1)
    if len(values) < 4:
        return Mixture(*values.new_full((3, 2), math.nan, dtype=torch.float64))
    (weight, mean, variance), centre, scale = _fit(values.double())
    return Mixture(weight, centre + scale * mean, scale.square() * variance)


def gaussian_mixture_threshold(values: Tensor) -> Tensor:
    r"""Threshold between the two Gaussians of a mixture fitted to ``values`` (ProcSim, Table 1).

    It is the point between the means from which on the upper component is the likelier one; where
    one is likelier all the way, the mean of the other. DivideMix splits at equal odds, too.

    Args:
        values: (B,) floating point, finite, for instance one loss per sample.

    Returns:
        0-dim float64, ``inf`` for fewer than 4 or all equal values. No transfer to the host.

    Raises:
        TypeError: if ``values`` are not floating point.
        ValueError: if they are not of one dimension.

    Example:
        >>> import torch
        >>> from noisydml.functional import gaussian_mixture_threshold
        >>> gaussian_mixture_threshold(torch.tensor([0.0, 1.0, 2.0, 10.0, 12.0]))
        tensor(5.5445, dtype=torch.float64)
    """
    require_floating("values", values, ndim=1)
    if len(values) < 4:
        return torch.full((), math.inf, dtype=torch.float64, device=values.device)
    mixture, centre, scale = _fit(values.double())
    low, high = mixture.mean.unbind()
    threshold = centre + scale * (low + _crossing(mixture) * (high - low))
    return torch.where(values.min() == values.max(), math.inf, threshold)


def _fit(values: Tensor) -> tuple[Mixture, Tensor, Tensor]:
    """The mixture of the standardised values, and their mean and standard deviation."""
    # By way of [0, 1], so that the squares of extreme values neither vanish nor overflow.
    lowest, span = values.min(), values.max() - values.min()
    unit = (values - lowest) / span
    deviation = unit.std(correction=0)
    z = ((unit - unit.mean()) / deviation).unsqueeze(1)  # (B, 1)
    upper = (values >= otsu_threshold(values)).double()
    weight, mean, variance = _maximise(z, torch.stack([1 - upper, upper], dim=1))
    for _ in range(_STEPS):
        # (B, 2), the logarithm of weight times density, but for a constant
        joint = weight.log() - variance.log() / 2 - (z - mean).square() / (2 * variance)
        weight, mean, variance = _maximise(z, torch.softmax(joint, dim=1))
    order = mean.argsort()
    ordered = Mixture(*(part.gather(0, order) for part in (weight, mean, variance)))
    return ordered, lowest + span * unit.mean(), span * deviation


def _maximise(z: Tensor, share: Tensor) -> Mixture:
    """The M step: z (B, 1), and the share (B, 2) of each value in each component."""
    total = share.sum(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    mean = (share * z).sum(dim=0) / total
    variance = (share * (z - mean).square()).sum(dim=0) / total + _FLOOR
    return Mixture(total / len(z), mean, variance)


def _crossing(mixture: Mixture) -> Tensor:
    """Where the components are equally likely: 0 at the lower mean, 1 at the upper."""
    weight, mean, variance = mixture
    low, high = variance.unbind()
    gap = mean.diff().square().squeeze(0)
    odds = weight.log() - variance.log() / 2
    # At the position t, the logarithm of the lower's odds is a t^2 + b t + c with b < 0, and its
    # root in (0, 1) is c / q in the stable form of the quadratic formula.
    a = gap / 2 * (1 / high - 1 / low)
    b = -gap / high
    c = odds.select(0, 0) - odds.select(0, 1) + gap / (2 * high)
    q = (-b + (b.square() - 4 * a * c).clamp(min=0).sqrt()) / 2
    return torch.where(q > 0, c / q, 0.0).clamp(0, 1)
