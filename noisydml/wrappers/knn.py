"""N2D2: samples whose nearest neighbours speak for another label are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from noisydml.distributed import gather_batch
from noisydml.functional.checks import require_count, require_positive, require_share
from noisydml.functional.neighbors import neighbor_label_score, neighbor_weights
from noisydml.memory.features import FeatureMemory
from noisydml.memory.index import Metric, NeighborIndex
from noisydml.memory.neighbors import Neighborhood
from noisydml.memory.sharded import ShardedNeighborhood
from noisydml.memory.state import Counters
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import (
    WITH_IDS,
    WITHOUT_IDS,
    ValueCheck,
    checked_samples,
    fingerprint,
    remembered_checks,
)
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.filter import Filter

_LEAST_K, _MOST_K = 5, 200  # of k="auto"; 200 is the paper's k
_SHARE = 20  # one in so many of the reference are neighbours, with weighted votes


class KNNDenoiser(Filter):
    r"""Drops the samples whose nearest neighbours speak for another label (N2D2).

    The features of all samples of the last epoch, with their given labels, are the reference. A
    label is judged by its sample's k nearest neighbours there: with :math:`n_j` votes for class
    j, the score is :math:`n_y / \max_j n_j`, and a sample is dropped where it is below
    ``threshold`` (section 3.1). No noise rate is asked for, and no number of classes: labels may
    be any integers that are not negative.

    The loop around it need not change. The features of every sample are collected, also of those
    that are dropped, and when as many have been seen as the memory holds, they become the
    reference. Until there is one, nothing is dropped.

    Args:
        loss: any loss that a wrapper takes.
        memory_size: number of samples in the data set, or at least as many as an epoch has; with
            ``sample_ids`` these lie in ``[0, memory_size)``.
        embedding_size: width of the embeddings, D; None to take it from the first batch. A state
            that is loaded in place, tensor by tensor, needs it.
        k: number of neighbours, or ``"auto"``: with weighted votes a twentieth of the reference,
            with counts the median class size in it, and between 5 and 200 (the paper's k) in
            both cases.
        threshold: scores below it are dropped; in ``[0, 1]``. 0.5 in the paper. With many small
            classes a lower one keeps more right labels at next to no cost; see the figures in the
            documentation.
        vote: ``"weighted"``: neighbours vote with a weight that falls with their distance, see
            :func:`~noisydml.functional.neighbor_weights`; ``"count"``: one vote each, the paper's.
        sharpness: how fast the weights fall, finite and above 0.
        warmup: number of training steps at the start in which nothing is dropped, should there be
            a reference by then.
        index: how neighbours are searched: None or ``"torch"`` (exactly, by blocked matrix products
            on the device), a FAISS factory string such as ``"IVF1024,Flat"``, or a
            :class:`~noisydml.memory.index.NeighborIndex`.
        metric: ``"cosine"`` or ``"euclidean"``.
        shard: whether each rank of ``torch.distributed`` holds a part of the memories: sample i is
            one of rank ``i % R``, of R. Decisions are those of whole memories, with an exact index.
            It has to be initialised before.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory` in which features are collected.
        reference: the one that votes.

    Forward:
        As every wrapper. With ``sample_ids`` (in every batch or in none) features are updated in
        place, and a sample's own entry has no vote about it. Without, nobody knows which entries
        are the sample itself: the nearest three have no vote as long as they have its label.
        ``decision.score`` (B,) in [0, 1] is 1 where nobody can say: there is no reference yet, or
        no other sample of that class in it. ``decision.suggested_labels`` (B,) is the label with
        the most votes, ``decision.support`` (B,) its share, and ``decision.runner_up`` (B,) what
        the second label has of its votes. All are None before there is a reference.

    Raises:
        TypeError: if a size is no integer, a number none, or the loss cannot be called with fewer
            samples.
        ValueError: if a setting is outside the values above, or FAISS does not know the index; in a
            call if embeddings are not as wide as those before, ids outside ``[0, memory_size)`` or
            given in some batches only, or labels negative.

    Under ``torch.distributed`` every rank collects the features of all ranks, or of its part of
    the samples with ``shard``, and judges its own rows.

    References:
        Galanakis et al., Nearest Neighbor-Based Data Denoising for Deep Metric Learning,
        VISAPP 2024.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import KNNDenoiser
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 0.9]])
        >>> labels, ids = torch.tensor([0, 0, 1, 1, 0]), torch.arange(5)
        >>> loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=5, k=2, vote="count")
        >>> loss = loss_fn(embeddings, labels, sample_ids=ids)  # the first epoch
        >>> loss = loss_fn(embeddings, labels, sample_ids=ids)
        >>> loss_fn.decision.keep, loss_fn.decision.suggested_labels[-1]
        (tensor([ True,  True,  True,  True, False]), tensor(1))
    """

    suggests = judges_anything = True

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        memory_size: int,
        embedding_size: int | None = None,
        k: int | Literal["auto"] = "auto",
        threshold: float = 0.5,
        vote: Literal["weighted", "count"] = "weighted",
        sharpness: float = 2.0,
        warmup: int = 0,
        index: str | NeighborIndex | None = None,
        metric: Metric = "cosine",
        shard: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        if not isinstance(k, str) or k != "auto":
            require_count("k", k)
        require_share("threshold", threshold)
        if vote not in ("weighted", "count"):
            raise ValueError(f"vote must be 'weighted' or 'count', got {vote!r}")
        require_positive("sharpness", sharpness)
        require_count("warmup", warmup, least=0)
        settings: Any = {"normalize": metric == "cosine", "shard": shard}
        self.memory = FeatureMemory(memory_size, embedding_size, **settings)
        self.reference = FeatureMemory(memory_size, embedding_size, **settings)
        kind = ShardedNeighborhood if self.memory.ranks > 1 else Neighborhood
        self.neighborhood = kind("torch" if index is None else index, metric)
        self.k = k
        self.threshold = float(threshold)
        self.vote = vote
        self.sharpness = float(sharpness)
        self.warmup = warmup
        # Training steps, samples since the last refresh, whether batches have ids.
        self.counters = Counters(step=0, seen=0, ids=0)
        # The version of the reference that is indexed, and where.
        self._indexed: tuple[int, torch.device] | None = None
        self._judges = False

    def judge(self, batch: Batch) -> Judgement:
        everyone = gather_batch(batch.judged().to(torch.float32))  # collected, not judged
        sizes = self._index_reference(batch)
        if not self._judges:
            return Judgement(Decision.trusting(batch), memo=everyone)
        labels = batch.labels
        distance, neighbor_labels, known = self._voters(batch, everyone, sizes)
        weights = (neighbor_labels >= 0).double()
        if self.vote == "weighted":
            weights = neighbor_weights(distance, self.sharpness)
        vote = neighbor_label_score(neighbor_labels, labels, weights)  # section 3.1
        score = torch.where(known, vote.score, 1.0)
        keep, judged = score >= self.threshold, known
        if self.counters["step"] < self.warmup:
            keep, judged = torch.ones_like(keep), torch.zeros_like(known)
        return self.filtered(
            batch,
            batch,
            keep,
            score,
            threshold=score.new_full((), self.threshold),
            suggested_labels=torch.where(known, vote.majority, labels),
            support=torch.where(known, vote.support, 0.0),
            runner_up=torch.where(known, vote.runner_up, 1.0),
            judged=judged,
            memo=everyone,
        )

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        rows: Batch = judgement.memo.without_synthetic()
        if len(rows) == 0:
            return
        self.memory.remember(rows.embeddings, rows.labels, rows.sample_ids)
        step, seen = self.counters["step"] + 1, self.counters["seen"] + len(rows)
        ids = WITHOUT_IDS if rows.sample_ids is None else WITH_IDS
        self.counters.set(step=step, seen=seen, ids=ids)
        if seen >= len(self.memory):
            self._refer_to_memory()

    def end_epoch(self) -> None:
        """Make what has been collected the reference, now.

        Called by itself after every ``memory_size`` samples. Call it at the end of each epoch if
        epochs are shorter than that. Before any sample has been seen it does nothing.
        """
        self._changes += 1
        if self.memory.embedding_size is not None:
            self._refer_to_memory()

    def _refer_to_memory(self) -> None:
        self.reference.copy_from(self.memory)
        self.counters.set(seen=0)

    def refresh(self, features: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> None:
        """Make these the reference, such as the features of the data set in eval mode.

        They have to be the embeddings that the loss is called with, as batches are compared with
        them.

        They also count as collected, and it takes another ``memory_size`` samples for the next
        refresh by itself.

        Args:
            features: (N, D) floating point, N at most ``memory_size``.
            labels: (N,) integers, the given labels.
            sample_ids: (N,) integers, which samples they are; None for 0, 1, ..., N - 1.

        With ``shard`` all ranks call it, each with all samples or with those of its own part at
        least, which are the ids ``rank, rank + R, ...``; the others are passed over.

        Raises:
            TypeError: if features are not floating point, or labels or ids no integers.
            ValueError: if shapes do not fit, a feature is not finite, a label negative, or an id
                out of range, or most ids given several times. What was there before stays.
        """
        what, width = "memory_size of KNNDenoiser", self.memory.embedding_size
        given = checked_samples(features, labels, sample_ids, self.reference, what, width=width)
        refreshed = self.memory.holding(*given)
        self._index(refreshed)  # which may raise
        self._refreshed = fingerprint(self.memory, *given[1:])
        self._changes += 1
        for memory in (self.memory, self.reference):
            memory.copy_from(refreshed)
        self._indexed = self._of_reference()
        self.counters.set(seen=0)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        self.memory.dealt.require_ranks()
        mode = self.counters["ids"]
        return remembered_checks(batch, self.memory, mode, "KNNDenoiser", "memory_size")

    def status(self) -> str:
        if int(self.reference.total) > 0:
            return ""
        size = len(self.memory)
        missing = max(size - self.counters["seen"], 0)
        return f"training on all labels, waiting for {missing:,} of {size:,} samples"

    def extra_repr(self) -> str:
        settings = (
            f"k={self.k!r}, threshold={self.threshold}, vote={self.vote!r}, warmup={self.warmup}"
        )
        return ", ".join(filter(None, [settings, self.status()]))

    def __getstate__(self) -> dict[str, Any]:
        """Without the index, which is built again from the reference."""
        return {**self.__dict__, "_indexed": None}

    def _index_reference(self, batch: Batch) -> list[int]:
        """Index the reference if it has changed, which asks the host once an epoch.

        Returns how many rows each rank judges.
        """
        reference, sizes = self.reference, [len(batch)]
        stale = self._indexed != self._of_reference()
        if reference.ranks > 1:
            reports = reference.dealt.exchange([len(batch), int(stale)])
            sizes, stale = [size for size, _ in reports], any(flag for _, flag in reports)
        if stale:
            self._index(reference)
            self._indexed = self._of_reference()
        return sizes

    def _of_reference(self) -> tuple[int, torch.device]:
        return self.reference.version, self.reference.features.device

    def _index(self, samples: FeatureMemory) -> None:
        self._indexed = None  # until it is known which
        self._judges = int(samples.total) > 0
        if self._judges:
            self.neighborhood.build(samples.features, samples.labels)

    def _voters(
        self, batch: Batch, everyone: Batch, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, k) distances and labels of the neighbours, and (B,) who has any of its class."""
        hood, k = self.neighborhood, self._k()
        if isinstance(hood, ShardedNeighborhood):
            asked = everyone.embeddings, everyone.labels, k, everyone.sample_ids
            return hood.voters(*asked, sizes)
        queries, labels, ids = batch.embeddings.detach(), batch.labels, batch.sample_ids
        distance, position, known = hood.neighbors(queries, labels, k, ids)
        return distance, hood.labels_at(position), known

    def _k(self) -> int:
        if self.k != "auto":
            return self.k
        hood = self.neighborhood
        k = hood.size // _SHARE if self.vote == "weighted" else hood.class_size
        return min(max(k, _LEAST_K), _MOST_K)
