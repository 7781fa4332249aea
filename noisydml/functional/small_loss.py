"""Small-loss selection (Co-teaching, Algorithm 1): the share left out, and up to which loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_noise_rate,
    require_tensor,
    require_vector,
)


def forget_rate(step: Tensor, noise_rate: float, ramp: int) -> Tensor:
    r"""The share of the batch to leave out at a step, :math:`\tau \min(t / t_k, 1)`.

    It is 1 less the share R(T) that Co-teaching's Algorithm 1 keeps, by steps instead of epochs.

    Args:
        step: :math:`t`, 0-dim integer tensor, the steps before this one.
        noise_rate: :math:`\tau`, a number in ``[0, 1)``.
        ramp: :math:`t_k`, the number of steps in which the share grows; 0 for none.

    Returns:
        0-dim float64 tensor. No transfer to the host.

    Raises:
        TypeError: if ``step`` is no tensor, ``noise_rate`` no number, or ``ramp`` no integer.
        ValueError: if ``noise_rate`` is outside ``[0, 1)``, or ``ramp`` negative.

    Example:
        >>> import torch
        >>> from noisydml.functional import forget_rate
        >>> [forget_rate(torch.tensor(t), noise_rate=0.5, ramp=4).item() for t in range(6)]
        [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    """
    require_tensor("step", step)
    require_noise_rate(noise_rate)
    require_count("ramp", ramp, least=0)
    if ramp == 0:
        return torch.full_like(step, noise_rate, dtype=torch.float64)
    return noise_rate * (step.double() / ramp).clamp_max(1)


def small_loss_threshold(
    losses: Tensor, rate: float | Tensor, counted: Tensor | None = None
) -> Tensor:
    r"""The largest loss that is kept if the :math:`\lfloor R n \rfloor` largest are left out.

    What is at most this large is kept (Han et al., Co-teaching, NeurIPS 2018, Algorithm 1). Equal
    losses are kept or left out together, and kept where only some of them would be left out.

    Args:
        losses: (B,) floating point.
        rate: R, a number in ``[0, 1)``, or a 0-dim tensor.
        counted: (B,) bool, the n samples that take part; None for all.

    Returns:
        0-dim float64, ``inf`` where :math:`\lfloor R n \rfloor` is 0. No transfer to the host.

    Raises:
        TypeError: if losses are not floating point, or the rate is no number.
        ValueError: if shapes do not fit, or a rate on the host is outside ``[0, 1)``.

    Example:
        >>> import torch
        >>> from noisydml.functional import small_loss_threshold
        >>> small_loss_threshold(torch.tensor([0.1, 0.9, 0.3, 0.7]), rate=0.5)
        tensor(0.3000, dtype=torch.float64)
    """
    require_floating("losses", losses, ndim=1)
    if not isinstance(rate, Tensor):
        require_noise_rate(rate, "rate")
    ordered, n = losses.double(), torch.full((), len(losses), device=losses.device)
    if counted is not None:
        require_vector("counted", counted, len(losses), "loss")
        ordered, n = torch.where(counted, ordered, math.inf), counted.sum()
    ordered = torch.nn.functional.pad(ordered.sort().values, (0, 1), value=math.inf)
    # A product that a rounding error keeps below a whole number is that number: 0.29 * 100.
    drops = (rate * n.double() + 1e-9).long()
    largest = ordered.gather(0, (n - drops - 1).clamp_min(0).reshape(1)).squeeze(0)
    return torch.where(drops == 0, math.inf, largest)
