"""Pair losses that see the rows of all ranks."""

from __future__ import annotations

from torch import Tensor

from noisydml.distributed import gather_batch
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss
from noisydml.wrappers.decision import Decision, Judgement


class GatheredLoss(LossWrapper):
    """Computes a loss on the rows of all ranks, kept rows of uneven number included.

    Every rank gathers all rows and computes the same value. Averaging the gradients over the
    ranks, as ``DistributedDataParallel`` does, gives those of one process that saw the
    concatenated batch; a parameter of the loss has that gradient on every rank already. Put it
    around the leaf loss, inside the filters: ``Filter(GatheredLoss(loss))``. Outside
    ``torch.distributed``, and in eval mode, it is the wrapped loss.

    Args:
        loss: any loss that a wrapper takes. One that draws random numbers must draw the same on
            all ranks.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    On the wire per step: from each rank the rows of the largest rank, 4 D bytes each in float32,
    8 bytes for the label, and the optional arguments that are given.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> from noisydml import GatheredLoss
        >>> loss_fn = GatheredLoss(MultiSimilarityLoss())
        >>> loss_fn(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6566)
    """

    same_on_all_ranks = True

    def judge(self, batch: Batch) -> Judgement:
        return Judgement(Decision.trusting(batch))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        return call_loss(self.loss, gather_batch(batch))
