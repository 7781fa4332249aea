"""Lambert's W function, on the tensor's own device."""

import math
from typing import Any

import torch
from torch import Tensor

from noisydml.functional.checks import require_floating

# W = -1 + p - p^2/3 + ... around the branch point, p = sqrt(2 (e x + 1)).
# Corless et al., On the Lambert W function, 1996, Eq. 4.22.
_BRANCH_SERIES = (-1.0, 1.0, -1 / 3, 11 / 72, -43 / 540, 769 / 17280, -221 / 8505)
# Below this p the series is exact to a few 1e-16, and Halley's step would divide by 1 + W ~ p.
_SERIES_P = 0.01
_SERIES_X = -0.25
_HALLEY_STEPS = 3  # each cubes the error, and the first guess is less than 3 % off


def lambertw(x: Tensor) -> Tensor:
    r"""Principal branch of Lambert's W function: the ``W`` with :math:`W e^W = x`.

    Computed in float64 and rounded once. The relative error is at most 1e-12 in float64 and 2e-6
    in float32; within 1e-4 of the branch point ``-1/e`` the absolute error is at most 1e-7.

    Args:
        x: floating point, of any shape, from ``-1/e`` to ``inf``, where W is ``inf``.

    Returns:
        Shape and dtype of ``x``, differentiable to any order; no transfer to the host. Within a
        rounding of the branch point ``-1``, with the derivative ``inf``; below, NaN.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from noisydml.functional import lambertw
        >>> lambertw(torch.tensor([0.0, 1.0, torch.e]))
        tensor([0.0000, 0.5671, 1.0000])
    """
    require_floating("x", x)
    result: Tensor = _LambertW.apply(x)  # type: ignore[no-untyped-call]
    return result


class _LambertW(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _evaluate(x.double(), torch.finfo(x.dtype).eps / 4).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        w = lambertw(ctx.saved_tensors[0].double())  # not the output, which has been rounded
        return (grad_output * torch.exp(-w) / (1 + w)).to(grad_output.dtype)  # e^-W / (1 + W)


def _evaluate(x: Tensor, rounding: float) -> Tensor:
    """W of float64 ``x``; ``rounding`` below ``-1/e`` still counts as the branch point."""
    p = torch.sqrt(torch.clamp(2 * (math.e * x + 1), min=0))
    series = torch.full_like(p, _BRANCH_SERIES[-1])
    for coefficient in reversed(_BRANCH_SERIES[:-1]):
        series = series * p + coefficient
    log1p = torch.log1p(torch.clamp(x, min=_SERIES_X))
    guess = log1p * (1 - torch.log1p(log1p) / (2 + log1p))
    w = torch.where(x < _SERIES_X, series, guess)
    for _ in range(_HALLEY_STEPS):
        # Halley's step on w - x e^-w, which is w e^w - x scaled so that nothing overflows.
        residual = w - x * torch.exp(-w)
        w = w - residual / ((1 + w) - (2 + w) * residual / (2 * (1 + w)))
    w = torch.where(p < _SERIES_P, series, w)
    w = torch.where(x == math.inf, x, w)
    return torch.where(x >= -1 / math.e - rounding, w, torch.nan)
