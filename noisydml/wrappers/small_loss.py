"""Co-teaching's selection: the samples of small loss are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisydml.functional import forget_rate, small_loss_threshold
from noisydml.functional.checks import require_count, require_noise_rate
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import ValueCheck, proxy_checks
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.filter import Filter
from noisydml.wrappers.losses import losses_by, parameters_besides, require_judge


class SmallLossFilter(Filter):
    r"""Keeps the samples of a batch that have the smallest losses (Co-teaching's selection).

    A network fits right labels before wrong ones, so that early on a small loss speaks for a
    label. Of the n samples of a batch the :math:`\lfloor R(t)\, n \rfloor` of largest loss are
    dropped, where R grows from 0 to the noise rate (Algorithm 1,
    :func:`~noisydml.functional.forget_rate`). The paper's two networks select for one another;
    here one network selects for itself.

    Args:
        loss: any loss that a wrapper takes.
        noise_rate: :math:`\tau` in ``[0, 1)``, the share of wrong labels.
        ramp: number of training steps in which R grows; 0 for none. The paper has 10 epochs:
            ``10 * len(data_loader)``.
        score_loss: the loss that judges, such as ``ProxyNCALoss(num_classes, embedding_size)``;
            None for ``loss`` itself, which is then called twice. Parameters that ``loss`` does
            not have are trained here, on the kept samples, without a change of the value or the
            embeddings' gradient, as long as an optimiser has them: see :meth:`parameter_groups`.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper, with ``labels`` in ``[0, num_classes)`` of the loss that judges.
        ``decision.score`` (B,) is minus that loss, ``decision.threshold`` minus the largest that
        was kept, ``-inf`` if nothing was dropped, ``decision.noise_rate`` R(t), all float64.
        Samples of equal loss are dropped together, or kept if only some of them would have to go;
        so fewer may be dropped, and never all.

    Raises:
        TypeError: if ``noise_rate`` is no number, ``ramp`` no integer, or the loss that judges is a
            wrapper or would remember what it judges, as ``CrossBatchMemory`` does; here or in the
            first call if it has no value per sample.
        ValueError: if a setting is outside the values above.

    Under ``torch.distributed`` the rows of all ranks are selected from together, and every rank
    trains the parameters of ``score_loss`` on all of them.

    References:
        Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy
        Labels, NeurIPS 2018.

    Example:
        >>> import torch
        >>> from noisydml import SmallLossFilter
        >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
        >>> loss_fn = SmallLossFilter(cross_entropy, noise_rate=0.25, ramp=0)
        >>> logits = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> loss_fn(logits, torch.tensor([0, 0, 0, 1]))  # the third label is wrong
        tensor(0.0283)
        >>> loss_fn.decision.keep
        tensor([ True,  True, False,  True])
    """

    step: Tensor

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        noise_rate: float,
        ramp: int,
        score_loss: Callable[..., Any] | None = None,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_noise_rate(noise_rate)
        require_count("ramp", ramp, least=0)
        self.score_loss = score_loss
        require_judge(self._judge_is, self._judge)
        self.noise_rate = float(noise_rate)
        self.ramp = ramp
        self.same_on_all_ranks = score_loss is None  # every rank judges all rows by it
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def judge(self, batch: Batch) -> Judgement:
        everyone, losses = losses_by(self._judge_is, self._judge, batch, self.own_parameters())
        if len(everyone) == 0:
            return Judgement(Decision.trusting(batch), own_loss=losses.sum())
        scores = losses.detach().double()  # (N,), of all ranks' rows
        rate = forget_rate(self.step, self.noise_rate, self.ramp)
        threshold = small_loss_threshold(scores, rate, everyone.real)
        keep = scores <= threshold
        own_loss = (losses * keep).sum() / keep.sum().clamp_min(1)
        judged = (threshold < math.inf).expand_as(keep)
        return self.filtered(
            batch,
            everyone,
            keep,
            -scores,
            -threshold,
            noise_rate=rate,
            judged=judged,
            own_loss=own_loss,
        )

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.decision.threshold is not None:  # there is a sample on some rank
            self.step += 1

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        return proxy_checks(self._judge, batch, "the score loss")

    def own_parameters(self) -> list[nn.Parameter]:
        return parameters_besides(self.score_loss, self.loss)

    def extra_repr(self) -> str:
        return f"noise_rate={self.noise_rate}, ramp={self.ramp}"

    @property
    def _judge_is(self) -> str:
        return "score_loss, by default loss itself," if self.score_loss is None else "score_loss"

    @property
    def _judge(self) -> Callable[..., Any]:
        loss: Callable[..., Any] = self.loss if self.score_loss is None else self.score_loss
        return loss
