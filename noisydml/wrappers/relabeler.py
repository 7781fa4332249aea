"""What a vote of neighbours relabels takes part in a memory: a distrusted sample is not lost."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from noisydml.distributed import gather_batch
from noisydml.functional.checks import require_loss, require_number, require_positive
from noisydml.memory import FeatureMemory
from noisydml.pml import kinds
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import Decision, Judgement, LossWrapper, call_loss
from noisydml.wrappers.checks import ValueCheck


class MemoryRelabeler(LossWrapper):
    r"""Adds the loss against a memory, in which relabelled samples take part.

    A filter such as :class:`KNNDenoiser` leaves out what it distrusts, half of the data set with
    half of the labels wrong. Of many of these samples the neighbours also say what the label
    should have been. In the batch it would not help to know it: a sampler that draws several
    samples of each class goes by the given labels, and hardly another sample there has the new
    one. In a memory of the latest features there are positives for all. The value is

    .. math:: \ell(\text{kept}) + w\, \ell(\text{kept and relabelled}; \text{memory})

    where the memory holds the latest features of kept and relabelled samples, with these labels.
    A sample is relabelled if its neighbours' strongest label has ``lead`` times the votes of any
    other. No paper's method: the memory is PRISM's Eq. 9 (and that of XBM), the vote N2D2's.

    Args:
        loss: a filter that suggests labels, :class:`KNNDenoiser`, around one of PML's pair or
            triplet losses.
        embedding_size: width of the embeddings, D.
        memory_size: entries of the memory, M; the size of the data set, or what is affordable.
        lead: at least 1, and ``math.inf`` to relabel nobody.
        weight: w, finite and above 0.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory` of kept and relabelled samples.

    Forward:
        As every wrapper; ``ref_emb`` must not be given, the memory is in its place.
        ``decision`` is the filter's: ``decision.runner_up`` (B,) is what ``lead`` is compared
        with, and ``decision.suggested_labels`` (B,) are the new labels. Nothing is added before
        the filter has a reference to judge by. The memory is the one before the batch.

    Raises:
        TypeError, ValueError: for impossible settings and bad arguments.

    Under ``torch.distributed`` every rank has the same memory, of all ranks' rows.

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
        loss: LossWrapper,
        embedding_size: int,
        *,
        memory_size: int,
        lead: float = 2.0,
        weight: float = 1.0,
        validate_args: bool = True,
    ) -> None:
        require_loss("loss", loss)
        if not isinstance(loss, LossWrapper) or not loss.drops or not loss.suggests:
            raise TypeError(
                "loss must be a filter that suggests labels, such as KNNDenoiser(loss, ...), "
                f"got {type(loss).__name__}"
            )
        super().__init__(loss, validate_args=validate_args)
        kinds.refuse_without_reference("MemoryRelabeler", loss.loss)
        require_number("lead", lead)
        if not lead >= 1:
            raise ValueError(f"lead must be at least 1, got {lead}")
        require_positive("weight", weight)
        self.memory = FeatureMemory(memory_size, embedding_size)
        self.lead = float(lead)
        self.weight = float(weight)

    @property
    def filter(self) -> LossWrapper:
        """The wrapper that judges."""
        assert isinstance(self.loss, LossWrapper)
        return self.loss

    def judge(self, batch: Batch) -> Judgement:
        if not self.filter.training:  # it trusts everyone and changes nothing
            return Judgement(Decision.trusting(batch))
        judged = self.filter.judge(batch)
        members = self._members(batch, judged.decision)
        everyone = None
        if members is not None:
            own = members.judged()
            if own.synthetic is not None:  # rows that another wrapper made up
                own = own.select(own.synthetic.logical_not())
            everyone = gather_batch(own)
        evidence = _Evidence(judged, members, everyone)
        return Judgement(judged.decision, judged.own_loss, evidence)

    def wrapped_value(self, batch: Batch) -> Tensor:
        return self.filter.wrapped_value(batch)

    def added_term(self, batch: Batch, judgement: Judgement) -> Tensor | None:
        evidence: _Evidence | None = judgement.evidence
        if evidence is None or evidence.members is None or len(evidence.members) == 0:
            return None
        filled = min(int(self.memory.total), len(self.memory))  # one host synchronisation
        if filled == 0:
            return None
        members = evidence.members
        # Copies: what autograd keeps for the backward pass must not be overwritten by commit.
        against_memory = replace(
            members,
            indices_tuple=None,
            ref_emb=self.memory.features[:filled].to(members.embeddings.dtype, copy=True),
            ref_labels=self.memory.labels[:filled].clone(),
        )
        return self.weight * call_loss(self.filter.loss, against_memory)

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        evidence: _Evidence | None = judgement.evidence
        if evidence is None:
            return
        self.filter.commit(batch, evidence.judged)
        self.filter.decision = judgement.decision
        everyone = evidence.everyone
        if everyone is not None:
            self.memory.enqueue(everyone.embeddings, everyone.labels, everyone.sample_ids)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        width = self.memory.embedding_size
        if batch.embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings must be as wide as embedding_size, {width}, "
                f"got {batch.embeddings.shape[1]}"
            )
        if batch.ref_emb is not None:
            raise ValueError(
                "ref_emb must not be given to MemoryRelabeler: the memory is in its place"
            )
        return []

    def shared_state(self) -> list[Tensor]:
        return [*super().shared_state(), *self.memory.buffers()]

    def extra_repr(self) -> str:
        return f"lead={self.lead}, weight={self.weight}"

    def _members(self, batch: Batch, decision: Decision) -> Batch | None:
        """The rows to compare with the memory and to remember, with the labels to go by."""
        suggested, runner_up = decision.suggested_labels, decision.runner_up
        if suggested is None or runner_up is None:
            return None
        relabelled = decision.keep.logical_not() & (runner_up * self.lead <= 1)
        labels = torch.where(relabelled, suggested, batch.labels)
        return replace(batch, labels=labels, indices_tuple=None).select(decision.keep | relabelled)


class _Evidence(NamedTuple):
    """The filter's judgement, and who is to be remembered: of this rank, and of all."""

    judged: Judgement
    members: Batch | None
    everyone: Batch | None
