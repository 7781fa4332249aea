"""The judge in a training loop: after every pass over the data it says whom to leave out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml.distributed import gather_batch
from noisydml.functional.neighbors import nearest_of_label
from noisydml.memory.centers import unit_features
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import (
    WITH_IDS,
    WITHOUT_IDS,
    ValueCheck,
    in_range,
    remembered_checks,
)
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.passes import COLLECTING, JUDGING, OF_ANOTHER_WIDTH, TRAINING, JudgedPasses

_MANY = 32  # samples one after another that were seen already begin a pass again, not fewer
_SOME, _PART = 16, 4  # of so many samples one in so many has the label that was judged, or more
_ENOUGH = 48  # embeddings tell whether they can be looked up


class JudgeFilter(JudgedPasses):
    r"""Drops the samples whose labels are most likely wrong, whatever the kind and share of noise.

    The features of a pass over the data set are collected, and when it is over the judge
    (:func:`noisydml.memory.judge.judge_labels`) says of every sample how likely its label is
    right, and how many are wrong. In the next pass those of a probability below one half are left
    out. No noise rate is asked for; where the features do not tell the labels, nobody is dropped.
    Where the untrained features told them, a label has to be more certain, since a wrong one does
    more harm than a right one does good: ``threshold``, or as much as leaves 85 % of the right
    labels, by the judge's own account.

    A network should not be trained on labels that nobody has judged: an epoch on wrong ones costs
    more than later filtering brings back. Call :meth:`refresh` with its features before the first
    step, even if it is from scratch, as random layers tell some classes, too; or with
    ``start="judge"`` the first pass only collects them, and the loss is a zero with a graph. If a
    fifth of that pass shows that the features do not tell the classes, it trains on all labels
    until the pass is over. What the untrained features said is remembered: from then on both
    judgements of a sample with an id count, as the mean of their log-odds, since features agree in
    time with the wrong labels that they were trained on. Where all labels were trained on and the
    features tell the classes of few samples, nobody is dropped if more than 15 % of the right
    labels would go, by the judge's own account.

    Args:
        loss: any loss that a wrapper takes.
        dataset_size: number of samples in the data set, N; with ``sample_ids`` these lie in
            ``[0, N)``.
        embedding_size: width of the embeddings, D; None to take it from the first batch. A state
            that is loaded in place, tensor by tensor, needs it.
        num_classes: number of classes, C, if labels beyond it are to be refused.
        start: ``"judge"``, or ``"train"`` to train on all labels in the first pass.
        threshold: probability that a label is right, below which its sample is left out, in
            ``[0.5, 1)``, as far as that goes: see above.
        k: number of neighbours that the judge asks.
        index: how they are searched: ``"torch"``, a FAISS factory string, an index, or None: exact,
            by FAISS on the CPU, and from 131,073 samples there on an inverted file.
        shard: whether each rank of ``torch.distributed`` holds a part of the features: sample i is
            one of rank ``i % R``, of R, and all judge together. It has to be initialised before,
            and every batch needs ``sample_ids``.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory` in which features are collected.
        reference: those of the last pass, which were judged.
        probability: (N,) float64, of each entry of ``reference``; -1 where it was not judged.
        noise_rate: 0-dim float64, the estimated share of wrong labels, by both judgements where
            both count; -1 where nothing can be said, for which the decision has NaN.
        current_threshold: 0-dim float64, the probability below which a sample is left out now.

    Forward:
        As every wrapper. With ``sample_ids`` (in every batch or in none) a sample is looked up by
        its id; without, by the feature of its label in ``reference`` that is nearest to it.
        ``decision.score`` (B,) is the probability; for a sample that was not judged it is 1, or 0
        and the sample left out, if by its id it has yet to be collected by a judged start.
        ``decision.suggested_labels`` (B,) is the class that it most likely is of, -1 for none of
        them, and ``decision.support`` (B,) the probability of that.

    Raises:
        TypeError: if a size is no integer, ``threshold`` no number, or the loss cannot be called
            with fewer samples.
        ValueError: if a setting is outside the values above; in a call if embeddings are not as
            wide as those before, ids outside ``[0, N)``, given in some batches only, or missing
            with ``shard`` or after a ``refresh`` with features of another layer, or labels
            negative or, with ``num_classes``, C and above.

    Under ``torch.distributed`` every rank collects the features of all ranks and judges them all.
    With ``shard`` each has a part, and a pass that is over is judged at the start of the next step.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import JudgeFilter
        >>> labels = torch.arange(4).repeat(25)
        >>> embeddings = 3 * torch.eye(4)[labels] + torch.rand(100, 4)
        >>> labels[8] = 1
        >>> loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=100)
        >>> loss_fn.refresh(embeddings, labels)  # of a pretrained network, in eval mode
        >>> loss = loss_fn(embeddings[:12], labels[:12], sample_ids=torch.arange(12))
        >>> loss_fn.decision.keep.logical_not().nonzero().tolist()
        [[8]]
    """

    judges_anything = True

    def judge(self, batch: Batch) -> Judgement:
        self.catch_up()
        everyone = gather_batch(batch.judged().to(torch.float32))  # collected, not judged
        rows = everyone.without_synthetic()
        memo = rows, *self._seen_before(rows)
        if self.counters["phase"] == COLLECTING:
            nobody = torch.zeros_like(batch.labels, dtype=torch.bool)
            decision = Decision(keep=nobody, weight=nobody.float(), judged=nobody)
            return Judgement(decision, memo=memo)
        if self.counters["phase"] == TRAINING:
            return Judgement(Decision.trusting(batch), memo=memo)
        entry = self._entries(batch)
        place = entry.clamp_min(0)
        probability = self.probability.take(place)
        known = (entry >= 0) & (probability >= 0)
        score = torch.where(known, probability, self._unjudged(batch, entry))
        return self.filtered(
            batch,
            batch,
            score >= self.current_threshold,
            score,
            judged=known,
            threshold=self.current_threshold.clone(),
            probability=torch.where(known, probability, math.nan),
            noise_rate=torch.where(self.noise_rate < 0, math.nan, self.noise_rate),
            suggested_labels=torch.where(known, self.suggested.take(place), batch.labels),
            support=torch.where(known, self.support.take(place), 0.0),
            memo=memo,
        )

    def commit(self, batch: Batch, judgement: Judgement) -> None:
        rows, seen_before, repeated = judgement.memo
        if len(rows) == 0:
            return
        run = self.counters["again"]
        if not repeated:
            run = run + len(rows) if seen_before else 0
        again = not repeated and run >= min(_MANY, len(self.memory))
        if again:
            self._end_pass()
        if self.counters["again"] != (run := 0 if again else run):
            self.counters.set(again=run)
        self.memory.remember(rows.embeddings, rows.labels, rows.sample_ids)
        self._latest = rows.sample_ids
        if self.counters["phase"] != COLLECTING and self.counters["trained"] == 0:
            self.counters.set(trained=1)
        if repeated:
            return
        before = self.counters["seen"]
        ids = WITHOUT_IDS if rows.sample_ids is None else WITH_IDS
        self.counters.set(seen=before + len(rows), ids=ids)
        if self.counters["unsure"] > 0 and rows.sample_ids is None:
            self.counters.set(unsure=max(self.counters["unsure"] - len(rows), 0))
            self._nearer = self._compared
        if len(rows) + (0 if again else before) >= len(self.memory):
            self._end_pass()
        if self.memory.ranks == 1:
            self.catch_up()

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        self.memory.dealt.require_ranks()
        if self.memory.ranks > 1 and batch.sample_ids is None:
            raise ValueError("sample_ids must be given with shard=True")
        mode = self.counters["ids"]
        checks = remembered_checks(batch, self.memory, mode, "JudgeFilter", "dataset_size")
        if self.num_classes is not None:
            what = "num_classes of JudgeFilter"
            checks.append(in_range("labels", batch.labels, self.num_classes, what))
        if batch.sample_ids is None:
            if len(batch) > len(self.memory):
                raise ValueError(
                    f"dataset_size must be the number of samples, got {len(self.memory)} and a "
                    f"batch of {len(batch)}"
                )
            if self.counters["unsure"] != 0:
                checks.append(self._can_be_found(batch))
        elif self.counters["phase"] == JUDGING and self.counters["trained"] == 0:
            checks.append(self._of_these_labels(batch, batch.sample_ids))
        return checks

    def _of_these_labels(self, batch: Batch, ids: Tensor) -> ValueCheck:
        """Whether the samples have the labels that ``refresh`` was given, but for a few.

        A batch of one class or sample, which somebody has picked, tells nothing of the order.
        """
        given = self.judged_labels.to(batch.device).take(ids.clamp(0, len(self.judged_labels) - 1))
        compared, same = (given >= 0).sum(), (given == batch.labels).sum()
        labels = batch.labels.to(torch.int64).sort().values
        equal = torch.searchsorted(labels, given, right=True) - torch.searchsorted(labels, given)
        chance = equal.sum() / max(len(batch), 1)  # so many are the same in any order
        several = (batch.labels != batch.labels[:1]).any() & (ids != ids[:1]).any()
        return ValueCheck(
            several
            & (compared - chance >= _SOME / 2)
            & (_PART * (same - chance) < compared - chance),
            "labels must be those that refresh was given, or the first pass, and those of this "
            "batch are not: features in another order than the data set need sample_ids",
        )

    def _can_be_found(self, batch: Batch) -> ValueCheck:
        """Whether embeddings are near to what ``refresh`` was given, by which they are looked up.

        Then they are nearer to features of their own label than to those of another one, more
        often than chance has it by a standard error. Raises ValueError if the widths differ.
        """
        wanted, got = self.reference.features.shape[1], batch.embeddings.shape[1]
        if self.counters["unsure"] == OF_ANOTHER_WIDTH or got != wanted:
            raise ValueError(
                f"sample_ids must be given, as embeddings are {got} wide and refresh was given "
                "features of another width, among which they cannot be looked up"
            )
        labels = batch.labels
        others = labels.roll(len(labels) // 2)
        own, other = (self._nearness(batch, each) for each in (labels, others))
        compared = (labels != others) & own.isfinite() & other.isfinite()
        these = torch.stack([compared.sum(), (compared & (own > other)).sum()])
        self._compared = these + self._nearer.to(these.device)
        number, nearer = self._compared
        bad = (number >= _ENOUGH) & (2 * nearer < number + number.sqrt())
        return ValueCheck(
            bad,
            "sample_ids must be given, as embeddings are no nearer to the features of their label "
            "that refresh was given than to others: those are of another layer, or the samples "
            "were augmented too much to be looked up",
        )

    def _nearness(self, batch: Batch, labels: Tensor) -> Tensor:
        """(B,) how near the nearest feature with a label is; minus infinity where there is none."""
        entry, rows = self._nearest(batch, labels), batch.embeddings.detach().float()
        rows = unit_features(rows) if self.reference.normalize else rows
        near = self.reference.features.to(batch.device).index_select(0, entry.clamp_min(0))
        distance = torch.linalg.vector_norm(rows - near, dim=1)
        return torch.where(entry < 0, math.inf, distance).neg()

    def _entries(self, batch: Batch) -> Tensor:
        """(B,) where in the reference each sample is; -1 for one that is not there."""
        if batch.sample_ids is not None:
            entry = batch.sample_ids.clamp_min(0)
            same = self.judged_labels.take(entry) == batch.labels
            return torch.where(same & (batch.sample_ids >= 0), entry, -1)
        return self._nearest(batch, batch.labels)

    def _nearest(self, batch: Batch, labels: Tensor) -> Tensor:
        """(B,) the entry of a label that is nearest to each embedding; -1 where there is none."""
        rows, reference = batch.embeddings.detach().float(), self.reference
        features, given = (each.to(batch.device) for each in (reference.features, reference.labels))
        return nearest_of_label(rows, labels, features, given, reference.metric)

    def _unjudged(self, batch: Batch, entry: Tensor) -> Tensor:
        """(B,) score of those who have not been judged: 0 for who waits for it, 1 for the others.

        Samplers leave samples out of a pass. Where the untrained features told the labels, nobody
        is trained on before a pass has judged it, neither after the first one.
        """
        trusted = torch.ones_like(batch.labels, dtype=torch.float64)
        if batch.sample_ids is None or self.counters["told"] == 0:
            return trusted
        return trusted.masked_fill((entry < 0) & (batch.sample_ids >= 0), 0)

    def _seen_before(self, rows: Batch) -> tuple[bool, bool]:
        """Whether, before anything was judged, all of a batch was seen; and in the step before.

        A pass begins again with samples that were seen, but some optimisers, and networks of
        several heads, call the loss of a batch several times.
        """
        ids = rows.sample_ids
        if ids is None or self.counters["phase"] == JUDGING:
            return False, False
        seen = (self.memory.labels_of(ids) >= 0).all()
        repeated = torch.zeros_like(seen)
        if self._latest is not None and self._latest.shape == ids.shape:
            repeated = seen & (self._latest.to(ids.device) == ids).all()
        before, just_now = torch.stack([seen, repeated]).tolist()  # the host waits once
        return before, just_now

    def status(self) -> str:
        if self.counters["phase"] == JUDGING:
            return ""
        size = len(self.memory)
        doing = "collecting" if self.counters["phase"] == COLLECTING else "training on all labels"
        missing = max(size - self.counters["seen"], 0)
        return f"{doing}, waiting for {missing:,} of {size:,} samples"

    def extra_repr(self) -> str:
        size, start, threshold = len(self.memory), self.start, self.threshold
        settings = f"dataset_size={size}, {start=!r}, {threshold=}, k={self.k}"
        return ", ".join(filter(None, [settings, self.status()]))
