"""ProcSim: every sample's loss weighted by the confidence in its label."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from noisydml import pml
from noisydml.functional import confidence, gaussian_mixture_threshold, otsu_threshold, running_mean
from noisydml.functional.checks import require_count, require_decay, require_positive
from noisydml.memory.state import Counters, overwrite
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss
from noisydml.wrappers.checks import ValueCheck, proxy_checks, raise_first
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.losses import losses_by, parameters_besides, require_judge

Named = Literal["otsu", "running_mean", "gaussian_mixture"]
Threshold = Named | float | Callable[[Tensor], Tensor | float]

_IDLE_STEPS = 500  # proxies that nobody has trained for so long were most likely forgotten


class ConfidenceWeightedLoss(LossWrapper):
    r"""Weights each sample's loss by the confidence in its label (ProcSim).

    A second loss, Proxy-NCA with proxies of its own, judges the samples. The confidence in a
    label, :math:`\sigma_i`, is 1 up to a threshold :math:`\tau` of that loss and falls above it
    (Eq. 3, :func:`~noisydml.functional.confidence`). The value is
    :math:`\frac{1}{B}\sum_i \sigma_i\, \ell_i^{DML}` (Eq. 4 without its regulariser). No noise
    rate is asked for.

    Args:
        loss: the loss to train with: a PML loss whose terms have an anchor, ``CrossBatchMemory``
            around one, another wrapper, or a callable that returns one loss per sample.
        confidence_loss: the loss that judges: in the paper
            ``ProxyNCALoss(num_classes, embedding_size)``; ``loss`` itself is a row of its Table 1.
            Its proxies are trained here, without a change of the value or the embeddings' gradient,
            as long as an optimiser has them: see :meth:`parameter_groups`.
        lam: :math:`\lambda`, finite and above 0, in the unit of the confidence loss; the larger,
            the milder. The paper has 1.0 for CUB200 and 0.1 for Cars196 and SOP.
        threshold: :math:`\tau`: ``"otsu"`` (Alg. 1), ``"running_mean"`` or ``"gaussian_mixture"``
            (Table 1), a number, or a callable from (N,) float64 losses to a number or 0-dim
            tensor.
        decay: weight of the past in ``"running_mean"``, in [0, 1); None for the plain mean.
        warmup: number of training steps at the start in which every weight is 1.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper, with ``labels`` in ``[0, num_classes)`` of the confidence loss. No row
        is dropped. ``decision.weight`` (B,) is :math:`\sigma`, ``decision.score`` (B,) minus the
        confidence loss, ``decision.threshold`` :math:`-\tau`, all float64. Otsu and the mixture
        trust everyone where all losses are equal, or fewer than four on all ranks: the threshold
        is ``-inf``.

    Raises:
        TypeError: if ``confidence_loss`` is a wrapper or remembers what it judges, ``lam`` or
            ``decay`` is no number, or ``warmup`` no integer; here or in the first call if a loss
            cannot be weighted sample by sample.
        ValueError: if a setting is outside the values above.

    Under ``torch.distributed`` the losses of all ranks are split together, and every rank trains
    its proxies on all rows, so they stay equal without ``DistributedDataParallel``.

    References:
        Barbany et al., ProcSim: Proxy-based Confidence for Robust Similarity Learning, WACV 2024.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import ConfidenceWeightedLoss
        >>> _ = torch.manual_seed(0)
        >>> loss_fn = ConfidenceWeightedLoss(
        ...     losses.MultiSimilarityLoss(), losses.ProxyNCALoss(2, 8), lam=0.1
        ... )
        >>> embeddings, labels = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> loss = loss_fn(embeddings, labels)
        >>> loss_fn.decision.weight
        tensor([1.0000, 0.7559, 1.0000, 0.4980, 1.0000, 1.0000], dtype=torch.float64)
    """

    step: Tensor
    mean: Tensor
    count: Tensor
    fingerprint: Tensor

    def __init__(
        self,
        loss: Callable[..., Any],
        confidence_loss: Callable[..., Any],
        *,
        lam: float,
        threshold: Threshold = "otsu",
        decay: float | None = 0.9,
        warmup: int = 0,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_judge("confidence_loss", confidence_loss)
        pml.refuse_unweightable(loss)
        require_positive("lam", lam)
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        known = number and threshold == threshold  # and not NaN
        if not known and threshold not in get_args(Named) and not callable(threshold):
            raise ValueError(
                "threshold must be 'otsu', 'running_mean', 'gaussian_mixture', a number or a "
                f"callable, got {threshold!r}"
            )
        require_decay(decay)
        require_count("warmup", warmup, least=0)
        self.confidence_loss = confidence_loss
        self.lam = float(lam)
        self.threshold = threshold
        self.decay = decay
        self.warmup = warmup
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if threshold == "running_mean":
            self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # losses in it
        # Of the warning about proxies that nobody trains: steps watched, what the proxies were.
        self.watched = Counters(steps=0)
        sums = torch.zeros(len(self.own_parameters()), dtype=torch.float64)
        self.register_buffer("fingerprint", sums)

    def judge(self, batch: Batch) -> Judgement:
        everyone, losses = losses_by(
            "confidence_loss", self.confidence_loss, batch, self.own_parameters()
        )
        if len(everyone) == 0:
            return Judgement(Decision.trusting(batch), own_loss=losses.sum())
        scores = losses.detach().double()  # (N,), of all ranks' rows
        tau = self._threshold(scores)
        if callable(self.threshold) and batch.check_values:  # known only now
            raise_first([ValueCheck(tau.isnan(), "threshold must return a number, got NaN")])
        sigma = confidence(scores, tau, self.lam)  # Eq. 3
        sigma = torch.where(self.step < self.warmup, 1.0, sigma)
        decision = replace(
            Decision.trusting(batch),
            weight=batch.own_rows(everyone, sigma),
            score=batch.own_rows(everyone, -scores),
            threshold=-tau,
            judged=batch.real & (self.step >= self.warmup) & tau.isfinite(),
        )
        return Judgement(decision, own_loss=losses.mean(), memo=(tau, scores))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        return call_loss(self.loss, batch.reweight(judgement.decision.weight))  # Eq. 4

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.memo is None:  # no sample on any rank
            return
        self.step += 1
        if self.threshold == "running_mean":
            tau, losses = judgement.memo
            overwrite(self.mean, tau)
            self.count += losses.isfinite().sum()
        self._warn_if_forgotten()

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        return proxy_checks(self.confidence_loss, batch, "the confidence loss")

    def own_parameters(self) -> list[nn.Parameter]:
        return parameters_besides(self.confidence_loss, self.loss)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, threshold={self.threshold}, warmup={self.warmup}"

    def _threshold(self, losses: Tensor) -> Tensor:
        """0-dim float64."""
        if self.threshold == "otsu":
            return otsu_threshold(losses)
        if self.threshold == "running_mean":
            return running_mean(self.mean, self.count, losses, self.decay)
        if self.threshold == "gaussian_mixture":
            return gaussian_mixture_threshold(losses)
        tau = self.threshold(losses) if callable(self.threshold) else self.threshold
        if isinstance(tau, Real):
            return losses.new_full((), float(tau))
        wanted = "threshold must return a number or a 0-dim tensor"
        if not isinstance(tau, Tensor):
            raise TypeError(f"{wanted}, got {type(tau).__name__}")
        if tau.numel() != 1:
            raise ValueError(f"{wanted}, got shape {tuple(tau.shape)}")
        if tau.is_complex() or tau.dtype == torch.bool:
            raise TypeError(f"{wanted}, got dtype {tau.dtype}")
        return tau.detach().to(losses.device, torch.float64).reshape(())

    def _warn_if_forgotten(self) -> None:
        """Compare the proxies once, after many steps, with what they were in the first."""
        proxies, steps = self.own_parameters(), self.watched["steps"]
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in proxies)
        if steps > _IDLE_STEPS or not trained:
            return
        if steps in (0, _IDLE_STEPS):
            now = torch.stack([p.detach().double().square().sum() for p in proxies])
            if steps == 0:
                overwrite(self.fingerprint, now)
            elif torch.equal(self.fingerprint, now):
                warnings.warn(
                    f"the proxies of the confidence loss have not changed in {_IDLE_STEPS} steps; "
                    "give them to an optimiser: "
                    'Adam([{"params": model.parameters()}, *loss_fn.parameter_groups(lr)])',
                    stacklevel=8,  # the line that called the wrapper
                )
        self.watched.set(steps=steps + 1)
