"""What the noise models accept: labels as arrays, lists or tensors, rates and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisydml.functional.checks import require_number

Integers = NDArray[np.int64]
Seed = int | np.random.Generator


def read_labels(name: str, value: Any) -> Integers:
    """An int64 copy of a list, array or tensor (of any device) of integers, of one dimension.

    Raises:
        TypeError: if ``value`` holds anything but integers.
        ValueError: if it has not exactly one dimension, or an integer beyond int64.
    """
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name} must hold integers, got dtype {value.dtype}")
        value = value.cpu().numpy()
    if not isinstance(value, (np.ndarray, list, tuple)):
        raise TypeError(
            f"{name} must be a list, array or tensor of integers, got {type(value).__name__}"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must have 1 dimension, got rows of unequal length") from error
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)  # numpy takes an empty list for floats
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit into int64, got {array.max()}")
    return array.astype(np.int64)


def read_features(value: Any, length: int) -> NDArray[np.floating[Any]]:
    """The (N, D) features as a floating-point array on the host.

    Raises:
        TypeError: if ``value`` is no array or tensor of real numbers.
        ValueError: if it has not ``length`` rows and two dimensions, or is not finite.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"features must be an array or tensor, got {type(value).__name__}")
    if value.dtype.kind not in "fiu":
        raise TypeError(f"features must hold real numbers, got dtype {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"features must have 2 dimensions, got shape {value.shape}")
    if len(value) != length:
        raise ValueError(f"features must have {length} rows, one per label, got {len(value)}")
    dtype = np.float32 if value.dtype in (np.float16, np.float32) else np.float64
    features: NDArray[np.floating[Any]] = value.astype(dtype, copy=False)
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    return features


def require_rate(name: str, value: float) -> None:
    """Raise unless ``value`` is a number from 0 to 1."""
    require_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_count(name: str, value: int, least: int) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def require_flag(name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def require_two_classes(rate: float, n_classes: int, n_labels: int) -> None:
    """Raise where labels are to be made wrong and there is no other class to move them to."""
    if rate > 0 and n_labels and n_classes < 2:
        raise ValueError(f"labels must have at least 2 classes for a rate above 0, got {n_classes}")


def generator(seed: Seed) -> np.random.Generator:
    """The generator itself, or a new PCG64 generator from an integer.

    Raises:
        TypeError: if ``seed`` is neither an integer nor a numpy generator. ``None`` is refused:
            noise that cannot be drawn again cannot be compared.
        ValueError: if it is negative.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(
            f"seed must be an integer or a numpy.random.Generator, got {type(seed).__name__}"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return np.random.Generator(np.random.PCG64(int(seed)))
