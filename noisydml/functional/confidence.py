"""The confidence of a sample, from how far its loss lies above a threshold (ProcSim, Eq. 3)."""

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

# SuperLoss (Castells et al., 2020) clamps at -2/e, the argument of Lambert's branch point.
_LOWEST = -2 / math.e


def confidence(losses: Tensor, threshold: Tensor | float, lam: float, lower: float = 0.0) -> Tensor:
    r"""Confidence :math:`\sigma_i` in every label, from one loss per sample (ProcSim, Eq. 3).

    .. math::
        \sigma_i = \exp\{-W(\tfrac12 \max\{\beta_0, (\ell_i - \tau)/\lambda\})\}

    With ``lower`` :math:`\beta_0 = 0` this is ProcSim's Eq. 3: 1 up to the threshold, falling
    towards 0 above it. With :math:`\beta_0 = -2/e` it is SuperLoss, which also raises the weight
    of easy samples, up to e (ProcSim, Eq. 12).

    Args:
        losses: floating-point tensor of any shape.
        threshold: :math:`\tau`, a number, a 0-dim tensor, or one value per loss; ``inf`` trusts
            every sample of finite loss.
        lam: :math:`\lambda`, finite and above 0, in the unit of the losses. The larger, the more
            equal the samples: as it goes to 0 the weights become 0 or 1, as it grows they
            become 1. (The paper's appendix A.4 says in words that a larger one penalises more;
            its Eq. 3, its limits and this function say the reverse.)
        lower: :math:`\beta_0`, from ``-2/e`` to 0.

    Returns:
        Tensor of the shape and dtype of ``losses``, values in [0, 1] (in [0, e] with
        ``lower=-2/e``). Differentiable; ProcSim takes it as a constant, so detach it.

    Raises:
        TypeError: if ``losses`` is not a floating-point tensor or ``lam`` not a number.
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
    if not _LOWEST <= lower <= 0:
        raise ValueError(f"lower must be between -2/e = {_LOWEST:.6f} and 0, got {lower}")
    if isinstance(threshold, Tensor) and threshold.ndim and threshold.shape != losses.shape:
        raise ValueError(
            f"threshold must be 0-dim or of the shape of losses, {tuple(losses.shape)}, "
            f"got {tuple(threshold.shape)}"
        )
    excess = (losses.double() - threshold) / lam
    return torch.exp(-lambertw(excess.clamp(min=lower) / 2)).to(losses.dtype)


def running_mean(mean: Tensor, count: Tensor, values: Tensor, decay: float | None = 0.9) -> Tensor:
    r"""Running mean after one more batch.

    With ``decay`` d it is the exponential moving average
    :math:`m \leftarrow d\, m + (1 - d)\, \overline{values}`: **d is the weight of the past**, as
    in ``torch.optim.swa_utils`` and unlike the momentum of batch norm. With ``None`` it is the
    plain mean over the batches seen. The first batch sets it to its own mean; what counts as
    first is ``count``, so a mean that happens to be 0 is a mean like any other.

    Args:
        mean: 0-dim float tensor, the mean so far; any value while ``count`` is 0.
        count: 0-dim integer tensor, the number of batches it has seen.
        values: (B,) losses of this batch, B >= 1.
        decay: weight of the past, in ``[0, 1)``, or None.

    Returns:
        0-dim tensor of the dtype of ``mean``. Nothing is changed in place; there is no transfer
        to the host.

    Raises:
        TypeError: if ``mean`` or ``values`` is not a floating-point tensor.
        ValueError: if ``values`` has no entries or not one dimension, or ``decay`` is out of range.

    Example:
        >>> import torch
        >>> from noisydml.functional import running_mean
        >>> mean, count = torch.zeros(()), torch.tensor(0)
        >>> mean = running_mean(mean, count, torch.tensor([1.0, 3.0]))
        >>> running_mean(mean, count + 1, torch.tensor([4.0, 4.0]), decay=0.75)
        tensor(2.5000)
    """
    require_floating("mean", mean, ndim=0)
    require_floating("values", values, ndim=1)
    if len(values) == 0:
        raise ValueError("values must have at least one entry, got none")
    require_decay(decay)
    batch_mean = values.double().mean()
    past = count.double() / (count + 1) if decay is None else decay
    # Where nothing is past, the old value must not enter, not even as 0 * nan.
    updated = torch.where(count == 0, batch_mean, past * mean.double() + (1 - past) * batch_mean)
    return updated.to(mean.dtype)
