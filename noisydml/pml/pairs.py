"""How the pair and triplet losses of pytorch-metric-learning (PML) are told what to compare."""

from __future__ import annotations

from dataclasses import replace

from pytorch_metric_learning.losses import (
    AngularLoss,
    DynamicSoftMarginLoss,
    GenericPairLoss,
    HistogramLoss,
    MarginLoss,
    TripletMarginLoss,
)
from torch import Tensor

from noisydml.functional import selected_interactions
from noisydml.pml.batch import Batch, IndicesTuple, index_groups
from noisydml.pml.kinds import Loss, name_of

_PAIRS = (AngularLoss, GenericPairLoss)
_TRIPLETS = (DynamicSoftMarginLoss, HistogramLoss, MarginLoss, TripletMarginLoss)


def refuse_without_pairs(loss: Loss) -> None:
    """Raise TypeError unless a loss can be told which pairs or triplets to compare."""
    if not isinstance(loss, _PAIRS + _TRIPLETS):
        raise TypeError(
            "SelectedInteractions needs one of PML's pair or triplet losses, which can be told "
            f"whom to compare with whom, got {name_of(loss)}"
        )


def with_selected_pairs(loss: Loss, batch: Batch) -> Batch:
    """The batch with an ``indices_tuple`` without the positive pairs of its negatives only.

    One host synchronisation on CUDA where nobody is, else those of PML's own search for pairs.
    """
    if batch.negative_only is None or not batch.negative_only.any():
        return replace(batch, negative_only=None)
    trusted = batch.negative_only.logical_not()
    if batch.indices_tuple is not None:
        indices = _without_positives(batch.indices_tuple, trusted, _compares_itself(batch))
        return replace(batch, indices_tuple=indices, negative_only=None)
    positive, negative = selected_interactions(batch.labels, trusted, batch.ref_labels)
    anchors, positives = _where(positive)
    if isinstance(loss, _TRIPLETS):
        # As many rows as positive pairs, where PML has a cube of B x B x B.
        pair, negatives = _where(negative.index_select(0, anchors))
        indices = (anchors[pair], positives[pair], negatives)
    else:
        indices = (anchors, positives, *_where(negative))
    return replace(batch, indices_tuple=indices, negative_only=None)


def _compares_itself(batch: Batch) -> bool:
    """Whether the second column of a pair, too, has the labels of the batch."""
    return batch.ref_emb is None or batch.ref_labels is None


def _without_positives(indices: IndicesTuple, trusted: Tensor, both: bool) -> IndicesTuple:
    """A miner's pairs or triplets, without those of which the positive pair is distrusted."""
    first, *others = index_groups(indices)
    alive = trusted[first[0]]
    if both:
        alive = alive & trusted[first[1]]
    rows = alive.nonzero().squeeze(1)
    return tuple(column[rows] for column in first) + tuple(c for group in others for c in group)


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = mask.nonzero().unbind(dim=1)
    return rows, columns
