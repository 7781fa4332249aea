"""Products in full precision, whatever autocast is on around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

_Function = TypeVar("_Function", bound=Callable[..., Any])

TILE = 16, 64  # rows of both factors, above which products of any size add in one order


def scaled(rows: Tensor) -> Tensor:
    """(..., D) rows times powers of two, so that the largest number of each is between 1/2 and 1.

    Exact, so that their directions are as before, and their squares neither vanish nor overflow.
    A row of zeros, which has none, stays as it is, and its gradient finite.
    """
    largest = rows.detach().abs().amax(dim=-1, keepdim=True) if rows.shape[-1] else rows
    return rows * inverse_scale(largest + (largest == 0))


def unit_rows(rows: Tensor) -> Tensor:
    """(..., D) rows of length 1, however short or long they are; zeros stay zeros."""
    return normalize(scaled(rows), dim=-1)


def largest_magnitude(values: Tensor) -> Tensor:
    """0-dim, the largest absolute number; 0 where there is none."""
    if values.numel() == 0:
        return values.new_zeros(())
    return torch.stack(values.aminmax()).abs().amax()


def inverse_scale(largest: Tensor) -> Tensor:
    """The power of two that brings a positive number between 1/2 and 1."""
    most = 2.0 ** (1000 if largest.dtype == torch.float64 else 125)
    largest = largest.clamp(1 / most, most)  # beyond it the quotient would be subnormal
    # Not ldexp: its gradient is 0 where the exponent is a negative integer.
    return torch.frexp(largest).mantissa / largest


def finite(values: Tensor, dim: int | None = None) -> Tensor:
    """0-dim bool, or (B,) with ``dim=1``: whether all numbers are finite; 0 times another is NaN.

    Two kernels and a comparison where ``isfinite`` alone takes four.
    """
    zeros = values * 0
    return (zeros.sum() if dim is None else zeros.sum(dim)) == 0


def affine(rows: Tensor, matrix: Tensor, offsets: Tensor | None = None) -> Tensor:
    """(B, C) ``rows @ matrix.T + offsets`` of (B, D), (C, D) and (C,), all of one dtype."""
    with _autocast_off(rows.device):
        return rows @ matrix.T if offsets is None else torch.addmm(offsets, rows, matrix.T)


def full_precision(function: _Function) -> _Function:
    """The function without the autocast that is on where its arguments are."""

    @wraps(function)
    def run(*arguments: Any, **settings: Any) -> Any:
        given = [getattr(each, "device", None) for each in (*arguments, *settings.values())]
        devices = [device for device in given if isinstance(device, torch.device)]  # not NumPy's
        with _autocast_off(devices[0]) if devices else nullcontext():
            return function(*arguments, **settings)

    return cast(_Function, run)


def _autocast_off(device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
