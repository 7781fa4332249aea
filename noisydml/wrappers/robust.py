"""What to begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, overload

from noisydml.functional.checks import require_choice, require_count
from noisydml.wrappers.judged import JudgeFilter
from noisydml.wrappers.passes import Start
from noisydml.wrappers.prism import PRISMFilter

# Samples a class, from which on the judge drops fewer right labels than PRISM's centers do:
# docs/results.md, MNIST and CIFAR-100 beside Omniglot.
_LARGE = 100


@overload
def robust(
    loss: Callable[..., Any],
    num_classes: int | None = None,
    embedding_size: int | None = None,
    dataset_size: int | None = None,
    *,
    start: Literal["judge"] = "judge",
) -> JudgeFilter: ...


@overload
def robust(
    loss: Callable[..., Any],
    num_classes: int | None = None,
    embedding_size: int | None = None,
    dataset_size: int | None = None,
    *,
    start: Literal["train"],
) -> JudgeFilter | PRISMFilter: ...


def robust(
    loss: Callable[..., Any],
    num_classes: int | None = None,
    embedding_size: int | None = None,
    dataset_size: int | None = None,
    *,
    start: Start = "judge",
) -> JudgeFilter | PRISMFilter:
    """Wrap a loss in what the project's own experiments speak for, with nothing to tune.

    No noise rate is asked for. It is a :class:`JudgeFilter`: judge the network's own features
    before the first step, ``loss_fn.refresh(features, labels)``, whether it is pretrained or from
    scratch. ``sample_ids`` are worth passing, and needed if these features are of another layer.
    Without such a pass a network from scratch has to learn from all labels first: with
    ``start="train"`` it is a :class:`PRISMFilter` that estimates the rate, or where there are 100
    samples a class or more, of which one center says little, the :class:`JudgeFilter` all the
    same. A later version may compose something else. The results page of the documentation has
    figures.

    Args:
        loss: any loss that a wrapper takes.
        num_classes: number of classes, C. For ``start="judge"`` only if labels beyond it are to be
            refused.
        embedding_size: width of the embeddings, D. For ``start="judge"`` it is that of the first
            batch, if it is None.
        dataset_size: number of samples in the data set, N.
        start: ``"judge"`` to train on no label before its sample was judged, if the features tell
            the classes from the start; ``"train"`` to train on all of them in the first pass.

    Returns:
        The wrapper. It holds two features of every sample: about 8 N D bytes.

    Raises:
        TypeError: if a number is no integer or one that is needed is missing, or the loss cannot be
            called with fewer samples.
        ValueError: if a number is below 1, ``start`` is another word, or there are fewer samples
            than classes.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> import noisydml
        >>> loss_fn = noisydml.robust(MultiSimilarityLoss(), 2, 4, 100, start="train")
        >>> loss = loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> loss_fn.decision.keep
        tensor([True, True, True, True])
    """
    require_choice("start", start, get_args(Start))
    sizes = {
        "dataset_size": (dataset_size, "the number of samples in the data set"),
        "num_classes": (num_classes, "the number of classes"),
        "embedding_size": (embedding_size, "the width of the embeddings"),
    }
    for name, (size, meaning) in sizes.items():
        if size is not None:
            require_count(name, size)
        elif name == "dataset_size" or start == "train":
            also = "" if name == "dataset_size" else ' with start="train"'
            raise TypeError(f"{name} must be given{also}, {meaning}")
    assert dataset_size is not None
    if num_classes is not None and dataset_size < num_classes:
        raise ValueError(
            f"dataset_size must be at least num_classes, {num_classes}, got {dataset_size}"
        )
    if (
        start == "train"
        and num_classes is not None
        and embedding_size is not None
        and dataset_size < _LARGE * num_classes
    ):
        return PRISMFilter(loss, num_classes, embedding_size, memory_size=dataset_size)
    return JudgeFilter(
        loss,
        dataset_size=dataset_size,
        embedding_size=embedding_size,
        num_classes=num_classes,
        start=start,
    )
