"""What the noise models accept: labels as arrays, lists or tensors, features, rates and flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisydml.functional.checks import require_share
from noisydml.noise.random import Integers, Seed, generator

UNLABELED = -1  # what stands for no label, as in scikit-learn


def begin(
    labels: Any, rate: float, seed: Seed, spare: Any, **flags: bool
) -> tuple[Integers, NDArray[np.bool_], Integers, Integers, np.random.Generator]:
    """What every model begins with; ``flags`` are arguments by name that must be bools.

    Returns:
        The (N,) labels; (N,) bool, whose may be made wrong: no spared row, and none without a
        label; the (C,) ascending classes that occur among these n, and their (n,) positions there;
        and the source of randomness, from which nothing is drawn yet.
    """
    original = read_labels("labels", labels)
    counted = original != UNLABELED
    if spare is not None:
        counted &= ~read_mask("spare", spare, len(original))
    require_share("rate", rate)
    for name, value in flags.items():
        require_flag(name, value)
    rng = generator(seed)
    classes, codes = np.unique(original[counted], return_inverse=True)
    if rate > 0 and len(codes) and len(classes) < 2:
        raise ValueError(
            "labels must have at least 2 classes for a rate above 0, got 1"
            + (f"; {UNLABELED} stands for no label" if UNLABELED in original else "")
        )
    return original, counted, classes, codes, rng


def read_labels(name: str, value: Any) -> Integers:
    """(N,) int64, a copy of a list, array or tensor (of any device) of integers, (N,) or (N, 1)."""
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
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {array.shape}")
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise ValueError(f"{name} must fit into int64, got {array.max()}")
    return array.astype(np.int64)


def read_mask(name: str, value: Any, length: int) -> NDArray[np.bool_]:
    """(N,) bools of a list, array or tensor (of any device), (N,) or (N, 1)."""
    mask = np.array(value.cpu().numpy() if isinstance(value, torch.Tensor) else value)
    if mask.size and mask.dtype != np.bool_:
        raise TypeError(f"{name} must hold bools, got dtype {mask.dtype}")
    if mask.shape not in ((length,), (length, 1)):
        raise ValueError(
            f"{name} must have {length} entries, one per label, got shape {mask.shape}"
        )
    return mask.reshape(-1).astype(np.bool_)


def read_features(value: Any, length: int) -> NDArray[np.floating[Any]]:
    """The (N, D) finite features, array or tensor, in float32 or float64 on the host."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"features must be an array or tensor, got {type(value).__name__}")
    if value.dtype.kind not in "fiu":
        raise TypeError(f"features must hold real numbers, got dtype {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"features must have 2 dimensions, got shape {value.shape}")
    if value.shape[1] == 0:
        raise ValueError("features must have at least 1 column, got 0")
    if len(value) != length:
        raise ValueError(f"features must have {length} rows, one per label, got {len(value)}")
    dtype = np.float32 if value.dtype in (np.float16, np.float32) else np.float64
    features: NDArray[np.floating[Any]] = value.astype(dtype, copy=False)
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    return features


def require_flag(name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
