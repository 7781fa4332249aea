"""A loss and a term beside it that needs no labels (ProcSim, Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisydml.functional.checks import require_loss, require_not_negative
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import Decision, Judgement, LossWrapper, zero_with_graph
from noisydml.wrappers.checks import ValueCheck
from noisydml.wrappers.regularizers import Regularizer


class RegularizedLoss(LossWrapper):
    r"""Adds a term that no weight and no filter touches (ProcSim, Eq. 4).

    The result is :math:`\frac{1}{B}\sum_i \sigma_i \ell_i + \omega\, \ell_i^{SSL}`. Wherever it
    stands in a nesting, outside or inside, the regulariser sees every row that the outermost
    wrapper was called with, and its term is added after all weighting and dropping.

    Args:
        loss: any PML loss, another wrapper, or any callable ``loss(embeddings, labels)``.
        regularizer: a :class:`Regularizer` such as :class:`LanguageGuidance`, or any callable of
            the (B, D) embeddings. It returns one value per sample, (B,), or one number. If it is
            a module, its parameters are those of this loss.
        weight: :math:`\omega`, finite and not negative; 0 switches the term off. ProcSim has 10
            for CUB200, 5.5 for Cars196 and 0.5 for SOP.
        weighted: True for the ablation of ProcSim's Table 1, "regularization affected by
            confidence": the regulariser sees the rows that the wrappers around this one have
            left, and its values are weighted like the loss's. They must be one per sample.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        regularization: 0-dim, the detached value of the regulariser's term in the last training
            step, before :math:`\omega`; None before the first, and with ``weight=0``.

    Forward:
        As every wrapper. In eval mode, and for no rows at all, there is no term. Its own
        ``decision`` trusts every sample.

    Raises:
        TypeError: if an argument has the wrong type, or the regulariser returns something else.
        ValueError: if ``weight`` is out of range.

    Under ``torch.distributed`` the regulariser sees its own rank's rows, like a wrapped loss,
    and with a ``GatheredLoss`` around this wrapper those of all ranks.

    References:
        Barbany et al., ProcSim: Proxy-based Confidence for Robust Similarity Learning, WACV 2024.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import GroundTruthFilter, RegularizedLoss
        >>> loss = RegularizedLoss(ContrastiveLoss(), lambda x: x.square().sum(dim=1), weight=0.5)
        >>> loss_fn = GroundTruthFilter(loss, is_noisy=torch.tensor([False, False, True]))
        >>> loss_fn(torch.eye(3), torch.tensor([0, 0, 0]), sample_ids=torch.arange(3))
        tensor(1.9142)
        >>> loss.regularization  # of all three rows
        tensor(1.)
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        regularizer: Callable[..., Tensor],
        weight: float,
        *,
        weighted: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_loss("regularizer", regularizer)
        if isinstance(regularizer, LossWrapper):
            raise TypeError(
                "regularizer must be a Regularizer or a callable of the embeddings, "
                f"got the wrapper {type(regularizer).__name__}"
            )
        require_not_negative("weight", weight)
        self.regularizer = regularizer
        self.weight = float(weight)
        self.weighted = weighted
        self.regularization: Tensor | None = None

    @property
    def adds_term(self) -> bool:
        return self.weight > 0 and not self.weighted

    def term(self, batch: Batch) -> Tensor:
        value = self._regularize(batch)
        value = value if value.ndim == 0 else value.mean()
        self.regularization = value.detach()
        return self.weight * value

    def run(self, batch: Batch) -> Tensor:
        if not (self.training and self.weighted and self.weight > 0):
            return super().run(batch)
        samples = batch  # and not what a wrapper outside has made up
        if batch.synthetic is not None:
            samples = batch.select(batch.synthetic.logical_not())
        per_sample = self._regularize(samples)  # first: if it raises, no state has changed
        if len(samples) and per_sample.ndim == 0:
            raise TypeError("with weighted=True regularizer must return one value per sample")
        if samples.sample_weight is not None and len(samples):
            per_sample = samples.sample_weight.to(per_sample.dtype) * per_sample
        value = super().run(batch)
        term = per_sample.mean()
        self.regularization = term.detach()
        return value + (self.weight * term).to(value.dtype)

    def judge(self, batch: Batch) -> Judgement:
        return Judgement(Decision.trusting(batch))

    def narrowed(self, batch: Batch, decision: Decision) -> Batch:
        return batch

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        if self.weight > 0 and isinstance(self.regularizer, Regularizer):
            return self.regularizer.own_checks(batch)
        return []

    def extra_repr(self) -> str:
        return f"weight={self.weight}, weighted={self.weighted}"

    def _regularize(self, batch: Batch) -> Tensor:
        """The regulariser's value on the rows of a batch, (B,) or 0-dim."""
        if len(batch) == 0:
            module = self.regularizer if isinstance(self.regularizer, nn.Module) else nn.Module()
            return zero_with_graph(batch.embeddings, module.parameters())
        if isinstance(self.regularizer, Regularizer):
            value = self.regularizer(batch.embeddings, batch.labels, batch.sample_ids)
        else:
            value = self.regularizer(batch.embeddings)
        if not isinstance(value, Tensor) or value.shape not in ((), (len(batch),)):
            got = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise TypeError(
                f"regularizer must return one value per sample, shape ({len(batch)},), or a "
                f"0-dim tensor, got {got}"
            )
        return value.to(torch.promote_types(value.dtype, torch.float32))
