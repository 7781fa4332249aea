"""SuperLoss: samples or pairs weighted by how easy they are, whatever the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from noisydml import pml
from noisydml.distributed import gather_batch
from noisydml.functional import confidence, running_mean
from noisydml.functional.checks import require_count, require_decay, require_positive
from noisydml.functional.confidence import LOWEST
from noisydml.memory.state import overwrite
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss
from noisydml.wrappers.checks import require_finite_losses
from noisydml.wrappers.decision import Decision, Judgement

_KINDS = ("pos_pair", "neg_pair")


@dataclass(frozen=True, eq=False)
class SuperLossDecision(Decision):
    """A decision with the running means that follow from it."""

    mean: Tensor | None = None  # (1,) float64, of samples; (2,) of positive and of negative pairs
    count: Tensor | None = None  # int64 of that shape, the losses in each


class SuperLoss(LossWrapper):
    r"""Weights samples or pairs by how easy they are (SuperLoss; ProcSim, Eq. 1-2).

    What is easier than usual, with a loss below the running mean :math:`\tau`, gets a weight
    :math:`\sigma` above 1, at most e; what is harder gets one below 1
    (:func:`~noisydml.functional.confidence` with ``lower=-2/e``). The weights are constants to
    the gradient, which is therefore that of Eq. 1; the value lacks the part of Eq. 1 that has none.

    Args:
        loss: for ``level="sample"`` a PML loss whose terms have an anchor, ``CrossBatchMemory``
            around one, or a callable that returns one loss per sample; for ``level="pair"`` a PML
            loss on pairs, such as ``ContrastiveLoss``. Not a wrapper: SuperLoss judges by the
            loss it trains, so it is the innermost.
        lam: :math:`\lambda`, finite and above 0, in the unit of the loss; the larger, the milder.
        level: ``"sample"``, or ``"pair"``, with a :math:`\tau` each for positive and negative
            pairs, as ProcSim has it.
        decay: weight of the past in :math:`\tau`, in [0, 1); None for the plain mean of all
            losses (ProcSim's "global average"). Each batch enters before it is judged.
        warmup: number of training steps at the start in which every weight is 1.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper. ``decision`` is a :class:`SuperLossDecision`, in float64: ``weight`` (B,)
        is :math:`\sigma`, ``score`` (B,) minus the loss, ``threshold`` :math:`-\tau`. With pairs
        ``weight`` and ``score`` are what their weights make of the loss of each anchor, 1 for an
        anchor without loss, and ``threshold`` is 1.

    Raises:
        TypeError: if the loss is a wrapper or has no terms that can be weighted, ``lam`` or
            ``decay`` is no number, or ``warmup`` no integer; in the first call if the loss has no
            terms of that level.
        ValueError: if a setting is outside the values above.

    The loss is computed in float32 or better, with autocast off, as its terms are the scores.
    Under ``torch.distributed`` it is computed on the rows of all ranks, as by ``GatheredLoss``.

    References:
        Castells, Weinzaepfel, Revaud, SuperLoss: A Generic Loss for Robust Curriculum Learning,
        NeurIPS 2020.

    Example:
        >>> import torch
        >>> from noisydml import SuperLoss
        >>> loss_fn = SuperLoss(torch.nn.CrossEntropyLoss(reduction="none"), lam=3.0)
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
        >>> loss = loss_fn(logits, torch.tensor([0, 0, 0]))
        >>> loss_fn.decision.weight
        tensor([1.4618, 1.1918, 0.7400], dtype=torch.float64)
    """

    same_on_all_ranks = True
    step: Tensor
    mean: Tensor
    count: Tensor

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        lam: float,
        level: Literal["sample", "pair"] = "sample",
        decay: float | None = None,
        warmup: int = 0,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        if isinstance(loss, LossWrapper):
            raise TypeError(
                "loss must not be a wrapper, because SuperLoss judges by the loss that it trains; "
                f"put it inside, around the loss itself, got {type(loss).__name__}"
            )
        pml.refuse_unweightable(loss)
        require_positive("lam", lam)
        if level not in ("sample", "pair"):
            raise ValueError(f"level must be 'sample' or 'pair', got {level!r}")
        require_decay(decay)
        require_count("warmup", warmup, least=0)
        self.lam = float(lam)
        self.level = level
        self.decay = decay
        self.warmup = warmup
        groups = 1 if level == "sample" else len(_KINDS)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(groups, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(groups, dtype=torch.int64))

    def judge(self, batch: Batch) -> Judgement:
        """Calls the wrapped loss, since its terms are the scores; its value is the memo."""
        everyone = gather_batch(batch)
        if len(everyone) == 0:
            return Judgement(Decision.trusting(batch))
        everyone = everyone.to(torch.promote_types(batch.embeddings.dtype, torch.float32))
        weigh = self._weigh_samples if self.level == "sample" else self._weigh_pairs
        weight, score, judged, threshold, mean, count, value = weigh(everyone)
        decision = SuperLossDecision(
            keep=torch.ones(len(batch), dtype=torch.bool, device=batch.device),
            weight=batch.own_rows(everyone, weight),
            score=batch.own_rows(everyone, score),
            threshold=threshold,
            judged=batch.real & batch.own_rows(everyone, judged) & (self.step >= self.warmup),
            mean=mean,
            count=count,
        )
        return Judgement(decision, memo=(value, mean, count))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        if judgement.memo is None:  # no row on any rank
            return call_loss(self.loss, batch)
        value: Tensor = judgement.memo[0]
        return value

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.memo is None:
            return
        _, mean, count = judgement.memo
        overwrite(self.mean, mean)
        overwrite(self.count, count)
        self.step += 1

    def extra_repr(self) -> str:
        return f"lam={self.lam}, level={self.level}, warmup={self.warmup}"

    def _weigh_samples(self, batch: Batch) -> tuple[Tensor, ...]:
        """Weights, scores, who is judged (N,), threshold, means, counts, and the loss's value."""
        terms = pml.split(self.loss, batch)
        losses = terms.per_sample.detach().double()
        require_finite_losses(batch, losses, "loss")
        tau = running_mean(self.mean.select(0, 0), self.count.select(0, 0), losses, self.decay)
        sigma = self._confidence(losses, tau)
        outer = batch.sample_weight
        value = terms.weighted(sigma if outer is None else sigma * outer)
        judged = torch.ones_like(sigma, dtype=torch.bool)
        count = self.count + losses.isfinite().sum()
        return sigma, -losses, judged, -tau, tau.unsqueeze(0), count, value

    def _weigh_pairs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Weights, scores, who is judged (N,), threshold, means, counts, and the loss's value."""
        value, parts = pml.split_pairs(self.loss, batch)
        means, counts = [*self.mean.unbind()], [*self.count.unbind()]  # of _KINDS
        # The share of each anchor in the value without and with weights, and that of no anchor.
        plain = weighted = torch.zeros(len(batch), dtype=torch.float64, device=batch.device)
        unweighted = plain.sum()
        for part in parts:
            shares = part.shares.flatten().double()
            if part.anchors is None:
                unweighted = unweighted + shares.sum()
            elif len(shares) > 0:
                i = _KINDS.index(part.kind)
                losses = part.losses.detach().flatten().double()
                require_finite_losses(batch, losses, "loss")
                means[i] = running_mean(means[i], counts[i], losses, self.decay)
                counts[i] = counts[i] + losses.isfinite().sum()
                sigma = self._confidence(losses, means[i])
                plain = plain.index_add(0, part.anchors, shares.detach())
                weighted = weighted.index_add(0, part.anchors, sigma * shares)
        weight = torch.where(plain == 0, 1.0, weighted.detach() / plain)
        outer = torch.ones_like(weight) if batch.sample_weight is None else batch.sample_weight
        # Where every pair's weight is 1, the loss's own value, to the bit.
        total = (outer * weighted).sum() + unweighted
        unit = ((weight == 1) & (outer == 1)).all()
        value = torch.where(unit, value, total.to(value.dtype))
        one = torch.ones_like(unweighted)
        judged = plain != 0  # the others have no loss to judge by
        return weight, weight, judged, one, torch.stack(means), torch.stack(counts), value

    def _confidence(self, losses: Tensor, tau: Tensor) -> Tensor:
        sigma = confidence(losses, tau, self.lam, lower=LOWEST)
        return torch.where(self.step < self.warmup, 1.0, sigma)
