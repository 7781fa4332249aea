"""A loss and a term beside it that needs no labels (ProcSim, Eq. 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisydml.functional.checks import require_loss, require_not_negative
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss, zero_with_graph
from noisydml.wrappers.checks import ValueCheck
from noisydml.wrappers.decision import Decision, Judgement


class Regularizer(nn.Module, ABC):
    """Base of regularisers that need more of a batch than its embeddings.

    A plain callable of the embeddings needs no base class: :class:`RegularizedLoss` takes it.
    """

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None) -> Tensor:
        """The term of every sample, (B,), or one number; ``embeddings`` (B, D), B at least 1."""

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        """What the regulariser asks of the values of a batch; raises for types and shapes."""
        return []


class RegularizedLoss(LossWrapper):
    r"""Adds a term of the embeddings, such as a self-supervised one (ProcSim, Eq. 4).

    The value is :math:`\frac{1}{B}\sum_i \sigma_i \ell_i + \omega\, \ell_i^{SSL}`. Its place in a
    nest says what the regulariser sees. Outermost, as in the paper, it sees every row, and no
    weight and no filter touches its term. Inside another wrapper it sees the rows that are left,
    and its values are weighted like the loss's (Table 1, "regularization affected by
    confidence").

    Args:
        loss: any PML loss, another wrapper, or any callable ``loss(embeddings, labels)``.
        regularizer: a :class:`Regularizer` such as :class:`LanguageGuidance`, or any callable of
            the (B, D) embeddings. It returns one value per sample, (B,), or one number. The
            parameters of a module are those of this loss.
        weight: :math:`\omega`, finite and not negative; 0 switches the term off. ProcSim has 10
            for CUB200, 5.5 for Cars196 and 0.5 for SOP.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        regularization: 0-dim, the detached term of the last training step, before
            :math:`\omega`; None before the first, and with ``weight=0``.

    Forward:
        As every wrapper. In eval mode, and for no rows at all, there is no term. ``decision`` is
        that of the wrapper inside; it trusts every sample where there is none. Rows that another
        wrapper has made up are left out.

    Raises:
        TypeError: if the regulariser cannot be called or is a wrapper, or the weight is no number;
            in a call if the regulariser returns neither one number nor (B,) values, inside a
            wrapper that weights anything but (B,) values.
        ValueError: if the weight is negative or not finite.

    Under ``torch.distributed`` the regulariser sees its own rank's rows, and with a
    ``GatheredLoss`` around this wrapper those of all ranks.

    References:
        Barbany et al., ProcSim: Proxy-based Confidence for Robust Similarity Learning, WACV 2024.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import GroundTruthFilter, RegularizedLoss
        >>> filtered = GroundTruthFilter(ContrastiveLoss(), torch.tensor([False, False, True]))
        >>> loss_fn = RegularizedLoss(filtered, lambda x: x.square().sum(dim=1), weight=0.5)
        >>> loss_fn(torch.eye(3), torch.tensor([0, 0, 0]), sample_ids=torch.arange(3))
        tensor(1.9142)
        >>> loss_fn.regularization  # of all three rows
        tensor(1.)
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        regularizer: Callable[..., Tensor],
        weight: float,
        *,
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
        self.regularization: Tensor | None = None

    def run(self, batch: Batch) -> Tensor:
        value = super().run(batch)
        if isinstance(self.loss, LossWrapper):  # which judges for both
            self.decision = self.loss.decision
        return value

    def judge(self, batch: Batch) -> Judgement:
        return Judgement(Decision.trusting(batch))

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        if self.weight == 0:
            return call_loss(self.loss, batch)
        term = self._term(batch)  # first: if it raises, no state has changed
        value = call_loss(self.loss, batch)
        self.regularization = term.detach()
        return value + (self.weight * term).to(value.dtype)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        if self.weight > 0 and isinstance(self.regularizer, Regularizer):
            return self.regularizer.own_checks(batch)
        return []

    def extra_repr(self) -> str:
        return f"weight={self.weight}"

    def _term(self, batch: Batch) -> Tensor:
        """0-dim, the regulariser's mean over the rows; weighted inside another wrapper."""
        batch, regularizer = batch.without_synthetic(), self.regularizer
        if len(batch) == 0:
            parameters = regularizer.parameters() if isinstance(regularizer, nn.Module) else ()
            return zero_with_graph(batch.embeddings, parameters)
        if isinstance(regularizer, Regularizer):
            values = regularizer(batch.embeddings, batch.labels, batch.sample_ids)
        else:
            values = regularizer(batch.embeddings)
        wanted = f"regularizer must return one value per sample, shape ({len(batch)},), or a"
        if not isinstance(values, Tensor):
            raise TypeError(f"{wanted} 0-dim tensor, got {type(values).__name__}")
        if values.shape not in ((), (len(batch),)):
            raise TypeError(f"{wanted} 0-dim tensor, got shape {tuple(values.shape)}")
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if batch.nested and batch.sample_weight is not None:
            if values.ndim == 0:
                raise TypeError(
                    "regularizer must return one value per sample inside a wrapper that weights "
                    "samples; put RegularizedLoss outside of it"
                )
            values = batch.sample_weight.to(values.dtype) * values
        return values.mean()
