"""Wrappers that drop what they distrust, and wrappers around them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from noisydml import pml
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, call_loss
from noisydml.wrappers.decision import Decision, Judgement


class Filter(LossWrapper):
    """A wrapper that drops what it distrusts and does nothing else to a batch.

    ``judge`` ends in :meth:`filtered`.
    """

    suggests: ClassVar[bool] = False  # whether decisions say which label a sample should have

    def __init__(self, loss: Callable[..., Any], *, validate_args: bool = True) -> None:
        super().__init__(loss, validate_args=validate_args)
        pml.refuse_sorted(
            self._innermost,
            "no sample can be dropped; a wrapper that weights samples, such as "
            "ConfidenceWeightedLoss, works with it",
        )

    def filtered(
        self,
        batch: Batch,
        everyone: Batch,
        keep: Tensor,
        score: Tensor,
        threshold: Tensor,
        *,
        own_loss: Tensor | None = None,
        memo: Any = None,
        **evidence: Tensor,
    ) -> Judgement:
        """The judgement that keeps some rows.

        Args:
            batch: of this rank.
            everyone: the rows that were judged, those of all ranks or the batch itself.
            keep: (N,) bool, one a row of ``everyone``, as ``score`` is.
            score: (N,) floating point.
            threshold: 0-dim.
            own_loss: see :class:`Judgement`.
            memo: see :class:`Judgement`.
            **evidence: the other fields of the :class:`Decision`, (N,) or 0-dim; ``judged`` are all
                samples by default, and never rows that a wrapper has made up.
        """
        own = {"keep": keep, "score": score, **evidence}
        own["judged"] = everyone.real_of(own["judged"]) if "judged" in own else everyone.real
        for name, value in own.items():
            if value.ndim > 0:
                own[name] = batch.own_rows(everyone, value)
        decision = Decision(weight=own["keep"].float(), threshold=threshold, **own)
        return Judgement(decision, own_loss, memo)

    def value(self, batch: Batch, judgement: Judgement) -> Tensor:
        return self.kept_value(batch.select(judgement.decision.keep))

    def kept_value(self, batch: Batch) -> Tensor:
        """The loss of the rows that are kept."""
        return call_loss(self.loss, batch)


class AroundFilter(LossWrapper):
    """A wrapper that says what becomes of the samples which the filter inside it distrusts.

    It takes the filter's judgement for its own, and has the filter commit it.
    """

    @property
    def filter(self) -> Filter:
        """The wrapper that judges."""
        assert isinstance(self.loss, Filter)
        return self.loss

    def judge(self, batch: Batch) -> Judgement:
        if not self.filter.training:  # it trusts everyone and changes nothing
            return Judgement(Decision.trusting(batch))
        judged = self.filter.judge(batch)
        return self.rejudged(batch, judged)

    @abstractmethod
    def rejudged(self, batch: Batch, judged: Judgement) -> Judgement:
        """The judgement to go by; its ``memo`` begins with the filter's."""

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.memo is not None:
            self.filter.commit(batch, judgement.memo[0])
        self.filter.decision = judgement.decision
