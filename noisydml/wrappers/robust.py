"""What to begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noisydml.functional.checks import require_count
from noisydml.wrappers.base import LossWrapper
from noisydml.wrappers.knn import KNNDenoiser

_SMALL_CLASS = 50  # samples; with 20 the low threshold is better, with 140 the paper's


def robust(
    loss: Callable[..., Any], num_classes: int, embedding_size: int, dataset_size: int
) -> LossWrapper:
    """Wrap a loss in what the project's own experiments speak for, with nothing to tune.

    No noise rate is asked for; ``sample_ids`` are worth passing. At present it is a
    :class:`KNNDenoiser` over the whole data set, with ``threshold`` at 0.25 where classes have
    fewer than 50 samples on average, and the paper's 0.5 where they have more. A later version
    may compose something else. The results page of the documentation has figures.

    Args:
        loss: any loss that a wrapper takes.
        num_classes: number of classes, C.
        embedding_size: width of the embeddings, D.
        dataset_size: number of samples in the data set, N.

    Returns:
        The wrapper. It holds three features of every sample: about 12 N D bytes.

    Raises:
        TypeError, ValueError: if a number is no positive integer, the loss cannot be wrapped, or
            there are fewer samples than classes.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> import noisydml
        >>> loss_fn = noisydml.robust(
        ...     MultiSimilarityLoss(), num_classes=2, embedding_size=4, dataset_size=100
        ... )
        >>> loss = loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> loss_fn.decision.keep
        tensor([True, True, True, True])
    """
    require_count("num_classes", num_classes)
    require_count("embedding_size", embedding_size)
    require_count("dataset_size", dataset_size)
    if dataset_size < num_classes:
        raise ValueError(
            f"dataset_size must be at least num_classes, {num_classes}, got {dataset_size}"
        )
    threshold = 0.25 if dataset_size < _SMALL_CLASS * num_classes else 0.5
    return KNNDenoiser(
        loss, memory_size=dataset_size, embedding_size=embedding_size, threshold=threshold
    )
