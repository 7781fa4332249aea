"""The judge: which labels are wrong, and how many, from features with given labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisydml import distributed
from noisydml.functional.judge import agreement, shift_to_mean
from noisydml.functional.parts import Whole
from noisydml.functional.whitening import Rows
from noisydml.memory.by_class import by_class, classes_of, components_of
from noisydml.memory.evidence import Sample, Setting
from noisydml.memory.index import Metric, NeighborIndex
from noisydml.memory.latent import (
    ASKED,
    CENTER_ROUNDS,
    NEIGHBOR_ROUNDS,
    TRUSTED,
    Core,
    Fit,
)
from noisydml.memory.parts import Parts
from noisydml.memory.settings import means
from noisydml.memory.trained import trained_rate
from noisydml.memory.whitened import FEWEST, FOLDS

# docs/judge.md lists these, and those of the files beside it.
_WHERE = ("all classes alike", "particular classes")
_AGREED = 4.0  # standard errors by which guesses agree with labels, of which something follows
_SHOWN = 8  # neighbours of each sample that are told
_CLOSE = 0.03  # of what a model predicts better than the classes' sizes do
_CERTAIN = 0.5  # mean probability of a sample's class, with which nothing hides from the judge
_AT_ODDS = 0.05  # the least by which the rate of the core must be above that of all
_TINY = 1e-9


class LabelJudgement(NamedTuple):
    """What a judge says of N labelled features."""

    score: Tensor  # (N,) float64 in [0, 1], higher is cleaner; the order of probability
    probability: Tensor  # (N,) float64, that the label is right; NaN where nothing can be said
    suggested_labels: Tensor  # (N,) int64; -1 for none of these
    support: Tensor  # (N,) float64, the probability of the suggested label
    noise_rate: float  # NaN where nothing can be said
    noise_rate_bounds: tuple[float, float]
    found_by: str
    copies: Tensor  # (N,) int64, the first of the near-identical rows that a row is one of
    known: Tensor  # (N,) bool, labelled as others are, too: without them it cannot be judged
    neighbors: Tensor  # (N, min(k, 8)) int64, with a label, the nearest first; -1 for none
    structured: bool  # whether wrong labels fall on particular classes
    certainty: float  # mean probability of the class that a labelled sample most likely is of
    # Of the right labels, the share whose probability is at least one half, by its own account.
    kept_share: float


def judge_labels(
    features: Rows,
    labels: Tensor,
    *,
    trust: Tensor | None = None,
    k: int = 50,
    index: str | NeighborIndex | None = None,
    folds: int | None = None,
    trained: bool = False,
    core_refutes: bool = True,
    noise_rate: float | None = None,
    metric: Metric = "cosine",
    progress: Callable[[int, int], Any] | None = None,
    shard: bool = False,
    numbers: Tensor | None = None,
    repeats: bool = False,
) -> LabelJudgement:
    r"""Judge the labels of a set of features, of which nobody knows how many are wrong.

    Every sample has a true class :math:`c`, of which its features tell by class centers in
    whitened space and by its neighbours, itself left out of both:
    :math:`p_{ic} \propto \exp(s_{ic} / T) \, v_{ic}^\kappa \, n_c^\gamma`, with the sizes
    :math:`n_c` of the classes where they count. Its label comes from that class by a
    transition: :math:`P(y_i) = \sum_c p_{ic}\, T_{c y_i}`. Expectation maximisation fits all of it
    with each label counting as much as it is probably right. Two transitions compete, wrong labels
    that fall on all classes alike and any others, and each with and without neighbours; labels
    held out decide which predicts them best, and whether any does.

    Args:
        features: (N, D) floating point, finite: a tensor, or anything with its ``shape``,
            ``device`` and slices of rows, which are read a block at a time.
        labels: (N,) integers, -1 where there is none.
        trust: (N,) in ``[0, 1]``, with which labels count from the start; None for 1.
        k: number of neighbours.
        folds: how many fifths of the labels are held out in turn, one to five; None for as many
            as bring 10,000 labels.
        index: what finds them; see :class:`~noisydml.memory.neighbors.Neighborhood`. None for an
            exact one, on the CPU up to 131,072 samples, and an inverted file beyond.
        trained: whether the features are of a network that was trained on all of these labels.
            Such features agree with wrong ones, of which the judge takes a part for right ones,
            most of all where they fall on similar classes. The rate is then that of
            :func:`noisydml.memory.trained.trained_rate`.
        core_refutes: whether the rate is less than a model's that expects more wrong labels than
            there are where the features are certain. Then right labels of hard samples are not
            taken for wrong ones, but more of those that lie far from every class for right. Not
            with ``trained``.
        noise_rate: the share of wrong labels in ``[0, 1)``, from somebody who knows; None to
            estimate it. It moves the probabilities and leaves their order.
        metric: ``"cosine"`` to compare directions from the mean of the features, ``"euclidean"``
            if it counts how far from it they are, too.
        progress: called with the number of rounds done and of all, which are as many at the end.
        shard: whether these are the samples of one rank of ``torch.distributed`` and the others
            have more, which all are judged together. All ranks call it.
        numbers: (N,) integers, which of the samples of all ranks these are, by which it is drawn
            who is held out; None to count them rank by rank.
        repeats: whether features may be of one sample, at different times of training, so that
            nothing tells them from those of another one. Of the nearest neighbours those of a
            sample's own label have no vote then, three at most, and fewer in small classes.

    Returns:
        :class:`LabelJudgement`, on the device of the features. The only sample of its class has
        score 1. With ``shard`` it is of the samples of this rank, and ``copies`` and ``neighbors``
        are ``numbers``.

    Example:
        >>> import torch
        >>> from noisydml.memory.judge import judge_labels
        >>> angles = torch.cat([torch.linspace(0, 0.5, 20), torch.linspace(2, 2.5, 20)])
        >>> labels = torch.tensor([0] * 20 + [1] * 20)
        >>> labels[3] = 1
        >>> found = judge_labels(torch.stack([angles.cos(), angles.sin()], dim=1), labels)
        >>> (found.probability < 0.5).nonzero().tolist(), round(found.noise_rate, 2)
        ([[3]], 0.02)
    """
    with torch.autocast(labels.device.type, enabled=False):
        parts = (Parts if shard and distributed.world_size() > 1 else Whole)(len(labels))
        if numbers is None:
            numbers = torch.arange(len(labels), device=labels.device) + parts.start
        classes = classes_of(labels, parts)
        if len(classes) < 2:
            return _nothing(labels, k, numbers)
        order, codes, trust, fold = by_class(labels, classes, trust, numbers, parts.size)
        components = components_of(features, parts)[order]
        sample = Sample(
            components, codes, len(classes), trust, fold, k, index, metric, parts, repeats
        )
        found = _Contest(sample, folds, progress).verdict(trained, core_refutes, noise_rate)
        return _as_given(sample, found, order, classes, numbers)


class _Verdict(NamedTuple):
    """What the best model says of the samples, in the judge's order."""

    fit: Fit
    score: Tensor  # (N,)
    rate: float  # NaN where nothing can be said
    bounds: tuple[float, float]
    found_by: str
    structured: bool
    certainty: float


class _Contest:
    """Four models of how labels come about, of which labels held out say who predicts them best.

    Args:
        sample: the labelled features.
        folds: how many fifths of the labels are held out in turn.
        progress: as of :func:`judge_labels`.
    """

    models = tuple(
        (structured, blended) for structured in (False, True) for blended in (False, True)
    )

    def __init__(
        self, sample: Sample, folds: int | None, progress: Callable[[int, int], Any] | None
    ) -> None:
        self.sample, self.progress = sample, progress
        if folds is None:
            folds = min(FOLDS, max(1, math.ceil(ASKED * FOLDS / max(sample.number_labelled, 1))))
        self.rounds, self.done = (2 * folds + 1) * (CENTER_ROUNDS + NEIGHBOR_ROUNDS), 0
        self.settings: list[list[list[Setting]]] = [[], []]
        self._hold_out(folds)

    def _hold_out(self, folds: int) -> None:
        """Find how well each model predicts n labels held out, and the settings that it does with.

        ``logs`` are (4, n) log-likelihoods, ``wrong`` (4, n) how likely the labels are wrong,
        ``guesses`` (4, n) the classes that the features are of, and ``base`` (n,) the
        log-likelihoods of the labels ``told`` (n,) by the classes' sizes alone.
        """
        sample, everyone = self.sample, self.sample.parts.everyone
        tested = torch.zeros_like(sample.labelled)
        likelihood = sample.weights.new_zeros(len(self.models), len(tested))
        wrong = torch.zeros_like(likelihood)
        guesses = torch.zeros_like(likelihood, dtype=torch.int64)
        for fold in range(folds):
            test = sample.fold == fold
            teaches = sample.weights * test.logical_not()
            for structured in (False, True):
                fit = Fit(sample, teaches, structured, test)
                for blended in (False, True):
                    fit.run(blended, self._tick)
                    m = self.models.index((structured, blended))
                    likelihood[m, test] = fit.likelihood[test]
                    wrong[m, test] = 1 - fit.trust[test]
                    guesses[m, test] = fit.guessed(test)
                self.settings[structured].append(fit.settings)
            known = fit.known
            del fit  # (N, K) numbers that nobody needs any more
            tested |= test & known & (sample.weights > 0)
        rows = tested.nonzero().squeeze(1)
        sizes = sample.sizes(sample.weights.double())
        base = (sizes / sizes.sum()).clamp_min(1e-12).log()[sample.codes[rows]]
        self.logs = everyone(likelihood[:, rows].T).T.double().clamp_min(1e-12).log()
        self.wrong, self.base = everyone(wrong[:, rows].T).T, everyone(base)
        self.guesses, self.told = everyone(guesses[:, rows].T).T, everyone(sample.codes[rows])

    def _tells(self, model: int) -> bool:
        """Whether what a model predicts of the labels held out is more than chance."""
        agreed = agreement(self.guesses[model], self.told)
        if len(self.base) < FEWEST or agreed < -_TINY:  # held out, a label makes its class rarer
            return False
        gain = self.logs[model] - self.base
        if bool(gain.mean() > 3 * gain.std() / math.sqrt(len(gain))):
            return True
        # Of two classes with 40 % wrong the best prediction gains little, and varies by more.
        return bool(gain.mean() > 0) and agreed > _AGREED

    def _tick(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.rounds)

    def _by_all(self, structured: bool, blended: bool) -> tuple[Fit, float, Core, Core]:
        """All labels judged by all, the rate that follows, and what the cores say of it."""
        sample, parts = self.sample, self.sample.parts
        self.rounds = self.done + CENTER_ROUNDS + NEIGHBOR_ROUNDS * blended
        fit = Fit(sample, sample.weights, structured, settings=means(self.settings[structured]))
        for with_neighbors in (False, True)[: 1 + blended]:
            fit.run(with_neighbors, self._tick)
        fit.conclude()
        counted = fit.judged
        mistrust = parts.total(((1 - fit.trust) * counted).sum())
        mean = float(mistrust / parts.total(counted.sum()).clamp_min(1))
        if not sample.crowded:
            # A sample's few companions agree more often where its own label is not among theirs.
            none = Core(mean, 2 / math.sqrt(max(sample.number_labelled, 1)), 1.0)
            return fit, mean, none, none
        return fit, mean, *fit.core_rates()

    def verdict(self, trained: bool, core_refutes: bool, noise_rate: float | None) -> _Verdict:
        """What the best one says; the arguments are those of :func:`judge_labels`."""
        sample, everyone, logs = self.sample, self.sample.parts.everyone, self.logs
        asked = len(self.base)
        best = int(logs.mean(dim=1).argmax()) if asked > 0 else 0
        structured, blended = self.models[best]
        fit, rate, core, of_each = self._by_all(structured, blended)
        gain = logs[best] - self.base
        close = asked > 0 and bool(
            logs[best].mean() - logs[2:].mean(dim=1).amax() < _CLOSE * gain.mean()
        )
        if not structured and close and core.rate - core.width > rate + _AT_ODDS:
            # Labels that are wrong where the features are certain, and no rate that has them: half
            # of each class in the next looks like features that tell little.
            structured = True
            blended = bool(logs[3].mean() > logs[2].mean())
            fit, rate, core, of_each = self._by_all(structured, blended)
        counted = fit.judged
        score = torch.where(counted, fit.trust.double(), 1.0)
        certainty = float(everyone(fit.most[sample.labelled]).mean())

        error = 1 / math.sqrt(max(asked, 1))
        if not self._tells(best):
            told = "as the features do not tell the labels"
            return _Verdict(fit, score, math.nan, (0.0, 1.0), told, structured, certainty)
        if structured:
            rate = max(rate, core.rate)
        else:  # classes of a few samples have cores that are wrong more often than the rest
            rate += min(max(core.rate - core.width - rate, 0.0), _AT_ODDS)
        rate = min(max(rate, 0.0), 0.99)
        if trained and structured and certainty < _CERTAIN and noise_rate is None:
            rate = trained_rate(sample, rate)
        found = (rate, core.width), (core.rate, core.width), (of_each.rate, of_each.width)
        low = min(each - width for each, width in found)
        high = max(each + width for each, width in found)
        if core_refutes and not trained:
            rate *= core.part
        found_by = f"if wrong labels fall on {_WHERE[structured]}"
        for m in range(len(self.models)):  # who predicts about as well may be right about the rate
            behind = logs[best] - logs[m]
            if bool(behind.mean() <= 2 * behind.std() * error):
                other = float(self.wrong[m].mean())
                low, high = min(low, other), max(high, other)
        bounds = (max(min(low, rate), 0.0), min(max(high, rate), 1.0))
        if noise_rate is not None:
            rate, bounds, found_by = noise_rate, (noise_rate, noise_rate), "as was said"
        shifted = shift_to_mean(everyone(score), 1 - rate, everyone(counted))[sample.parts.own]
        score = torch.where(counted, shifted, 1.0)
        if noise_rate is None:  # of those that nobody can judge, as copies are all there is, too
            of_all = counted | sample.disagree & sample.labelled
            share = float(everyone(counted).sum() / everyone(of_all).sum().clamp_min(1))
            rate, bounds = rate * share, (bounds[0] * share, bounds[1] * share)
        return _Verdict(fit, score, rate, bounds, found_by, structured, certainty)


def _as_given(
    sample: Sample, found: _Verdict, order: Tensor, classes: Tensor, numbers: Tensor
) -> LabelJudgement:
    """What was found, for the samples in the order in which they were given."""
    everyone, place = sample.parts.everyone, order.argsort()
    counted = found.fit.judged
    said = math.isfinite(found.rate)
    probability = found.score if said else torch.full_like(found.score, math.nan)
    right = everyone(probability.nan_to_num() * counted)
    labels_of = torch.cat([classes, classes.new_full((1,), -1)])  # -1 is the last
    suggested, support = found.fit.suggestions(found.score)
    numbers = everyone(numbers[order])
    copies = numbers[sample.groups]  # one of each group, not yet the first
    first = torch.full_like(numbers, len(numbers))
    first.scatter_reduce_(0, everyone(copies), numbers, "amin")
    near = sample.near[:, :_SHOWN]
    return LabelJudgement(
        score=found.score[place],
        probability=probability[place],
        suggested_labels=labels_of[suggested][place],
        support=support[place],
        noise_rate=found.rate,
        noise_rate_bounds=found.bounds,
        found_by=found.found_by,
        copies=first[copies][place],
        known=counted[place],
        neighbors=torch.where(near < 0, -1, numbers[near.clamp_min(0)])[place],
        structured=found.structured,
        certainty=found.certainty,
        kept_share=float(right[right >= TRUSTED].sum() / right.sum().clamp_min(_TINY)),
    )


def _nothing(labels: Tensor, k: int, numbers: Tensor) -> LabelJudgement:
    ones = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    return LabelJudgement(
        score=ones,
        probability=ones * math.nan,
        suggested_labels=labels.long(),
        support=ones * 0,
        noise_rate=math.nan,
        noise_rate_bounds=(0.0, 1.0),
        found_by="as there is one class at most",
        copies=numbers,
        known=torch.zeros_like(labels, dtype=torch.bool),
        neighbors=torch.full((len(labels), min(k, 1)), -1, device=labels.device),
        structured=False,
        certainty=0.0,
        kept_share=0.0,
    )
