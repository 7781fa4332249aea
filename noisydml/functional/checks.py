"""Questions about arguments that the functions share.

Each refusal names the argument, what it got and what it wants.
"""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
MISSING = {"NoneType", "NAType", "NaTType"}  # of None, pandas.NA and pandas.NaT


def require_tensor(name: str, value: object, kind: str = "a torch.Tensor") -> None:
    """Raise unless ``value`` is a tensor that all operations of torch take."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {kind}, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {got}")
    wide = value.is_floating_point() and value.dtype.itemsize >= 2
    if not (wide or value.is_complex() or value.dtype in (*_INTEGERS, torch.bool)):
        raise TypeError(f"{name} must have a dtype that can be computed with, got {value.dtype}")


def require_values(**tensors: object) -> None:
    """Raise for a tensor without values; the functions take them, what keeps state does not."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.device.type == "meta":
            raise TypeError(f"{name} must hold values, got a tensor on the device meta")


def require_dense(name: str, value: Tensor) -> None:
    """Raise for a tensor whose numbers cannot be read: sparse, nested, quantised or without any."""
    require_tensor(name, value)
    if value.is_meta:
        raise TypeError(f"{name} must be a dense tensor that holds numbers, got a meta tensor")


def require_floating(name: str, value: Any, ndim: int | None = None) -> None:
    """Raise unless ``value`` is a floating-point tensor (of ``ndim`` dimensions)."""
    require_tensor(name, value, "a floating-point torch.Tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got dtype {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{name} must have {ndim} dimension{'s' if ndim != 1 else ''}, "
            f"got shape {tuple(value.shape)}"
        )


def require_integer(
    name: str, value: Any, length: int | None = None, per: str = "embedding"
) -> None:
    """Raise unless ``value`` is a 1-dimensional integer tensor (of ``length`` entries)."""
    require_tensor(name, value, "an integer torch.Tensor")
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be an integer tensor, got dtype {value.dtype}")
    require_vector(name, value, length, per)


def require_vector(
    name: str, value: Any, length: int | None = None, per: str = "embedding"
) -> None:
    """Raise unless ``value`` is a tensor of one dimension (and ``length`` entries)."""
    require_tensor(name, value)
    if value.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {tuple(value.shape)}")
    if length is not None and len(value) != length:
        raise ValueError(f"{name} must have {length} entries, one per {per}, got {len(value)}")


def require_width(name: str, value: Tensor, of: str, other: Tensor) -> None:
    """Raise unless ``value`` (N, D) has as many columns as the ``other`` (M, D)."""
    width = other.shape[1]
    if value.shape[1] != width:
        raise ValueError(f"{name} must be as wide as the {of}, {width}, got {value.shape[1]}")


def is_missing(value: object) -> bool:
    """Whether it stands for no value: None, NaN, and NA and NaT of pandas."""
    return type(value).__name__ in MISSING or bool(value != value)


def require_loss(name: str, value: object) -> None:
    """Raise unless ``value`` is a loss: something callable, and not its class."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a loss, got the class {value.__name__}; call it first")
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")


def require_number(name: str, value: object) -> None:
    """Raise unless ``value`` is a real number; a tensor is none, as reading it asks the host."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def require_share(name: str, value: float) -> None:
    """Raise unless ``value`` is a number in [0, 1]."""
    require_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_noise_rate(value: float, name: str = "noise_rate") -> None:
    """Raise unless ``value`` is a number in [0, 1)."""
    require_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def require_decay(value: float | None) -> None:
    """Raise unless ``value`` is None or a number in [0, 1)."""
    if value is None:
        return
    require_number("decay", value)
    if not 0 <= value < 1:
        raise ValueError(f"decay must be None or in [0, 1), got {value}")


def require_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    require_number(name, value)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def require_not_negative(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number of 0 or more."""
    require_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of 0 or more, got {value}")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is an integer, NumPy's included, of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise unless ``value`` is one of the choices."""
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
