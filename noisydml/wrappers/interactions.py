"""Selected interactions: what a filter distrusts stays as a negative of others (after T-SINT)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from noisydml import pml
from noisydml.functional.checks import require_loss
from noisydml.pml.batch import Batch
from noisydml.wrappers.decision import Judgement
from noisydml.wrappers.filter import AroundFilter, Filter


class SelectedInteractions(AroundFilter):
    """Keeps the samples that a filter distrusts as negatives, not as positives (after T-SINT).

    A wrong label spoils the positive pairs of its sample. Most of its negative pairs are right
    even so: two samples of different labels are rarely of one class. So the samples that a filter
    distrusts are not dropped but taken out of all positive pairs, as anchor and as positive. With
    few classes that costs more than it gains; the documentation has figures.

    Args:
        loss: a filter: ``GroundTruthFilter``, ``KNNDenoiser``, ``PRISMFilter`` or
            ``SmallLossFilter``. Innermost in it, or in the wrappers inside it, is one of PML's
            pair or triplet losses.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper, and as the filter asks. ``decision`` is the filter's, with ``keep`` True
        for all rows, which the loss sees, and ``weight`` 0 for those that are only negatives.

    Raises:
        TypeError: if ``loss`` is no filter, or the innermost loss compares no pairs or triplets
            that it can be given, or is a ``CrossBatchMemory``, in which distrusted samples would
            be positives of later ones.

    References:
        Ibrahimi et al., Learning with Label Noise for Image Retrieval by Selecting Interactions,
        WACV 2022.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import GroundTruthFilter, SelectedInteractions
        >>> is_noisy = torch.tensor([False, False, True, False])
        >>> loss_fn = SelectedInteractions(GroundTruthFilter(ContrastiveLoss(), is_noisy))
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.28, 0.96]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> loss_fn(embeddings, labels, sample_ids=torch.arange(4))
        tensor(1.1748)
        >>> loss_fn.decision.weight
        tensor([1., 1., 0., 1.])
    """

    def __init__(self, loss: Filter, *, validate_args: bool = True) -> None:
        require_loss("loss", loss)
        if not isinstance(loss, Filter):
            raise TypeError(
                "loss must be a filter, such as PRISMFilter(loss, ...), whose distrusted samples "
                f"are to stay as negatives, got {type(loss).__name__}"
            )
        super().__init__(loss, validate_args=validate_args)
        pml.refuse_without_pairs(self._innermost)

    def rejudged(self, batch: Batch, judged: Judgement) -> Judgement:
        keep = torch.ones_like(judged.decision.keep)
        return Judgement(replace(judged.decision, keep=keep), judged.own_loss, memo=(judged,))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        distrusted = judgement.decision.weight == 0
        if batch.negative_only is not None:
            distrusted = distrusted | batch.negative_only
        return self.filter.kept_value(replace(batch, negative_only=distrusted))
