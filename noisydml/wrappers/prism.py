"""PRISM: samples that fit their class's center badly are left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from noisydml import pml
from noisydml.distributed import gather_batch
from noisydml.functional.checks import (
    require_choice,
    require_count,
    require_number,
    require_positive,
)
from noisydml.functional.prism import (
    batch_positive,
    class_similarity,
    class_similarity_pairs,
    own_similarity,
    smooth_noise_rate,
    smooth_top_r,
    softmax_probability,
)
from noisydml.memory.features import FeatureMemory
from noisydml.memory.judge import judge_labels
from noisydml.memory.state import Counters, overwrite
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import call_loss
from noisydml.wrappers.checks import ValueCheck, in_range, require_width, unit_checks
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.filter import Filter
from noisydml.wrappers.losses import loss_against_memory

Score = Literal["centers", "pairs", "batch_positive", "memory_positive"]

# An estimate of this or more says that the features tell too little yet, not that most labels are
# wrong: to drop the lowest would be to drop nearly at random, too many for anything to be learned.
_NOTHING_LEARNED = 0.7
_FEW = 1000  # samples, before which the judge is not asked again


class PRISMFilter(Filter):
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
        noise_rate: R in ``[0, 1)``, the share of wrong labels; None to have it estimated (not in
            the paper): over the last ``window`` batches from how low the given classes rank
            (:func:`~noisydml.functional.low_rank_counts`), and once in ``memory_size`` samples,
            1,000 at least, by :func:`noisydml.memory.judge.judge_labels`, which sees wrong labels
            on similar classes, too, as these do not rank low. The larger one counts; while it is
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
            Needs one of PML's pair or triplet losses, and one that compares directions, as the
            memory holds unit vectors. It is that before the batch, so that no sample is compared
            with itself.
        warmup: number of training steps at the start in which nothing is dropped while the memory
            and the window fill; None until the memory has been full once, which is one epoch
            where it has the size of the training set.
        shard: whether each rank of ``torch.distributed`` holds a part of the memory: entry i is
            one of rank ``i % R``, of R. Every rank has all centers. It has to be initialised
            before. Only with a ``noise_rate`` and without ``memory_loss`` and ``score="pairs"``,
            as the judge and these need all entries.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory`.
        recent: another, of the latest samples whether kept or not; None with a
            ``noise_rate``.

    Forward:
        As every wrapper; ``sample_ids`` are stored in the memory if given. ``decision.score`` is
        P (B,), ``decision.threshold`` what it was compared with (``-inf``: nothing was dropped),
        ``decision.noise_rate`` R, given or estimated. A sample whose class the memory does not
        hold has P = 1, is kept, and takes no part in the quantile. Nothing is dropped in
        warm-up, and by a batch so small that :math:`\lfloor R n \rfloor` is 0, which leaves the
        window alone. Where nobody would be kept, the window starts again with this batch alone;
        where all are equal even then, all are kept.

    Raises:
        TypeError: if a size is no integer, a rate or temperature no number, or the loss cannot be
            called with fewer samples.
        ValueError: if a setting is outside the values above, or does not go with another; in a call
            if embeddings are not as wide as the memory, labels outside ``[0, C)``, or with
            ``memory_loss`` a ``ref_emb`` is given.

    Under ``torch.distributed`` the rows of all ranks are judged together and every rank has the
    same memory, or its part of one with ``shard``.

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

    judges_anything = True
    step: Tensor
    quantiles: Tensor
    num_quantiles: Tensor
    low_ranks: Tensor
    structured: Tensor

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
        shard: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_count("num_classes", num_classes)
        require_count("window", window)
        require_positive("temperature", temperature)
        if noise_rate is not None:
            require_number("noise_rate", noise_rate)
            if not 0 <= noise_rate < 1:
                raise ValueError(f"noise_rate must be None or in [0, 1), got {noise_rate}")
        require_choice("score", score, get_args(Score))
        if warmup is not None:
            require_count("warmup", warmup, least=0)
        if memory_loss:
            pml.refuse_without_reference("memory_loss", loss)
        whole = {  # what needs all entries
            "memory_loss=True": memory_loss,
            "score='pairs'": score == "pairs",
            "noise_rate=None": noise_rate is None,
        }
        for asked, there in whole.items():
            if shard and there:
                raise ValueError(f"shard must be False with {asked}, which needs all entries")
        self.memory = FeatureMemory(memory_size, embedding_size, num_classes, shard=shard)
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
        self.register_buffer("low_ranks", torch.zeros(window, 2, dtype=torch.float64))
        # The judge's rate if wrong labels fall on particular classes, otherwise 0.
        self.register_buffer("structured", torch.zeros((), dtype=torch.float64))
        self.recent = FeatureMemory(memory_size, embedding_size) if noise_rate is None else None
        self.counters = Counters(seen=0)

    def judge(self, batch: Batch) -> Judgement:
        everyone = gather_batch(batch.judged())  # the rows of all ranks
        if len(everyone) == 0:
            return Judgement(Decision.trusting(batch))
        similarity = self._similarity(everyone.embeddings)  # (N, C), Eq. 5
        own = own_similarity(similarity, everyone.labels)  # (N,)
        score, known = self._score(everyone, similarity, own)
        rate, to_drop, low_ranks = self._noise_rate(similarity, own, everyone)
        threshold, *window = smooth_top_r(  # Eq. 4
            score, to_drop, everyone.real_of(known), self.quantiles, self.num_quantiles
        )
        filling = self._filling()
        threshold = threshold.masked_fill(filling, -math.inf)
        keep = (score > threshold) | known.logical_not()
        # An estimate so low that nobody is dropped is a judgement, too.
        able = threshold > -math.inf if self.noise_rate is not None else rate < _NOTHING_LEARNED
        judged = known & able & filling.logical_not()
        kept = everyone.real_of(keep)
        leaving = self.memory.leaving(everyone.embeddings, kept)  # asks the ranks that hold it
        memo = (everyone, kept, leaving, *window, low_ranks)
        return self.filtered(
            batch, everyone, keep, score, threshold, noise_rate=rate, judged=judged, memo=memo
        )

    def kept_value(self, batch: Batch) -> Tensor:
        value = call_loss(self.loss, batch)
        if not self.memory_loss:
            return value
        against_memory = loss_against_memory(self.loss, batch, self.memory)  # Eq. 8
        return value if against_memory is None else value + against_memory  # Eq. 9

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        if judgement.memo is None:  # no sample on any rank
            return
        everyone, kept, leaving, quantiles, num_quantiles, low_ranks = judgement.memo
        rows = everyone.embeddings, everyone.labels, everyone.sample_ids
        self.memory.enqueue(*rows, kept, leaving)
        overwrite(self.quantiles, quantiles)
        overwrite(self.num_quantiles, num_quantiles)
        overwrite(self.low_ranks, low_ranks)
        self.step.add_(1)
        if self.recent is None:
            return
        rows = everyone.without_synthetic()
        ids = rows.sample_ids  # by which nobody is there twice, who would vote for himself
        places = None if ids is None else ids % len(self.recent)
        self.recent.remember(rows.embeddings, rows.labels, places)
        seen, whole = self.counters["seen"] + len(rows), max(len(self.recent), _FEW)
        if seen >= whole:
            self._end_pass(self.recent)
        self.counters.set(seen=seen % whole)

    def _end_pass(self, recent: FeatureMemory) -> None:
        """Ask the judge about noise among similar classes, which the ranks do not show."""
        found = judge_labels(recent.features.float(), recent.labels, folds=1, trained=True)
        says = found.structured and math.isfinite(found.noise_rate)
        self.structured.fill_(found.noise_rate if says else 0.0)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        self.memory.dealt.require_ranks()
        require_width(batch, self.memory.embedding_size, "embedding_size")
        if self.memory_loss and batch.ref_emb is not None:
            raise ValueError(
                "ref_emb must not be given with memory_loss: the memory is in its place"
            )
        checks = unit_checks(batch, self.loss) if self.memory_loss else []
        checks.append(
            in_range("labels", batch.labels, self.num_classes, "num_classes of PRISMFilter")
        )
        return checks

    def extra_repr(self) -> str:
        return (
            f"noise_rate={self.noise_rate}, window={self.window}, temperature={self.temperature}, "
            f"score={self.score!r}, memory_loss={self.memory_loss}, warmup={self.warmup}"
        )

    def _similarity(self, embeddings: Tensor) -> Tensor:
        """(N, C), ``-inf`` where the memory has no such class."""
        memory = self.memory
        if self.score == "pairs":  # Eq. 3
            return class_similarity_pairs(
                embeddings, memory.features, memory.labels, self.num_classes, self.temperature
            )
        temperature = self.temperature if self.score == "centers" else 1.0
        return class_similarity(embeddings, memory.centers, memory.counts, temperature)

    def _score(self, rows: Batch, similarity: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) float64 scores, and for whom there is evidence; the others have 1 (Alg. 1)."""
        if self.score in ("centers", "pairs"):
            return softmax_probability(similarity, rows.labels).double(), own != -math.inf  # Eq. 7
        evidence = own  # Eq. 13
        if self.score == "batch_positive":
            evidence = batch_positive(rows.embeddings, rows.labels)  # Eq. 12
        known = evidence != -math.inf
        return torch.where(known, evidence, 1.0).double(), known

    def _noise_rate(
        self, similarity: Tensor, own: Tensor, rows: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R, the share to drop, both 0-dim float64, and the window of low ranks after the batch."""
        if self.noise_rate is not None:
            rate = torch.full_like(self.quantiles.select(0, 0), self.noise_rate)
            return rate, rate, self.low_ranks
        rate, low_ranks = smooth_noise_rate(similarity, own, rows.real, self.low_ranks)
        rate = torch.maximum(rate, self.structured)
        return rate, rate.masked_fill(rate >= _NOTHING_LEARNED, 0), low_ranks

    def _filling(self) -> Tensor:
        """0-dim bool, whether memory and window are still being filled."""
        if self.warmup is None:
            return self.memory.total < len(self.memory)
        return self.step < self.warmup
