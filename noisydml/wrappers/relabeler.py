"""What a vote of neighbours relabels takes part in a memory: a distrusted sample is not lost."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from noisydml import pml
from noisydml.distributed import gather_batch
from noisydml.functional.checks import require_loss, require_number, require_positive
from noisydml.memory.features import FeatureMemory
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import ValueCheck, require_width, unit_checks
from noisydml.wrappers.decision import Judgement
from noisydml.wrappers.filter import AroundFilter, Filter
from noisydml.wrappers.losses import loss_against_memory


class MemoryRelabeler(AroundFilter):
    r"""Adds the loss against a memory, in which relabelled samples take part.

    Where a filter distrusts a sample, its neighbours often agree on another label. In the batch,
    which was sampled by given labels, there is hardly a positive for that one; in a memory there
    are some for all. The value is

    .. math:: \ell(\text{kept}) + w\, \ell(\text{kept and relabelled}; \text{memory})

    where the memory holds the latest features of kept and relabelled samples, with these labels.
    No paper's method: the memory is PRISM's Eq. 9 (and that of XBM), the vote N2D2's.

    Args:
        loss: a filter that suggests labels, :class:`KNNDenoiser`, around one of PML's pair or
            triplet losses that compares directions: the memory holds unit vectors.
        embedding_size: width of the embeddings, D.
        memory_size: entries of the memory, M; the size of the data set, or what is affordable.
        lead: a sample is relabelled if the strongest label has so many times the votes of any
            other; at least 1, and ``math.inf`` to relabel nobody.
        weight: w, finite and above 0.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory` of kept and relabelled samples.

    Forward:
        As every wrapper, without ``ref_emb``: the memory before the batch is in its place.
        ``decision`` is the filter's; ``lead`` is compared with its ``runner_up`` (B,), and
        ``suggested_labels`` (B,) are the new labels. Nothing is added before the filter has a
        reference to judge by.

    Raises:
        TypeError: if ``loss`` is no filter that suggests labels, its loss cannot compare a batch
            with a memory, a size is no integer, or ``lead`` or ``weight`` no number.
        ValueError: if a setting is outside the values above; in a call if embeddings are not as
            wide as the memory, or ``ref_emb`` is given.

    Under ``torch.distributed`` every rank has one memory, of all ranks' rows.

    References:
        Liu et al., Noise-resistant Deep Metric Learning with Ranking-based Instance Selection,
        CVPR 2021. Galanakis et al., Nearest Neighbor-Based Data Denoising for Deep Metric
        Learning, VISAPP 2024.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import KNNDenoiser, MemoryRelabeler
        >>> denoiser = KNNDenoiser(ContrastiveLoss(), memory_size=5, k=2, vote="count")
        >>> loss_fn = MemoryRelabeler(denoiser, embedding_size=2, memory_size=5)
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 0.9]])
        >>> labels, ids = torch.tensor([0, 0, 1, 1, 0]), torch.arange(5)
        >>> for _ in range(2):  # in the first epoch there is no reference to judge by
        ...     loss = loss_fn(embeddings, labels, sample_ids=ids)
        >>> loss_fn.decision.keep[4], loss_fn.memory.labels  # a 0 among the 1s, remembered as 1
        (tensor(False), tensor([0, 0, 1, 1, 1]))
    """

    def __init__(
        self,
        loss: Filter,
        embedding_size: int,
        *,
        memory_size: int,
        lead: float = 2.0,
        weight: float = 1.0,
        validate_args: bool = True,
    ) -> None:
        require_loss("loss", loss)
        if not isinstance(loss, Filter) or not loss.suggests:
            raise TypeError(
                "loss must be a filter that suggests labels, such as KNNDenoiser(loss, ...), "
                f"got {type(loss).__name__}"
            )
        super().__init__(loss, validate_args=validate_args)
        pml.refuse_without_reference("MemoryRelabeler", loss.loss)
        require_number("lead", lead)
        if not lead >= 1:
            raise ValueError(f"lead must be at least 1, got {lead}")
        require_positive("weight", weight)
        self.memory = FeatureMemory(memory_size, embedding_size)
        self.lead = float(lead)
        self.weight = float(weight)

    def rejudged(self, batch: Batch, judged: Judgement) -> Judgement:
        decision = judged.decision
        suggested, runner_up = decision.suggested_labels, decision.runner_up
        if suggested is None or runner_up is None:  # the filter has no reference yet
            return Judgement(decision, judged.own_loss, memo=(judged, None, None))
        relabelled = decision.keep.logical_not() & (runner_up * self.lead <= 1)
        labels = torch.where(relabelled, suggested, batch.labels)
        members = replace(batch, labels=labels, indices_tuple=None)
        members = members.select(decision.keep | relabelled)
        everyone = gather_batch(members.judged().without_synthetic())
        return Judgement(decision, judged.own_loss, memo=(judged, members, everyone))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        value = self.filter.kept_value(batch.select(judgement.decision.keep))
        members = None if judgement.memo is None else judgement.memo[1]
        if members is None:
            return value
        against_memory = loss_against_memory(self.filter.loss, members, self.memory)
        if against_memory is None:
            return value
        return value + (self.weight * against_memory).to(value.dtype)

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        super().commit(batch, judgement)
        everyone = None if judgement.memo is None else judgement.memo[2]
        if everyone is not None:
            self.memory.enqueue(everyone.embeddings, everyone.labels, everyone.sample_ids)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        require_width(batch, self.memory.embedding_size, "embedding_size")
        if batch.ref_emb is not None:
            raise ValueError(
                "ref_emb must not be given to MemoryRelabeler: the memory is in its place"
            )
        return unit_checks(batch, self.filter.loss)

    def extra_repr(self) -> str:
        return f"lead={self.lead}, weight={self.weight}"
