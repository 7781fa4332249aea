"""PRISM: samples that fit their class's center badly are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from noisydml.distributed import gather_batch
from noisydml.functional import (
    batch_positive,
    class_similarity,
    class_similarity_pairs,
    own_similarity,
)
from noisydml.functional.checks import require_count, require_number, require_positive
from noisydml.functional.prism import Candidates, Window, select
from noisydml.memory import FeatureMemory
from noisydml.pml import kinds
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import Decision, Judgement, LossWrapper, call_loss
from noisydml.wrappers.checks import ValueCheck, in_range

Score = Literal["centers", "pairs", "batch_positive", "memory_positive"]
_SCORES = ("centers", "pairs", "batch_positive", "memory_positive")


class PRISMFilter(LossWrapper):
    r"""Drops the samples that are less likely than others to have a right label (PRISM).

    A memory holds the features of the latest samples that were kept. The probability that a
    label is right is a softmax over the similarities to the classes' mean features,
    :math:`P(i) = \exp(w_{y_i}^\top x_i / T) / \sum_k \exp(w_k^\top x_i / T)` (Eq. 7). Every batch
    has a quantile :math:`Q`, the :math:`\lfloor R n \rfloor`-th smallest of its probabilities for
    a noise rate R; a sample is kept where its probability is above the mean of the last
    ``window`` quantiles, this batch's included (smooth top-R, Eq. 4). The kept ones enter the
    memory, and the wrapped loss sees nobody else.

    Args:
        loss: any loss that a wrapper takes; the paper's are PML's
            ``CrossBatchMemory(ContrastiveLoss())`` and ``SoftTripleLoss``.
        num_classes: number of classes, C; labels lie in ``[0, C)``.
        embedding_size: width of the embeddings, D.
        memory_size: entries of the memory, M. The paper has the size of the training set.
        noise_rate: R in ``[0, 1)``, the share of wrong labels; None to have it estimated, over
            the last ``window`` batches, from how low the given classes rank
            (:func:`~noisydml.functional.low_rank_counts`; not in the paper). While the estimate is
            0.7 or more nothing is dropped.
        window: number of batches, 1 or more, whose quantiles are averaged. 1 is the paper's top-R
            method (TRM); its experiments with CARS-98N have 30.
        temperature: T, above 0. The paper has 1; smaller values rank the labels better, see the
            documentation for figures.
        score: ``"centers"``: Eq. 7. ``"pairs"``: Eq. 2, the same by all pairs with the memory, to
            see that it is. ``"batch_positive"`` and ``"memory_positive"``: the mean similarity to
            the samples of the own class in the batch or the memory (Eq. 12 and 13, the paper's
            ablations), without temperature.
        memory_loss: whether the loss of the kept samples against the memory is added (Eq. 9).
            Needs one of PML's pair or triplet losses. The memory is that before the batch, so
            that no sample is compared with itself.
        warmup: number of training steps at the start in which nothing is dropped while the memory
            and the window fill; None until the memory has been full once, which is one epoch
            where it has the size of the training set.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory`.

    Forward:
        As every wrapper; ``sample_ids`` are stored in the memory if given. ``decision.score`` is
        P (B,), ``decision.threshold`` what it was compared with (``-inf``: nothing was dropped),
        ``decision.noise_rate`` R, given or estimated. A sample whose class the memory does not
        hold has P = 1, is kept, and takes no part in the quantile. Nothing is dropped in
        warm-up, and by a batch so small that :math:`\lfloor R n \rfloor` is 0, which leaves the
        window alone. Where nobody would be kept, the window starts again with this batch alone;
        where all are equal even then, all are kept.

    Raises:
        TypeError, ValueError: for impossible settings and bad arguments; with ``memory_loss``
            also for a ``ref_emb`` of the caller's.

    Under ``torch.distributed`` the rows of all ranks are judged together and every rank has the
    same memory.

    References:
        Liu et al., Noise-resistant Deep Metric Learning with Ranking-based Instance Selection,
        CVPR 2021.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import PRISMFilter
        >>> loss_fn = PRISMFilter(
        ...     losses.ContrastiveLoss(), num_classes=2, embedding_size=2, memory_size=8,
        ...     noise_rate=0.25, window=1, warmup=1,
        ... )
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> loss = loss_fn(embeddings, torch.tensor([0, 0, 1, 1]))  # fills the memory
        >>> loss = loss_fn(embeddings, torch.tensor([0, 1, 1, 1]))
        >>> loss_fn.decision.keep
        tensor([ True, False,  True,  True])
    """

    step: Tensor
    quantiles: Tensor
    num_quantiles: Tensor
    low_ranks: Tensor | None

    def __init__(
        self,
        loss: Callable[..., Any],
        num_classes: int,
        embedding_size: int,
        *,
        memory_size: int,
        noise_rate: float | None = None,
        window: int = 30,
        temperature: float = 0.05,
        score: Score = "centers",
        memory_loss: bool = False,
        warmup: int | None = None,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_count("window", window)
        require_positive("temperature", temperature)
        if noise_rate is not None:
            require_number("noise_rate", noise_rate)
            if not 0 <= noise_rate < 1:
                raise ValueError(f"noise_rate must be None or in [0, 1), got {noise_rate}")
        if score not in _SCORES:
            raise ValueError(f"score must be one of {_SCORES}, got {score!r}")
        if warmup is not None:
            require_count("warmup", warmup, least=0)
        if memory_loss:
            kinds.refuse_without_reference("memory_loss", loss)
        self.memory = FeatureMemory(memory_size, embedding_size, num_classes)
        self.num_classes = num_classes
        self.noise_rate = noise_rate
        self.window = window
        self.temperature = float(temperature)
        self.score = score
        self.memory_loss = memory_loss
        self.warmup = warmup
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("quantiles", torch.zeros(window, dtype=torch.float64))
        self.register_buffer("num_quantiles", torch.zeros((), dtype=torch.int64))
        # Of the last batches: how many labels ranked low, and how many wrong ones would.
        ranks = torch.zeros(window, 2, dtype=torch.float64) if noise_rate is None else None
        self.register_buffer("low_ranks", ranks)

    def judge(self, batch: Batch) -> Judgement:
        everyone = gather_batch(batch.judged())
        if len(everyone) == 0:
            return Judgement(Decision.trusting(batch))
        window = Window(self.quantiles, self.num_quantiles, self.low_ranks)
        chosen = select(self._candidates(everyone), window)
        keep = batch.own_rows(everyone, chosen.keep)
        decision = Decision(
            keep=keep,
            weight=keep.float(),
            score=batch.own_rows(everyone, chosen.scores),
            threshold=chosen.threshold,
            noise_rate=chosen.noise_rate,
        )
        return Judgement(decision, evidence=_Evidence(everyone, chosen.keep, chosen.window))

    def wrapped_value(self, batch: Batch) -> Tensor:
        value = call_loss(self.loss, batch)
        if not self.memory_loss or len(batch) == 0:
            return value
        filled = min(int(self.memory.total), len(self.memory))  # one host synchronisation
        if filled == 0:
            return value
        # Copies: what autograd keeps for the backward pass must not be overwritten by commit.
        against_memory = replace(
            batch,
            indices_tuple=None,
            ref_emb=self.memory.features[:filled].to(batch.embeddings.dtype, copy=True),
            ref_labels=self.memory.labels[:filled].clone(),
        )
        return value + call_loss(self.loss, against_memory)

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.evidence is None:  # no sample on any rank
            return
        everyone, keep, window = judgement.evidence
        self.quantiles, self.num_quantiles, self.low_ranks = window
        self.step.add_(1)
        samples = _samples(everyone)
        keep = keep if samples is None else keep & samples
        self.memory.enqueue(everyone.embeddings, everyone.labels, everyone.sample_ids, keep)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        width = self.memory.embedding_size
        if batch.embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings must be as wide as embedding_size, {width}, "
                f"got {batch.embeddings.shape[1]}"
            )
        if self.memory_loss and batch.ref_emb is not None:
            raise ValueError(
                "ref_emb must not be given with memory_loss: the memory is in its place"
            )
        return [in_range("labels", batch.labels, self.num_classes, "num_classes of PRISMFilter")]

    def shared_state(self) -> list[Tensor]:
        return [*super().shared_state(), *self.memory.buffers()]

    def extra_repr(self) -> str:
        return (
            f"noise_rate={self.noise_rate}, window={self.window}, temperature={self.temperature}, "
            f"score={self.score!r}, memory_loss={self.memory_loss}, warmup={self.warmup}"
        )

    def _candidates(self, everyone: Batch) -> Candidates:
        """The rows of all ranks."""
        memory, embeddings, labels = self.memory, everyone.embeddings, everyone.labels
        temperature = self.temperature if self.score in ("centers", "pairs") else 1.0
        if self.score == "pairs":
            similarities = class_similarity_pairs(
                embeddings, memory.features, memory.labels, self.num_classes, temperature
            )
        else:
            similarities = class_similarity(embeddings, memory.centers, memory.counts, temperature)
        scores = None
        if self.score == "batch_positive":
            scores = batch_positive(embeddings, labels)
        elif self.score == "memory_positive":
            scores = own_similarity(similarities, labels)
        filling = (memory.total, len(memory)) if self.warmup is None else (self.step, self.warmup)
        samples = _samples(everyone)
        return Candidates(similarities, labels, scores, samples, self.noise_rate, *filling)


class _Evidence(NamedTuple):
    """What follows from a batch: its rows of all ranks, whom of them to keep, the window after."""

    everyone: Batch
    keep: Tensor  # (N,) bool
    window: Window


def _samples(everyone: Batch) -> Tensor | None:
    """(N,) bool, the rows that are samples of the data set; None for all.

    The others are judged like all rows, but neither counted nor remembered.
    """
    return None if everyone.synthetic is None else everyone.synthetic.logical_not()
