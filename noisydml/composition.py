"""What to begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noisydml.functional.checks import require_count
from noisydml.wrappers.base import LossWrapper
from noisydml.wrappers.prism import PRISMFilter


def robust(
    loss: Callable[..., Any],
    num_classes: int,
    embedding_size: int,
    dataset_size: int,
) -> LossWrapper:
    """Wrap a loss in what the project's own experiments speak for, with nothing to tune.

    No noise rate is asked for, no ``sample_ids``, and the training loop stays as it is. At present
    it is a :class:`PRISMFilter` that remembers the whole data set and estimates the noise rate: of
    all wrappers and nestings that were tried it was the best, or within the spread of the best, of
    those that work without ``sample_ids``, and without wrong labels it changes nothing. A later
    version may compose something else. The results page of the documentation has the figures.

    Args:
        loss: any loss that a wrapper takes.
        num_classes: number of classes, C; labels lie in ``[0, C)``.
        embedding_size: width of the embeddings, D.
        dataset_size: number of samples in the data set, N.

    Returns:
        The wrapper. It holds a feature of every sample: about 4 N D bytes.

    Raises:
        TypeError, ValueError: for a number that is no positive integer, a loss that cannot be
            wrapped, and fewer samples than classes.

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
    return PRISMFilter(loss, num_classes, embedding_size, memory_size=dataset_size)
