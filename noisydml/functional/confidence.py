"""The confidence in a label, by how far its loss lies above a threshold, and a running mean."""

import math

import torch
from torch import Tensor

from noisydml.functional.checks import (
    require_decay,
    require_floating,
    require_number,
    require_positive,
)
from noisydml.functional.lambertw import lambertw

LOWEST = -2 / math.e  # where SuperLoss clamps: half of it is Lambert's branch point


def confidence(losses: Tensor, threshold: Tensor | float, lam: float, lower: float = 0.0) -> Tensor:
    r"""Confidence :math:`\sigma_i` in every label, from one loss per sample (ProcSim, Eq. 3).

    .. math::
        \sigma_i = \exp\{-W(\tfrac12 \max\{\beta_0, (\ell_i - \tau)/\lambda\})\}

    It is 1 up to the threshold and falls towards 0 above it. :math:`\beta_0 = -2/e` makes it
    SuperLoss, which also raises the weight of easy samples, up to e (ProcSim, Eq. 12).

    Args:
        losses: floating point, of any shape.
        threshold: :math:`\tau`, a number, a 0-dim tensor or one per loss; ``inf`` trusts everyone.
        lam: :math:`\lambda`, finite and above 0, in the unit of the losses; the larger, the milder.
        lower: :math:`\beta_0`, from ``-2/e`` to 0.

    Returns:
        Shape and dtype of ``losses``, in [0, 1], or in [0, e] with ``lower=-2/e``. Differentiable.

    Raises:
        TypeError: if ``losses`` is not floating point, or ``lam`` or ``lower`` no number.
        ValueError: if ``lam`` or ``lower`` is out of its range, or ``threshold`` of another shape.

    Example:
        >>> import torch
        >>> from noisydml.functional import confidence
        >>> confidence(torch.tensor([0.2, 1.0, 3.0]), threshold=1.0, lam=0.5)
        tensor([1.0000, 1.0000, 0.4263])
    """
    require_floating("losses", losses)
    require_positive("lam", lam)
    require_number("lower", lower)
    if not LOWEST <= lower <= 0:
        raise ValueError(f"lower must be between -2/e = {LOWEST:.6f} and 0, got {lower}")
    if isinstance(threshold, Tensor) and threshold.ndim and threshold.shape != losses.shape:
        raise ValueError(
            f"threshold must be 0-dim or of the shape of losses, {tuple(losses.shape)}, "
            f"got {tuple(threshold.shape)}"
        )
    excess = (losses.double() - threshold) / lam
    return torch.exp(-lambertw(excess.clamp(min=lower) / 2)).to(losses.dtype)


def running_mean(mean: Tensor, count: Tensor, values: Tensor, decay: float | None = 0.9) -> Tensor:
    r"""Running mean after one more batch, :math:`m \leftarrow d\, m + (1 - d)\, \overline{values}`.

    A value that is not finite, such as an overflow, does not enter.

    Args:
        mean: 0-dim floating point, the mean so far; any value while ``count`` is 0.
        count: 0-dim integer, the (finite) values it has seen; at 0 the result is the mean of
            ``values``.
        values: (B,) floating point, B >= 1, the losses of this batch.
        decay: d in ``[0, 1)``, **the weight of the past**, as in ``torch.optim.swa_utils`` and
            unlike the momentum of batch norm; None for the plain mean of all values.

    Returns:
        0-dim tensor of the dtype of ``mean``. No transfer to the host.

    Raises:
        TypeError: if ``mean`` or ``values`` is not floating point, or ``decay`` no number.
        ValueError: if ``values`` is empty, a shape is wrong, or ``decay`` is out of range.

    Example:
        >>> import torch
        >>> from noisydml.functional import running_mean
        >>> mean, count = torch.zeros(()), torch.tensor(0)
        >>> mean = running_mean(mean, count, torch.tensor([1.0, 3.0]))
        >>> running_mean(mean, count + 2, torch.tensor([4.0, 4.0]), decay=0.75)
        tensor(2.5000)
    """
    require_floating("mean", mean, ndim=0)
    require_floating("values", values, ndim=1)
    if len(values) == 0:
        raise ValueError("values must have at least one entry, got none")
    require_decay(decay)
    finite = values.isfinite()
    number = finite.sum()
    batch_mean = torch.where(finite, values.double(), 0.0).sum() / number.clamp_min(1)
    past = count.double() / (count + number).clamp_min(1) if decay is None else decay
    # Where nothing is past, the old value must not enter, not even as 0 * nan.
    updated = torch.where(count == 0, batch_mean, past * mean.double() + (1 - past) * batch_mean)
    return torch.where(number == 0, mean.double(), updated).to(mean.dtype)
