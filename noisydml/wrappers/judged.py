"""The judge in a training loop: after every pass over the data it says whom to leave out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from noisydml import distributed, pml
from noisydml.distributed import gather_batch, together
from noisydml.functional.checks import require_choice, require_count, require_number
from noisydml.functional.judge import mean_log_odds, strict_threshold
from noisydml.functional.neighbors import nearest_of_label
from noisydml.memory.centers import unit_features
from noisydml.memory.features import FeatureMemory
from noisydml.memory.index import NeighborIndex
from noisydml.memory.judge import LabelJudgement, judge_labels
from noisydml.memory.latent import TRUSTED
from noisydml.memory.neighbors import Neighborhood
from noisydml.memory.state import Counters, overwrite, require_state_in_range
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import (
    WITH_IDS,
    WITHOUT_IDS,
    ValueCheck,
    checked_samples,
    fingerprint,
    in_range,
    raise_first,
    remembered_checks,
)
from noisydml.wrappers.decision import Decision, Judgement
from noisydml.wrappers.filter import Filter

Start = Literal["judge", "train"]

_COLLECTING, _TRAINING, _JUDGING = 0, 1, 2
_LOOK = 0.2  # of the data set, after which it is asked whether the features tell the classes
# Certainty of a class, on average, and share of the right labels that is kept, by the judge's own
# account, from which on they do. docs/robust.md has the table.
_TELLING, _KEPT = 0.12, 0.75
_UNKNOWN = -1.0  # of a probability or rate
# Whether a sample without an id can be looked up among the features that ``refresh`` was given is
# asked of so many steps, if they have _MANY; never of features of another width.
_STEPS, _OF_ANOTHER_WIDTH = 3, -1
_MANY = 32  # samples one after another that were seen already begin a pass again, not fewer
_FEW = 1000  # samples, of which a fifth held out says too little
# Share of the right labels that is to be kept, by the judge's own account: for it a threshold is
# less strict (docs/robust.md), and after training on all labels nobody is dropped where less would
# be kept and a class is less certain than this (docs/results.md, CIFAR-100: 0.7 to 0.84, 0.25).
_WORTH, _TOLD = 0.85, 0.5


class JudgeFilter(Filter):
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
    judgements count, as the mean of their log-odds, since features agree in time with the wrong
    labels that they were trained on. Where all labels were trained on and the features tell the
    classes of few samples, nobody is dropped if more than 15 % of the right labels would go, by
    the judge's own account.

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
        index: how they are searched; see :class:`KNNDenoiser`.
        shard: whether each rank of ``torch.distributed`` holds a part of the features: sample i is
            one of rank ``i % R``, of R, and all judge together. It has to be initialised before,
            and every batch needs ``sample_ids``.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Attributes:
        memory: the :class:`~noisydml.memory.FeatureMemory` in which features are collected.
        reference: those of the last pass, which were judged.
        probability: (N,) float64, of each entry of ``reference``; -1 where it was not judged.
        noise_rate: 0-dim float64, the estimated share of wrong labels; -1 where nothing can be
            said, for which the decision has NaN.
        current_threshold: 0-dim float64, the probability below which a sample is left out now.

    Forward:
        As every wrapper. With ``sample_ids`` (in every batch or in none) a sample is looked up by
        its id; without, by the feature of its label in ``reference`` that is nearest to it.
        ``decision.score`` (B,) is the probability, 1 for a sample that has not been judged.
        ``decision.suggested_labels`` (B,) is the class that it most likely is of, -1 for none of
        them, and ``decision.support`` (B,) the probability of that.

    Raises:
        TypeError: if a size is no integer, ``threshold`` no number, or the loss cannot be called
            with fewer samples.
        ValueError: if a setting is outside the values above; in a call if embeddings are not as
            wide as those before, ids outside ``[0, N)``, given in some batches only, or missing
            with ``shard``, or labels negative or, with ``num_classes``, C and above.

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
    probability: Tensor
    first_probability: Tensor
    judged_labels: Tensor
    suggested: Tensor
    support: Tensor
    noise_rate: Tensor
    current_threshold: Tensor

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        dataset_size: int,
        embedding_size: int | None = None,
        num_classes: int | None = None,
        start: Start = "judge",
        threshold: float = 0.8,  # docs/robust.md has the table
        k: int = 50,
        index: str | NeighborIndex | None = None,
        shard: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        require_choice("start", start, get_args(Start))
        require_number("threshold", threshold)
        if not TRUSTED <= threshold < 1:
            raise ValueError(f"threshold must be in [{TRUSTED}, 1), got {threshold}")
        require_count("k", k)
        if num_classes is not None:
            require_count("num_classes", num_classes)
        Neighborhood(index, "cosine")  # refuses what is none, and not a pass later
        *_, innermost = self._chain()
        settings: Any = {"normalize": pml.compares_directions(innermost.loss), "shard": shard}
        self.memory = FeatureMemory(dataset_size, embedding_size, **settings)
        self.reference = FeatureMemory(dataset_size, embedding_size, **settings)
        self.num_classes = num_classes
        self.start = start
        self.threshold = float(threshold)
        self.k = k
        self.index = index
        unknown = torch.full((dataset_size,), _UNKNOWN, dtype=torch.float64)
        self.register_buffer("probability", unknown)
        self.register_buffer("first_probability", unknown.clone())
        self.register_buffer("judged_labels", torch.full((dataset_size,), -1))
        self.register_buffer("suggested", torch.full((dataset_size,), -1))
        self.register_buffer("support", torch.zeros(dataset_size, dtype=torch.float64))
        self.register_buffer("noise_rate", torch.full((), _UNKNOWN, dtype=torch.float64))
        least = torch.full((), TRUSTED, dtype=torch.float64)
        self.register_buffer("current_threshold", least)
        self._latest: Tensor | None = None  # ids of the step before
        self.counters = Counters(**self._beginning)

    @property
    def _beginning(self) -> dict[str, int]:
        phase = _COLLECTING if self.start == "judge" else _TRAINING
        names = ("seen", "ids", "looked", "told", "unsure", "trained", "again")
        return {**dict.fromkeys(names, 0), "phase": phase}

    def judge(self, batch: Batch) -> Judgement:
        self.catch_up()
        everyone = gather_batch(batch.judged().to(torch.float32))  # collected, not judged
        rows = everyone.without_synthetic()
        memo = rows, *self._seen_before(rows)
        if self.counters["phase"] == _COLLECTING:
            nobody = torch.zeros_like(batch.labels, dtype=torch.bool)
            decision = Decision(keep=nobody, weight=nobody.float(), judged=nobody)
            return Judgement(decision, memo=memo)
        if self.counters["phase"] == _TRAINING:
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
        run = self.counters["again"] + len(rows) if seen_before and not repeated else 0
        again = run >= min(_MANY, len(self.memory))
        if again:
            self._end_pass()
        if self.counters["again"] != (run := 0 if again else run):
            self.counters.set(again=run)
        self.memory.remember(rows.embeddings, rows.labels, rows.sample_ids)
        self._latest = rows.sample_ids
        if self.counters["phase"] != _COLLECTING and self.counters["trained"] == 0:
            self.counters.set(trained=1)
        if repeated:
            return
        before = self.counters["seen"]
        ids = WITHOUT_IDS if rows.sample_ids is None else WITH_IDS
        self.counters.set(seen=before + len(rows), ids=ids)
        if self.counters["unsure"] > 0 and len(rows) >= _MANY:
            self.counters.set(unsure=self.counters["unsure"] - 1)
        if len(rows) + (0 if again else before) >= len(self.memory):
            self._end_pass()
        if self.memory.ranks == 1:
            self.catch_up()

    def end_epoch(self) -> None:
        """Judge what has been collected, now.

        Called by itself after every ``dataset_size`` samples. Call it at the end of each epoch if
        epochs are shorter than that. Before any sample has been seen it does nothing. With
        ``shard`` no rank waits for the others here: they judge in the next step.
        """
        self._changes += 1
        self._end_pass()
        if self.memory.ranks == 1:
            self.catch_up()

    def _end_pass(self) -> None:
        """What has been collected is to be judged, of which as many samples seen tell."""
        if self.memory.embedding_size is None or self.counters["seen"] == 0:
            return
        self.reference.copy_from(self.memory)
        self.counters.set(seen=len(self.memory), unsure=0)

    def catch_up(self) -> None:
        """Judge a pass that is over, or look at one that begins; ranks with parts do so together.

        They meet here, where a batch is judged: one whose loss fails never comes to ``commit``.
        """
        seen, size = self.counters["seen"], len(self.memory)
        if seen >= size:
            self._judge_reference(first=self.counters["phase"] == _COLLECTING)
            self.counters.set(seen=seen - size)
        elif self.counters["phase"] == _COLLECTING and self.counters["looked"] == 0:
            self._look(seen)

    def refresh(self, features: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> None:
        """Judge these: features of the data set by the network, in eval mode, or by any other.

        Before the first step they are what is remembered of the untrained network.

        Args:
            features: (N, D) floating point, of any width, N at most ``dataset_size``.
            labels: (N,) integers, the given labels.
            sample_ids: (N,) integers, which samples they are; None for 0, 1, ..., N - 1.

        With ``shard`` all ranks call it, each with all samples or with those of its own part at
        least, which are the ids ``rank, rank + R, ...``; the others are passed over.

        Raises:
            TypeError: if features are not floating point, or labels or ids no integers.
            ValueError: if shapes do not fit, a feature is not finite, a label negative, or an id
                out of range. What was there before stays.
        """
        given = None
        with together() if self.memory.ranks > 1 else nullcontext():
            given = checked_samples(
                features, labels, sample_ids, self.reference, "dataset_size of JudgeFilter"
            )
            if self.num_classes is not None:
                what = "num_classes of JudgeFilter"
                raise_first([in_range("labels", given[1], self.num_classes, what)])
        assert given is not None
        untrained = self.counters["trained"] == 0
        if distributed.world_size() > 1 and self.memory.ranks == 1:
            self._refreshed = fingerprint(*given[1:])
        pass_features = self.memory.holding(*given, dtype=torch.float32)
        self._judge_reference(first=untrained, features=pass_features)  # the index may raise
        self._changes += 1
        same_width = self.reference.embedding_size in (None, features.shape[1])
        self.counters.set(seen=0, unsure=_STEPS if same_width else _OF_ANOTHER_WIDTH)
        if same_width:
            self.reference.copy_from(pass_features)
        else:  # of another layer: they are judged, but no embedding is compared with them
            self.reference.reset()

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        self._changes += 1
        for memory in (self.memory, self.reference):
            memory.reset()
        for buffer in (self.probability, self.first_probability, self.noise_rate):
            buffer.fill_(_UNKNOWN)
        self.current_threshold.fill_(TRUSTED)
        self.judged_labels.fill_(-1)
        self.suggested.fill_(-1)
        self.support.zero_()
        self._latest = None
        self.counters.set(**self._beginning)
        self.decision = None

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that this wrapper cannot have had."""
        super().refuse_values(state, prefix)
        stop = math.inf if self.num_classes is None else self.num_classes
        labels = ("memory.labels", "reference.labels", "judged_labels", "suggested")
        limits = {
            **dict.fromkeys(labels, (-1, stop)),
            "counters.phase": (_COLLECTING, _JUDGING + 1),
            **dict.fromkeys(("counters.told", "counters.trained"), (0, 2)),
            "counters.unsure": (_OF_ANOTHER_WIDTH, _STEPS + 1),
            "current_threshold": (TRUSTED, 1),
        }
        for name, (least, end) in limits.items():
            require_state_in_range(f"{prefix}{name}", state.get(f"{prefix}{name}"), least, end)

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        self.memory.dealt.require_ranks()
        if self.memory.ranks > 1 and batch.sample_ids is None:
            raise ValueError("sample_ids must be given with shard=True")
        mode = self.counters["ids"]
        checks = remembered_checks(batch, self.memory, mode, "JudgeFilter", "dataset_size")
        if self.num_classes is not None:
            what = "num_classes of JudgeFilter"
            checks.append(in_range("labels", batch.labels, self.num_classes, what))
        if batch.sample_ids is None and self.counters["unsure"] != 0:
            checks.append(self._can_be_found(batch))
        return checks

    def _can_be_found(self, batch: Batch) -> ValueCheck:
        """Whether embeddings are near to what ``refresh`` was given, by which they are looked up.

        Then they are nearer to features of their own label than to those of another one, more
        often than chance has it by a standard error. Raises ValueError if the widths differ.
        """
        wanted, got = self.reference.features.shape[1], batch.embeddings.shape[1]
        if self.counters["unsure"] == _OF_ANOTHER_WIDTH or got != wanted:
            raise ValueError(
                f"sample_ids must be given, as embeddings are {got} wide and refresh was given "
                "features of another width, among which they cannot be looked up"
            )
        labels = batch.labels
        others = labels.roll(len(labels) // 2)
        own, other = (self._nearness(batch, each) for each in (labels, others))
        compared = (labels != others) & own.isfinite() & other.isfinite()
        number, nearer = compared.sum(), (compared & (own > other)).sum()
        bad = (number >= _MANY) & (2 * nearer < number + number.sqrt())
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
        near = self.reference.features.index_select(0, entry.clamp_min(0))
        distance = torch.linalg.vector_norm(rows - near, dim=1)
        return torch.where(entry < 0, math.inf, distance).neg()

    def status(self) -> str:
        if self.counters["phase"] == _JUDGING:
            return ""
        size = len(self.memory)
        doing = "collecting" if self.counters["phase"] == _COLLECTING else "training on all labels"
        missing = max(size - self.counters["seen"], 0)
        return f"{doing}, waiting for {missing:,} of {size:,} samples"

    def extra_repr(self) -> str:
        size, start, threshold = len(self.memory), self.start, self.threshold
        settings = f"dataset_size={size}, {start=!r}, {threshold=}, k={self.k}"
        return ", ".join(filter(None, [settings, self.status()]))

    def _unjudged(self, batch: Batch, entry: Tensor) -> Tensor:
        """(B,) score of those who have not been judged: 0 for who waits for it, 1 for the others.

        Samplers leave samples out of a pass. Where the untrained features told the labels, nobody
        is trained on before a pass has judged it, neither after the first one.
        """
        trusted = torch.ones_like(batch.labels, dtype=torch.float64)
        if batch.sample_ids is None or self.counters["told"] == 0:
            return trusted
        return trusted.masked_fill((entry < 0) & (batch.sample_ids >= 0), 0)

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
        return nearest_of_label(
            rows, labels, reference.features, reference.labels, reference.metric
        )

    def _look(self, seen: int) -> None:
        """Train on all labels, for now, if the features do not tell the classes."""
        if seen < _LOOK * len(self.memory):
            return
        found = self._ask(self.memory, self.memory.filled)
        tells = found.certainty >= _TELLING and found.kept_share >= _KEPT
        self.counters.set(looked=1, phase=_COLLECTING if tells else _TRAINING)

    def _seen_before(self, rows: Batch) -> tuple[bool, bool]:
        """Whether, before anything was judged, all of a batch was seen; and in the step before.

        A pass begins again with samples that were seen, but some optimisers, and networks of
        several heads, call the loss of a batch several times.
        """
        ids = rows.sample_ids
        if ids is None or self.counters["phase"] == _JUDGING:
            return False, False
        seen = bool((self.memory.labels_of(ids) >= 0).all())
        latest = self._latest
        repeated = seen and latest is not None and torch.equal(latest.to(ids.device), ids)
        return seen, repeated

    def _ask(self, memory: FeatureMemory, held: slice | Tensor, **settings: Any) -> LabelJudgement:
        """What the judge says of some of the entries of this rank."""
        return judge_labels(
            memory.features[held].float(),
            memory.labels[held],
            k=self.k,
            index=self.index,
            metric=memory.metric,
            core_refutes=False,  # to lose a hard sample costs less than to train on a wrong label
            shard=memory.ranks > 1,
            **settings,
        )

    def _judge_reference(self, first: bool, features: FeatureMemory | None = None) -> None:
        """Judge a pass; ``first`` if its features were trained on no label."""
        memory = self.reference if features is None else features
        dealt = memory.dealt
        numbers = dealt.numbers(memory.labels.device)
        own = slice(len(numbers))
        labels = dealt.of_all_parts(memory.labels[own])
        on_all = not first and self.counters["told"] == 0  # its features were trained on all labels
        folds = None if first or len(labels) < _FEW else 1
        found = self._ask(memory, own, folds=folds, trained=on_all, numbers=numbers)
        judged = dealt.of_all_parts(found.known & found.probability.isfinite())
        rate = found.noise_rate
        if on_all and found.certainty < _TOLD and found.kept_share < _WORTH:
            judged, rate = torch.zeros_like(judged), math.nan
        probability = torch.where(judged, dealt.of_all_parts(found.probability), _UNKNOWN)
        suggested = dealt.of_all_parts(found.suggested_labels)
        support = dealt.of_all_parts(found.support)
        if first:
            overwrite(self.first_probability, probability)
            self.counters.set(told=int((probability >= 0).any()))
        else:
            probability = self._with_earlier(probability, labels)
        overwrite(self.probability, probability)
        most = self.threshold if self.counters["told"] else TRUSTED
        threshold = strict_threshold(probability[probability >= 0], _WORTH, TRUSTED, most)
        overwrite(self.current_threshold, threshold)
        overwrite(self.suggested, torch.where(judged, suggested, self.suggested))
        overwrite(self.support, torch.where(judged, support, self.support))
        overwrite(self.judged_labels, torch.where(labels >= 0, labels, self.judged_labels))
        self.noise_rate.fill_(rate if math.isfinite(rate) else _UNKNOWN)
        self.counters.set(phase=_JUDGING)

    def _with_earlier(self, probability: Tensor, labels: Tensor) -> Tensor:
        """(N,) probabilities with what the untrained features said of the same labels.

        Without ids nobody knows which samples they said it of.
        """
        if self.counters["ids"] == WITHOUT_IDS:
            return probability
        changed = (labels >= 0) & (labels != self.judged_labels)
        overwrite(self.first_probability, self.first_probability.masked_fill(changed, _UNKNOWN))
        earlier = torch.where(labels < 0, _UNKNOWN, self.first_probability)
        both = mean_log_odds(probability, earlier)
        either = torch.maximum(probability, earlier)  # what only one says is taken as it is
        probability = torch.where((probability >= 0) & (earlier >= 0), both, either)
        # A sampler may leave samples out of a pass: what was said of them stands.
        return torch.where(labels < 0, self.probability, probability)
