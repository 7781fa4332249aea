"""What the judge says of all samples when a pass is over, and what is remembered of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from noisydml import pml
from noisydml.functional.checks import require_choice, require_count, require_number
from noisydml.functional.judge import mean_log_odds, strict_threshold
from noisydml.memory.features import FeatureMemory
from noisydml.memory.index import NeighborIndex
from noisydml.memory.judge import LabelJudgement, judge_labels
from noisydml.memory.latent import TRUSTED
from noisydml.memory.neighbors import Neighborhood
from noisydml.memory.state import Counters, overwrite, require_state_in_range
from noisydml.wrappers.checks import (
    WITHOUT_IDS,
    checked_samples,
    fingerprint,
)
from noisydml.wrappers.filter import Filter

Start = Literal["judge", "train"]

COLLECTING, TRAINING, JUDGING = 0, 1, 2  # what is done in a pass
_LOOK = 0.2  # of the data set, after which it is asked whether the features tell the classes
# Certainty of a class, on average, and share of the right labels that is kept, by the judge's own
# account, from which on they do. docs/robust.md has the table.
_TELLING, _KEPT = 0.12, 0.75
_UNKNOWN = -1.0  # of a probability or rate
_BEGINNING = {  # the buffers before the first step
    "probability": _UNKNOWN,
    "first_probability": _UNKNOWN,
    "judged_labels": -1,
    "suggested": -1,
    "support": 0.0,
    "noise_rate": _UNKNOWN,
    "current_threshold": TRUSTED,
}
# Whether a sample without an id can be looked up among the features that ``refresh`` was given is
# asked while so many embeddings are seen; never of features of another width.
ASKED, OF_ANOTHER_WIDTH = 256, -1
_FEW = 1000  # samples, of which a fifth held out says too little
# Share of the right labels that is to be kept, by the judge's own account: for it a threshold is
# less strict (docs/robust.md), and after training on all labels nobody is dropped where less would
# be kept and a class is less certain than this (docs/results.md, CIFAR-100: 0.7 to 0.84, 0.25).
_WORTH, _TOLD = 0.85, 0.5


class JudgedPasses(Filter):
    """A filter that collects the features of a pass, and has them judged when it is over.

    Arguments and attributes are those of :class:`~noisydml.JudgeFilter`, which decides by them.
    """

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
        require_count("dataset_size", dataset_size)
        require_choice("start", start, get_args(Start))
        require_number("threshold", threshold)
        if not TRUSTED <= threshold < 1:
            raise ValueError(f"threshold must be in [{TRUSTED}, 1), got {threshold}")
        require_count("k", k)
        if num_classes is not None:
            require_count("num_classes", num_classes)
        Neighborhood(index, "cosine")  # refuses what is none, and not a pass later
        settings: Any = {"normalize": pml.compares_directions(self._innermost), "shard": shard}
        self.memory = FeatureMemory(dataset_size, embedding_size, **settings)
        self.reference = FeatureMemory(dataset_size, embedding_size, **settings)
        self.num_classes = num_classes
        self.start = start
        self.threshold = float(threshold)
        self.k = k
        self.index = index
        for name, value in _BEGINNING.items():
            shape = () if name in ("noise_rate", "current_threshold") else (dataset_size,)
            dtype = torch.float64 if isinstance(value, float) else torch.int64
            self.register_buffer(name, torch.full(shape, value, dtype=dtype))
        self._latest: Tensor | None = None  # ids of the step before
        # How many embeddings were compared with what ``refresh`` was given, and how many of them
        # are near to it.
        self._nearer = self._compared = torch.zeros(2)
        self.counters = Counters(**self._beginning)

    @property
    def _beginning(self) -> dict[str, int]:
        """The counters before the first step.

        ``seen`` samples of this pass, and ``again`` how many one after another had been seen;
        whether batches have ``ids``, the judge has ``looked`` at a part of the first pass,
        untrained features have ``told`` the labels, and anything was ``trained``; while how many
        embeddings are seen it is ``unsure`` whether they can be looked up.
        """
        phase = COLLECTING if self.start == "judge" else TRAINING
        names = ("seen", "ids", "looked", "told", "unsure", "trained", "again")
        return {**dict.fromkeys(names, 0), "phase": phase}

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
            self._judge_pass(self.reference, first=self.counters["phase"] == COLLECTING)
            self.counters.set(seen=seen - size)
        elif self.counters["phase"] == COLLECTING and self.counters["looked"] == 0:
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
                out of range, or most ids given several times. What was there before stays.
        """
        what, classes = "dataset_size of JudgeFilter", self.num_classes
        given = checked_samples(
            features, labels, sample_ids, self.reference, what, num_classes=classes
        )
        untrained = self.counters["trained"] == 0
        pass_features = self.memory.holding(*given, dtype=torch.float32)
        self._judge_pass(pass_features, first=untrained)  # the index may raise
        self._refreshed = fingerprint(self.memory, *given[1:])
        self._changes += 1
        same_width = self.reference.embedding_size in (None, features.shape[1])
        self.memory.clear()  # a pass begins, of these samples
        self.counters.set(seen=0, unsure=ASKED if same_width else OF_ANOTHER_WIDTH)
        self._nearer = torch.zeros_like(self._nearer)
        if same_width:
            self.reference.copy_from(pass_features)
        else:  # of another layer: they are judged, but no embedding is compared with them
            self.reference.reset()

    def said_of(self, rows: Tensor, labels: Tensor, judged: LabelJudgement) -> LabelJudgement:
        """What this filter has said of (n,) samples by these labels, in place of a judgement."""
        if self.noise_rate < 0:
            return judged
        probability, rate = self.probability[rows], float(self.noise_rate)
        known = (probability >= 0) & (self.judged_labels[rows] == labels)
        low, high = judged.noise_rate_bounds
        return judged._replace(
            score=torch.where(known, probability, judged.score),
            probability=torch.where(known, probability, judged.probability),
            suggested_labels=torch.where(known, self.suggested[rows], judged.suggested_labels),
            support=torch.where(known, self.support[rows], judged.support),
            noise_rate=rate,
            noise_rate_bounds=(min(low, rate), max(high, rate)),
        )

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        self._changes += 1
        for memory in (self.memory, self.reference):
            memory.reset()
        for name, value in _BEGINNING.items():
            getattr(self, name).fill_(value)
        self._latest, self._refreshed = None, 0
        self.counters.set(**self._beginning)
        self.decision = None

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for a state that this wrapper cannot have had."""
        super().refuse_values(state, prefix)
        stop = math.inf if self.num_classes is None else self.num_classes
        labels = ("memory.labels", "reference.labels", "judged_labels", "suggested")
        limits = {
            **dict.fromkeys(labels, (-1, stop)),
            "counters.phase": (COLLECTING, JUDGING + 1),
            **dict.fromkeys(("counters.told", "counters.trained"), (0, 2)),
            "counters.unsure": (OF_ANOTHER_WIDTH, ASKED + 1),
            "current_threshold": (TRUSTED, 1),
        }
        for name, (least, end) in limits.items():
            require_state_in_range(f"{prefix}{name}", state.get(f"{prefix}{name}"), least, end)

    def _look(self, seen: int) -> None:
        """Train on all labels, for now, if the features do not tell the classes."""
        if seen < _LOOK * len(self.memory):
            return
        repeats = self.counters["ids"] == WITHOUT_IDS
        found = self._ask(self.memory, self.memory.filled, repeats=repeats)
        tells = found.certainty >= _TELLING and found.kept_share >= _KEPT
        self.counters.set(looked=1, phase=COLLECTING if tells else TRAINING)

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

    def _judge_pass(self, memory: FeatureMemory, first: bool) -> None:
        """Judge what a memory holds; ``first`` if its features were trained on no label."""
        dealt = memory.dealt
        numbers = dealt.numbers(memory.labels.device)
        own = slice(len(numbers))
        labels = dealt.of_all_parts(memory.labels[own])
        on_all = not first and self.counters["told"] == 0  # its features were trained on all labels
        folds = None if first or len(labels) < _FEW else 1
        # Without ids a sampler, or two views of it, may have put a sample there several times.
        repeats = memory is self.reference and self.counters["ids"] == WITHOUT_IDS
        found = self._ask(
            memory, own, folds=folds, trained=on_all, numbers=numbers, repeats=repeats
        )
        judged = dealt.of_all_parts(found.known & found.probability.isfinite())
        rate = found.noise_rate
        if on_all and found.certainty < _TOLD and found.kept_share < _WORTH:
            judged, rate = torch.zeros_like(judged), math.nan
        probability = torch.where(judged, dealt.of_all_parts(found.probability), _UNKNOWN)
        suggested = dealt.of_all_parts(found.suggested_labels)
        support = dealt.of_all_parts(found.support)
        if first:  # of samples that are not there what was said stands
            earlier = torch.where(labels < 0, self.first_probability, probability)
            overwrite(self.first_probability, earlier)
            probability = torch.where(labels < 0, self.probability, probability)
            self.counters.set(told=int((probability >= 0).any()))
        else:
            probability = self._with_earlier(probability, labels)
            said = probability[(probability >= 0) & (labels >= 0)]
            if self.counters["told"] and self.counters["ids"] != WITHOUT_IDS and len(said) > 0:
                rate = float((1 - said).mean())  # of both judgements, as the probabilities are
        overwrite(self.probability, probability)
        most = self.threshold if self.counters["told"] else TRUSTED
        threshold = strict_threshold(probability[probability >= 0], _WORTH, TRUSTED, most)
        overwrite(self.current_threshold, threshold)
        # A label that the first judgement alone is against has the suggestion of that one.
        if not first and self.counters["ids"] != WITHOUT_IDS:
            earlier = (self.first_probability >= 0) & (self.first_probability < TRUSTED)
            judged &= ~(earlier & (suggested == labels) & (probability < TRUSTED))
        overwrite(self.suggested, torch.where(judged, suggested, self.suggested))
        overwrite(self.support, torch.where(judged, support, self.support))
        overwrite(self.judged_labels, torch.where(labels >= 0, labels, self.judged_labels))
        self.noise_rate.fill_(rate if math.isfinite(rate) else _UNKNOWN)
        self.counters.set(phase=JUDGING)

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
