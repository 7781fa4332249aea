"""The product of a batch with a large matrix, by whichever library is faster at it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from noisydml.functional.checks import on_host

_LARGE = 2**22  # multiplications, below which asking costs more than it saves


def affine(rows: Tensor, matrix: Tensor, offsets: Tensor | None = None) -> Tensor:
    """(B, C) ``rows @ matrix.T + offsets``, never in less precision than that of the arguments.

    On the CPU torch hands single-precision products to MKL. On an AMD EPYC oneDNN, which comes
    with torch, takes half of MKL's time. It is asked where the product is large and there is no
    graph, as it has no gradient. The results of the two differ by rounding.

    Args:
        rows: (B, D) floating point.
        matrix: (C, D) of the same dtype.
        offsets: (C,) of the same dtype, or None for zeros.
    """
    kind = rows.device.type
    with torch.autocast(kind, enabled=False) if _may_autocast(kind) else nullcontext():
        if _suits_onednn(rows, matrix) and (linear := _onednn()) is not None:
            product: Tensor = linear(rows, matrix, offsets, "none", [], "")
            return product
        return rows @ matrix.T if offsets is None else torch.addmm(offsets, rows, matrix.T)


def _may_autocast(kind: str) -> bool:
    if kind == "meta":  # has none
        return False
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # before torch 2.4 it takes no argument
        return True


def _suits_onednn(rows: Tensor, matrix: Tensor) -> bool:
    return (
        len(rows) * matrix.numel() >= _LARGE
        and on_host(rows)
        and rows.dtype == torch.float32
        and not (torch.is_grad_enabled() and (rows.requires_grad or matrix.requires_grad))
    )


@cache
def _onednn() -> Callable[..., Any] | None:
    """The product of ordinary tensors by oneDNN, or None where it is not as it is known to be.

    Torch has it for its compiler's use only. The public way to oneDNN, by ``Tensor.to_mkldnn``,
    copies the rows and the result.
    """
    one = torch.ones(1, 1)
    try:
        linear = _linear_of_the_compiler()
        works = linear(one, one, one.squeeze(0), "none", [], "").item() == 2
    except (AttributeError, RuntimeError, TypeError):
        return None
    return linear if works else None


def _linear_of_the_compiler() -> Callable[..., Any]:
    linear: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
    return linear
