"""All that knows pytorch-metric-learning (PML): the folder that its version 3 will rewrite."""

from noisydml.pml.call import (
    call,
    sample_losses,
    split,
    split_pairs,
    supervised_contrastive,
    unregularized,
)
from noisydml.pml.kinds import (
    compares_directions,
    embedding_shape,
    queue_size,
    refuse_distributed,
    refuse_memory,
    refuse_sorted,
    refuse_unlabelled,
    refuse_unweightable,
    refuse_without_pairs,
    refuse_without_reference,
)
from noisydml.pml.state import UnsavedState

__all__ = [
    "UnsavedState",
    "call",
    "compares_directions",
    "embedding_shape",
    "queue_size",
    "refuse_distributed",
    "refuse_memory",
    "refuse_sorted",
    "refuse_unlabelled",
    "refuse_unweightable",
    "refuse_without_pairs",
    "refuse_without_reference",
    "sample_losses",
    "split",
    "split_pairs",
    "supervised_contrastive",
    "unregularized",
]
