"""What to begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noisydml.functional.checks import require_count
from noisydml.wrappers.judged import JudgeFilter, Start


def robust(
    loss: Callable[..., Any],
    num_classes: int | None = None,
    embedding_size: int | None = None,
    dataset_size: int | None = None,
    *,
    start: Start = "judge",
) -> JudgeFilter:
    """Wrap a loss in what the project's own experiments speak for, with nothing to tune.

    No noise rate is asked for; ``sample_ids`` are worth passing. It is a :class:`JudgeFilter`; a
    later version may compose something else. Around a pretrained network, judge its own features
    before the first step: ``loss_fn.refresh(features, labels)``. The results page of the
    documentation has figures.

    Args:
        loss: any loss that a wrapper takes.
        num_classes: number of classes, C, if labels beyond it are to be refused.
        embedding_size: width of the embeddings, D; None to take it from the first batch.
        dataset_size: number of samples in the data set, N.
        start: ``"judge"`` to train on no label before its sample was judged, if the features tell
            the classes from the start; ``"train"`` to train on all of them in the first pass.

    Returns:
        The wrapper. It holds two features of every sample: about 8 N D bytes.

    Raises:
        TypeError, ValueError: if a number is no positive integer, the loss cannot be wrapped, or
            there are fewer samples than classes.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> import noisydml
        >>> loss_fn = noisydml.robust(MultiSimilarityLoss(), dataset_size=100, start="train")
        >>> loss = loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> loss_fn.decision.keep
        tensor([True, True, True, True])
    """
    if dataset_size is None:
        raise TypeError("dataset_size must be given, the number of samples in the data set")
    require_count("dataset_size", dataset_size)
    if num_classes is not None:
        require_count("num_classes", num_classes)
        if dataset_size < num_classes:
            raise ValueError(
                f"dataset_size must be at least num_classes, {num_classes}, got {dataset_size}"
            )
    return JudgeFilter(
        loss,
        dataset_size=dataset_size,
        embedding_size=embedding_size,
        num_classes=num_classes,
        start=start,
    )
