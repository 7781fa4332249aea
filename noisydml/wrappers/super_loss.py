"""SuperLoss: samples or pairs weighted by how easy they are, whatever the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from noisydml import pml
from noisydml.distributed import gather_batch
from noisydml.functional import confidence, running_mean
from noisydml.functional.checks import require_count, require_decay, require_positive
from noisydml.memory.state import overwrite
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss
from noisydml.wrappers.decision import Decision, Judgement

_LOWEST = -2 / math.e  # Eq. 2 clamps here, at the branch point of Lambert's W
_KINDS = ("pos_pair", "neg_pair")


@dataclass(frozen=True, eq=False)
class SuperLossDecision(Decision):
    r"""A decision with the state that follows from it.

    Attributes:
        mean: (1,) float64, the running mean :math:`\tau` of the samples' losses; (2,) of the
            positive and of the negative pairs' at the level of pairs.
        count: int64 like ``mean``, the number of batches in each.
    """

    mean: Tensor | None = None
    count: Tensor | None = None


class SuperLoss(LossWrapper):
    r"""Weights samples or pairs by how easy they are (SuperLoss; ProcSim, Eq. 1-2).

    With :math:`\ell` the loss of a sample or pair, the one that is trained, and :math:`\tau` the
    running mean of such losses, the weight is
    :math:`\sigma = \exp\{-W(\tfrac12 \max\{-2/e, (\ell - \tau)/\lambda\})\}`: above 1, at most e,
    for what is easier than :math:`\tau`, and below 1 for what is harder. No gradient passes
    through :math:`\sigma`. So the weighted loss has the gradient of Eq. 1, and its value lacks
    the part :math:`-\tau\sigma + \lambda (\log \sigma)^2`, a constant to the gradient.

    Args:
        loss: for ``level="sample"`` any PML loss whose terms have an anchor,
            ``CrossBatchMemory`` around one, or a callable that returns one loss per sample. For
            ``level="pair"`` a PML loss on pairs, such as ``ContrastiveLoss``. Not a wrapper:
            SuperLoss judges by the loss it trains, so it is the innermost.
        lam: :math:`\lambda`, finite and above 0, in the unit of the loss; the larger, the milder.
        level: ``"sample"``, or ``"pair"`` with a :math:`\tau` each for positive and negative
            pairs, as ProcSim has it.
        decay: weight of the past in :math:`\tau`, in [0, 1); None for the plain mean over all
            batches (ProcSim's "global average"). Each batch enters before it is judged.
        warmup: number of training steps at the start in which every weight is 1.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper, with a :class:`SuperLossDecision`, all float64. ``weight`` (B,) is
        :math:`\sigma`, ``score`` (B,) minus the loss, ``threshold`` :math:`-\tau`. At the level
        of pairs ``weight`` and ``score`` are what the pairs' weights make of the loss of each
        anchor, 1 for an anchor without loss, and the threshold is 1.

    Raises:
        TypeError: if the loss has no terms of that level (raised by the first call), or an
            argument has the wrong type.
        ValueError: if an argument is out of range.

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
        decision, value = weigh(everyone)
        rows = ("keep", "weight", "score")
        own = {name: batch.own_rows(everyone, getattr(decision, name)) for name in rows}
        return Judgement(replace(decision, **own), memo=(value, decision.mean, decision.count))

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

    def _weigh_samples(self, batch: Batch) -> tuple[SuperLossDecision, Tensor]:
        terms = pml.split(self.loss, batch)
        losses = terms.per_sample.detach().double()
        mean, count = self.mean.select(0, 0), self.count.select(0, 0)
        tau = running_mean(mean, count, losses, self.decay)
        sigma = self._confidence(losses, tau)
        decision = SuperLossDecision(
            keep=torch.ones_like(sigma, dtype=torch.bool),
            weight=sigma,
            score=-losses,
            threshold=-tau,
            mean=tau.unsqueeze(0),
            count=(count + 1).unsqueeze(0),
        )
        outer = batch.sample_weight
        return decision, terms.weighted(sigma if outer is None else sigma * outer)

    def _weigh_pairs(self, batch: Batch) -> tuple[SuperLossDecision, Tensor]:
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
                means[i] = running_mean(means[i], counts[i], losses, self.decay)
                counts[i] = counts[i] + 1
                sigma = self._confidence(losses, means[i])
                plain = plain.index_add(0, part.anchors, shares.detach())
                weighted = weighted.index_add(0, part.anchors, sigma * shares)
        weight = torch.where(plain == 0, 1.0, weighted.detach() / plain)
        decision = SuperLossDecision(
            keep=torch.ones_like(weight, dtype=torch.bool),
            weight=weight,
            score=weight,
            threshold=torch.ones_like(unweighted),
            mean=torch.stack(means),
            count=torch.stack(counts),
        )
        outer = torch.ones_like(weight) if batch.sample_weight is None else batch.sample_weight
        # Where every pair's weight is 1, the loss's own value, to the bit.
        total = (outer * weighted).sum() + unweighted
        unit = ((weight == 1) & (outer == 1)).all()
        return decision, torch.where(unit, value, total.to(value.dtype))

    def _confidence(self, losses: Tensor, tau: Tensor) -> Tensor:
        sigma = confidence(losses, tau, self.lam, lower=_LOWEST)
        return torch.where(self.step < self.warmup, 1.0, sigma)
