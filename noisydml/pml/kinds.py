"""The kinds of losses of pytorch-metric-learning (PML), by their types: what each one can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pytorch_metric_learning import losses
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import ClassWeightedReducer
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

Loss = Callable[..., Any]


def _those_there(*names: str) -> tuple[type[nn.Module], ...]:
    """Losses that came after PML 2.6, as far as they are there."""
    return tuple(getattr(losses, name) for name in names if hasattr(losses, name))


_SORTED = _those_there("SmoothAPLoss")  # what takes classes of one size only, one after the other
_TAKES_NO_REFERENCE = (
    losses.FastAPLoss, losses.HistogramLoss, losses.InstanceLoss, losses.LargeMarginSoftmaxLoss,
    losses.ManifoldLoss, losses.NormalizedSoftmaxLoss, losses.NPairsLoss, losses.P2SGradLoss,
    losses.PNPLoss, losses.ProxyAnchorLoss, losses.ProxyNCALoss, losses.RankedListLoss,
    losses.SoftTripleLoss, losses.VICRegLoss, *_SORTED,
)  # fmt: skip
_TAKES_NO_LABELS = (losses.ManifoldLoss, losses.SelfSupervisedLoss, losses.VICRegLoss)
# Those that can be told what to compare, by an indices tuple of pairs or of triplets.
_PAIRS = (losses.AngularLoss, losses.GenericPairLoss)
TRIPLETS = (
    losses.DynamicSoftMarginLoss, losses.HistogramLoss, losses.MarginLoss, losses.TripletMarginLoss,
)  # fmt: skip
# Those that reduce their terms by themselves and take a reference.
_REDUCED = (losses.DynamicSoftMarginLoss, *_those_there("ThresholdConsistentMarginLoss"))
# Whose embeddings have the width of a tensor of their own: its name, and which dimension that is.
_WIDTHS: tuple[tuple[Any, str, int], ...] = (
    ((losses.LargeMarginSoftmaxLoss, losses.NormalizedSoftmaxLoss), "W", 0),
    ((losses.ProxyAnchorLoss, losses.ProxyNCALoss), "proxies", 1),
    (losses.P2SGradLoss, "weight", 0),
    (losses.SoftTripleLoss, "fc", 0),
    (losses.CrossBatchMemory, "embedding_memory", 1),
)


def refuse_unlabelled(loss: Loss) -> None:
    """Raise TypeError for the losses that are called without labels."""
    for part in parts(loss):
        if isinstance(part, _TAKES_NO_LABELS):
            raise TypeError(
                f"{name_of(part)} takes no labels, so none of them can be wrong: it cannot be "
                "wrapped"
            )


def refuse_distributed(loss: Loss) -> None:
    """Raise TypeError for PML's own wrapper for several ranks, which needs even batches."""
    for part in parts(loss):
        if isinstance(part, DistributedLossWrapper):
            raise TypeError(
                "DistributedLossWrapper takes no batches of uneven size, as filters leave them: "
                "use noisydml.GatheredLoss around the loss"
            )


def refuse_sorted(loss: Loss, so: str) -> None:
    """Raise TypeError, which ends in ``so``, for the losses to which each row has its place."""
    for part in parts(loss):
        if isinstance(part, _SORTED):
            raise TypeError(
                f"{name_of(part)} needs classes of equal size, each in consecutive rows: {so}"
            )


def queue_size(loss: Loss) -> int | None:
    """How many rows the smallest ``CrossBatchMemory`` in a loss takes at once; None for any."""
    sizes = [p.memory_size for p in parts(loss) if isinstance(p, losses.CrossBatchMemory)]
    return min(sizes, default=None)


def refuse_unweightable(loss: Loss) -> None:
    """Raise TypeError for the losses known to have no per-sample contributions."""
    refuse_unlabelled(loss)
    refuse_distributed(loss)
    for part in parts(loss):
        if isinstance(part, losses.ProxyAnchorLoss):
            raise unweightable(
                part,
                "its terms belong to proxies, each a logarithm over all samples of the batch. "
                "Use ProxyNCALoss or SoftTripleLoss",
            )


def refuse_memory(name: str, judge: Loss) -> None:
    """Raise TypeError for a loss that would remember the batch it only judges."""
    for part in parts(judge):
        if isinstance(part, losses.CrossBatchMemory):
            raise TypeError(
                f"{name} must not be a CrossBatchMemory: judging would enqueue the batch"
            )
        if isinstance(part, losses.DynamicSoftMarginLoss):
            raise TypeError(
                f"{name} must not be a DynamicSoftMarginLoss: judging would enter its histogram"
            )


def refuse_without_reference(who: str, loss: Loss) -> None:
    """Raise TypeError unless the loss can compare a batch with other embeddings (``ref_emb``)."""
    if isinstance(loss, _TAKES_NO_REFERENCE) or not isinstance(loss, BaseMetricLossFunction):
        raise TypeError(
            f"{who} needs one of PML's pair or triplet losses, which can compare a batch with "
            f"a memory, got {name_of(loss)}"
        )
    if isinstance(loss, _REDUCED) and any(map(is_regularizer, loss.sub_loss_names())):
        raise TypeError(
            f"{who} adds the regulariser of a loss once, that of {name_of(loss)} cannot be told "
            "from its value; add it by a RegularizedLoss"
        )


def refuse_without_pairs(loss: Loss) -> None:
    """Raise TypeError unless the loss can be told which pairs or triplets to compare."""
    if not isinstance(loss, _PAIRS + TRIPLETS):
        raise TypeError(
            "SelectedInteractions needs one of PML's pair or triplet losses, which can be told "
            f"whom to compare with whom, got {name_of(loss)}"
        )


def embedding_shape(loss: Loss) -> tuple[int | None, int | None]:
    """(number of classes, embedding size) that a loss is made for; None where unknown."""
    found = [number for part in parts(loss) for number in _class_counts(part) if number > 0]
    return min(found, default=None), _width(loss)


def _class_counts(loss: Loss) -> Iterator[int]:
    """How many classes there are proxies, margins or weights for; 0 where there are none."""
    if isinstance(loss, losses.ProxyNCALoss):
        yield loss.proxies.shape[0]
    elif isinstance(loss, losses.NormalizedSoftmaxLoss):
        yield loss.W.shape[1]
    elif isinstance(loss, losses.MarginLoss) and len(loss.beta) > 1:
        yield len(loss.beta)
    elif isinstance(number := getattr(loss, "num_classes", None), (int, np.integer)):
        yield int(number)
    for module in loss.modules() if isinstance(loss, nn.Module) else ():
        if isinstance(module, ClassWeightedReducer):
            yield len(module.weights)


def _width(loss: Loss) -> int | None:
    """How wide embeddings have to be for a loss of PML that has proxies, weights or a memory."""
    for part in parts(loss):
        for kinds, name, dim in _WIDTHS:
            if isinstance(part, kinds):
                return int(getattr(part, name).shape[dim])
    return None


def is_regularizer(name: str) -> bool:
    """Embedding, weight and MarginLoss's beta regularisation: no label makes them wrong."""
    return name.endswith("_reg_loss")


def parts(loss: Loss) -> Iterator[Loss]:
    """The loss, and those inside PML's own containers."""
    yield loss
    if isinstance(loss, losses.MultipleLosses):
        for inner in loss.losses.values() if loss.is_dict else loss.losses:
            yield from parts(inner)
    elif isinstance(loss, losses.CrossBatchMemory):
        yield from parts(loss.loss)


def name_of(loss: Loss) -> str:
    """What messages call the loss."""
    return getattr(loss, "__name__", type(loss).__name__)


def unweightable(loss: Loss, reason: str) -> TypeError:
    """The error for a loss that has no contribution of every sample."""
    return TypeError(
        f"{name_of(loss)} cannot be weighted sample by sample: {reason}. "
        "A wrapper that drops samples, such as GroundTruthFilter, works with it."
    )


def compares_directions(loss: Loss) -> bool:
    """Whether the length of an embedding makes no difference to a loss, as is so by default."""
    distances = (getattr(part, "distance", None) for part in parts(loss))
    return all(getattr(distance, "normalize_embeddings", True) for distance in distances)
