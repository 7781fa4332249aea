"""The true classes behind given labels, by expectation maximisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from noisydml.functional.class_evidence import (
    leave_one_out_similarity,
    pair_cosine,
    size_adjustment,
    vote_shares,
    without_copies,
)
from noisydml.functional.judge import rate_of_core
from noisydml.functional.parts import Whole
from noisydml.memory.evidence import (
    Evidence,
    Sample,
    Setting,
    logit_of_none,
    nearest_class,
    thresholds_of_none,
)

TRUSTED = 0.5  # probability of a label, from which on it counts as right
_NUMBERS = 2**16  # probabilities at once, where settings are compared
_LEAST_TRUST = 0.02  # with which a label counts in the covariance
_EQUAL = 3e-7  # of the mean logarithm, some roundings, by which settings are equally good
_PRIOR = 1.0  # labels of each class that are known beforehand to be wrong at random
_EXPLAINED = 4  # times that a round says how labels come about, which converges slowly
ASKED = 10_000  # labels held out are enough
CENTER_ROUNDS, NEIGHBOR_ROUNDS = 5, 4  # rounds with centers alone, and with neighbours
_WHITENED = (0, 1, 2, 4, 7)  # rounds that begin with another covariance
_TEMPERATURES = [0.015 * 1.29**i for i in range(14)]
# With which centers say next to nothing beside the neighbours, as where classes have several parts.
_FLAT = [0.015 * 1.29**i for i in range(14, 17)]
_PARTS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5)  # of the neighbours
_SIZES = (0.0, 1.0)  # powers of the classes' sizes
_NONES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3)  # shares that may be of none of the classes
_EDGES = (0.0, 3.0)  # how sharply these are told from the others
_RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # to begin with; distrust, which may vanish
_CORE, _CERTAIN = 0.1, 0.99  # of the samples, those whose class is most certain, or as good as


def _first_of_best(values: Tensor) -> int:
    """The first of the values that are highest but for rounding, which differs with the ranks."""
    best = values.amax()
    return int((values >= best - _EQUAL * best.abs()).int().argmax())


def means(folds: list[list[Setting]]) -> list[Setting]:
    """Round by round, the mean over the folds."""
    return [
        Setting(*(sum(values) / len(values) for values in zip(*settings, strict=True)))
        for settings in zip(*folds, strict=True)
    ]


class Core(NamedTuple):
    """What :func:`~noisydml.functional.judge.rate_of_core` says of some samples."""

    rate: float
    width: float
    part: float


_NOTHING = Core(0.0, 1.0, 1.0)  # is certain


class _HeldOut(NamedTuple):
    """How well settings predict labels that have taught nothing; of some samples on each rank."""

    parts: Whole
    number: int  # of samples on all ranks
    evidence: Evidence
    own: Tensor  # (B, 1) in which column the label of each sample is
    transition: Tensor | None  # (B, K + 1) of true classes to the labels; None: all classes alike
    rates: Tensor  # (R,) of wrong labels that are tried where all classes are alike

    def values(
        self, settings: list[Setting], nones: Sequence[float], edges: Sequence[float]
    ) -> Tensor:
        """(P, G, R) mean logarithm of how likely the labels are, for each of G settings.

        Each with P pairs of a share of the samples that are of none of the classes and its edge,
        in the place of the setting's own.
        """
        logits = self.evidence.logits(settings)
        nearest, probable = nearest_class(logits), logits.softmax(dim=2)
        total = nearest - nearest_class(probable).log()  # (G, B) logarithm of the sum of all
        if self.transition is not None:
            of_classes = (probable * self.transition).sum(dim=2, keepdim=True)  # (G, B, R)
        else:
            mine = probable.gather(2, self.own.expand(len(settings), -1, 1))
            others = (1 - mine) / max(self.evidence.num_classes - 1, 1)
            of_classes = mine * (1 - self.rates) + others * self.rates
        everyone = self.parts.everyone(nearest.T).T if any(nones) else nearest
        thresholds = thresholds_of_none(everyone, [*nones]).T.unsqueeze(2)  # (P, G, 1)
        none = logit_of_none(nearest, thresholds, nearest.new_tensor(edges).view(-1, 1, 1))
        share = (none - total).sigmoid_().unsqueeze(3)  # (P, G, B, 1)
        likely = torch.lerp(of_classes, share.new_tensor(1 / self.evidence.num_classes), share)
        # In float64, so that the best are the same however many ranks add up.
        found = likely.clamp_min_(1e-12).log_().sum(dim=2, dtype=torch.float64)
        return self.parts.total(found) / self.number


class Fit:
    """Expectation maximisation on the samples that teach; the others are judged by them.

    The numbers that a round needs are those that suit the labels held out best, for the others
    have had a part in how far their neighbours are trusted; without any held out they are given.
    """

    def __init__(
        self,
        sample: Sample,
        teaches: Tensor,
        structured: bool,
        test: Tensor | None = None,
        settings: list[Setting] | None = None,
    ) -> None:
        self.sample, self.structured = sample, structured
        self.given = settings
        self.settings: list[Setting] = []
        self.teaches = teaches
        share = teaches / sample.weights.clamp_min(1e-12)
        self.own_weights = sample.own_weights * share  # none of a sample held out
        self.taught = sample.sizes(teaches)
        self.known = (self.taught[sample.classes] - self.own_weights) > sample.least
        self.judged = self.known & sample.labelled
        self.everybody = torch.arange(len(teaches), device=teaches.device)
        self.trust, self.likelihood = torch.ones_like(teaches), torch.ones_like(teaches)
        self.rate, self.round = 0.2, 0
        # What all who teach say of pairs of a true class and a label, and of each true class, and
        # what each of them has said: (N, K). None before the first round.
        self.counts: tuple[Tensor, Tensor] | None = None
        size, width = sample.columns.shape
        self.probable = teaches.new_empty(size, width + 2)  # by features alone
        if structured:
            self.true = teaches.new_empty(size, width)
        asked = self.known & (sample.weights > 0) & (True if test is None else test)
        self.number_asked, self.asked = sample.drawn(asked, ASKED)

    def run(self, blended: bool, tick: Callable[[], None]) -> None:
        """The rounds with centers alone, or those with neighbours that follow."""
        self.setting = Setting(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # sought anew
        for _ in range(NEIGHBOR_ROUNDS if blended else CENTER_ROUNDS):
            self._round(blended)
            tick()

    def _round(self, blended: bool) -> None:
        sample = self.sample
        if self.round in _WHITENED:
            self.matrix = sample.whitening(self.teaches * self.trust.clamp_min(_LEAST_TRUST))
        self.round += 1
        self.counted = self.teaches * self.trust
        as_one = blended and sample.speaks_alone
        everywhere = blended or sample.any_disagree
        self.all_counted = sample.parts.everyone(self.counted) if everywhere else self.counted
        voted = sample.voted(self.all_counted) if as_one or sample.any_disagree else None
        self.voted = voted if sample.any_disagree else None
        if as_one and voted is not None:
            self.all_counted = voted[sample.voter]
        self.own_counted = self.own_weights * self.trust
        self.sums = sample.sums(partial(sample.directions, self.matrix), self.counted)
        self.sizes = sample.sizes(self.counted)
        self.lengths = torch.linalg.vector_norm(self.sums, dim=1)
        cosine = pair_cosine(self.lengths, self.sizes)
        self.adjustment = size_adjustment(self.taught, cosine)
        if self.given is None:
            evidence = self._evidence(self.asked, blended)
            setting = self._sought(evidence, blended)
            self.rate = setting.rate
        else:
            setting = self.given[self.round - 1]
            evidence = self._evidence(self.asked[: None if setting.none > 0 else 0], blended)
        nearest = nearest_class(evidence.logits([setting]).squeeze(0))
        threshold = thresholds_of_none(sample.parts.everyone(nearest), [setting.none])
        for rows in sample.blocks():
            self.probable[rows] = self._evidence(rows, blended).softmax(setting, threshold)
        for _ in range(_EXPLAINED if self.structured else 1):
            self._explain()
        if self.given is None:
            trust = sample.parts.everyone(self.trust[self.asked])
            wrong = 1 - float(trust.mean()) if len(trust) else 0.0
            self.rate = min(max(wrong, 1e-4), 0.98)
        else:
            self.rate = self.given[self.round - 1].rate
        self.setting = setting._replace(rate=self.rate)
        self.settings.append(self.setting)

    def _explain(self) -> None:
        """Of which class each sample is, and with that how labels come about."""
        sample, zeros = self.sample, self.sums.new_zeros
        if self.structured:
            pairs, totals = zeros(sample.pairs), zeros(sample.num_classes)
        for rows in sample.blocks():
            true = self._explained(rows)
            if self.structured:
                self.true[rows] = true[:, :-2]
                counted = (self.true[rows] * self.teaches[rows].unsqueeze(1)).reshape(-1)
                pairs.index_add_(0, sample.pair[rows].reshape(-1), counted)
                totals.index_add_(0, sample.columns[rows].reshape(-1), counted)
        if self.structured:
            self.counts = sample.parts.total(pairs), sample.parts.total(totals)

    def _explained(self, rows: slice) -> Tensor:
        """(B, K + 2) probability of each true class, given features and label."""
        sample = self.sample
        true = self.probable[rows] * self._transition(rows)
        self.likelihood[rows] = true.sum(dim=1)
        true /= self.likelihood[rows].clamp_min(1e-30).unsqueeze(1)
        own = true.gather(1, sample.own[rows].unsqueeze(1)).squeeze(1)
        self.trust[rows] = torch.where(self.judged[rows], own, 1.0)
        return true

    def _evidence(self, rows: Any, blended: bool) -> Evidence:
        sample = self.sample
        columns = None if sample.rest is None else sample.columns[rows].long()
        similarity, own = leave_one_out_similarity(
            sample.directions(self.matrix, rows),
            self.sums,
            sample.classes[rows],
            self.own_counted[rows],
            columns,
            self.lengths,
        )
        if self.voted is not None:
            some = sample.disagree[rows].nonzero().squeeze(1)
            there = self.everybody[rows][some]
            lengths = self.lengths[sample.columns[there].long()]
            copies = sample.copies_in(there, self.voted)
            similarity[some] = without_copies(similarity[some], lengths, copies)
        similarity.scatter_(1, sample.own[rows].unsqueeze(1), own.unsqueeze(1))
        factor, offset = (each if columns is None else each[columns] for each in self.adjustment)
        similarity.mul_(factor).sub_(offset)
        votes = self._votes(rows) if blended else None
        rest = None
        if sample.rest is not None:  # no nearer than the candidates, but the one of the own label
            least = similarity.kthvalue(2, dim=1, keepdim=True).values
            rest = torch.cat([sample.rest[rows], least], dim=1)
        return Evidence(similarity, votes, rest, self._sizes(rows), sample.num_classes)

    def _sizes(self, rows: Any) -> Tensor:
        """(B, K) logarithm of each class's size, over the mean size, without the sample itself."""
        columns, own = self.sample.columns[rows].long(), self.sample.own[rows].unsqueeze(1)
        sizes = self.sizes[columns].scatter_add(1, own, -self.own_counted[rows].unsqueeze(1))
        return ((sizes.clamp_min(0) + 1) / (self.sizes.mean() + 1)).log()

    def _sought(self, evidence: Evidence, blended: bool) -> Setting:
        """The setting that suits the labels held out."""
        rows, parts, last = self.asked, self.sample.parts, self.setting
        if self.number_asked == 0:
            return Setting(_TEMPERATURES[-1], 0.0, 0.0, 0.0, 0.0, self.rate)
        own = self.sample.own[rows].unsqueeze(1)
        transition = self._transition(rows)[:, :-1] if self.structured else None
        begins = self.round == 1 and not self.structured
        rates = self.teaches.new_tensor(_RATES if begins else [self.rate])
        heldout = _HeldOut(parts, self.number_asked, evidence, own, transition, rates)

        # The highest first, for of equal ones the first counts.
        temperatures = _TEMPERATURES + (_FLAT if blended and self.sample.crowded else [])
        temperatures = self._near(temperatures, last.temperature)[::-1]
        kappas = self._near(_PARTS, last.part)[::-1] if blended else [0.0]
        tried = [
            last._replace(temperature=t, part=part, size=size)
            for t, part, size in product(temperatures, kappas, _SIZES)
        ]
        numbers = self.number_asked * evidence.similarity.shape[1] // parts.ranks
        many = max(1, _NUMBERS // max(numbers, 1))
        edges = _EDGES if last.none > 0 else _EDGES[:1]
        found = []
        for start in range(0, len(tried), many):
            values = heldout.values(tried[start : start + many], [last.none] * len(edges), edges)
            found.append(values.amax(dim=(0, 2)))
        best = tried[_first_of_best(torch.cat(found))]

        sharp, nones = zip((0.0, 0.0), *product(_EDGES, _NONES), strict=True)
        likely, which = heldout.values([best], nones, sharp).squeeze(1).max(dim=1)
        # What one number more must bring to be significant (a likelihood ratio of 95 %): the share
        # over all labels, and an edge in each part of them.
        likely[1:] -= 2 / parts.size
        likely[1 + len(_NONES) :] -= 2 / self.number_asked
        place = _first_of_best(likely)
        rate = float(rates[which[place]])
        best = best._replace(none=nones[place], edge=sharp[place], rate=rate)
        return Setting(*parts.first(likely.new_tensor(best, dtype=torch.float64)).tolist())

    @staticmethod
    def _near(values: Any, value: float) -> list[float]:
        """Those between which a maximum that was at ``value`` may be now; all at first."""
        return [v for v in values if value == 0 or 0.6 < v / value < 1.7]

    def _votes(self, rows: Any) -> Tensor:
        """(B, K + 1) logarithm of each class's share of the votes; the last is the rest's mean."""
        sample = self.sample
        votes, width = sample.votes[rows], sample.columns.shape[1]
        weights = self.all_counted[sample.near[rows].clamp_min(0)] * votes
        ballots = weights.new_zeros(len(votes), width + 1)
        ballots.scatter_add_(1, sample.ballot[rows].long(), weights)
        return vote_shares(ballots, votes, sample.num_classes).log()

    def _transition(self, rows: Any) -> Tensor:
        """(B, K + 2) how likely each true class is to be given the label of the sample."""
        sample = self.sample
        away = self.rate / max(sample.num_classes - 1, 1)
        own, width = sample.own[rows].unsqueeze(1), sample.columns.shape[1]
        at_random = self.teaches.new_full((len(own), width + 2), away)
        at_random[:, width + 1] = 1 / sample.num_classes
        at_random.scatter_(1, own, 1 - self.rate)
        if self.counts is not None:
            pairs, totals = self.counts
            mine = self.true[rows] * self.own_weights[rows].unsqueeze(1)
            seen = (pairs[sample.pair[rows]] - mine).clamp_min(0)
            of = (totals[sample.columns[rows]] - mine).clamp_min(0)
            at_random[:, :width] = (seen + _PRIOR * at_random[:, :width]) / (of + _PRIOR)
        return torch.where(sample.labelled[rows].unsqueeze(1), at_random, 1.0)

    def guessed(self, rows: Tensor) -> Tensor:
        """(B,) the class that the features of some of the samples are most likely of."""
        column = self.probable[rows, :-2].argmax(dim=1, keepdim=True)
        return self.sample.columns[rows].gather(1, column).squeeze(1).long()

    def conclude(self) -> None:
        """Of which class the features of each sample are, how certain that is, and who else it is.

        ``other`` is the class that it most likely is of if its label is wrong, -1 for none of them,
        and ``other_share`` the share of that in what is not the label's.
        """
        sample = self.sample
        self.most, self.certain = torch.ones_like(self.trust), torch.ones_like(self.trust)
        self.guess, self.other = sample.classes.clone(), sample.classes.clone()
        self.other_share = torch.ones_like(self.trust)
        for rows in sample.blocks():
            probable, true = self.probable[rows], self._explained(rows)
            columns = pad(sample.columns[rows], (0, 2), value=-1).long()
            self.most[rows], column = probable[:, :-2].max(dim=1)
            self.guess[rows] = columns.gather(1, column.unsqueeze(1)).squeeze(1)
            of_any = (1 - probable[:, -1]).clamp_min(1e-12)
            self.certain[rows] = self.most[rows] / of_any  # if it is of any class
            others = true.scatter(1, sample.own[rows].unsqueeze(1), 0.0)
            others = torch.where(self.judged[rows].unsqueeze(1), others, true)
            most, column = others.max(dim=1)
            self.other[rows] = columns.gather(1, column.unsqueeze(1)).squeeze(1)
            self.other_share[rows] = most / others.sum(dim=1).clamp_min(1e-30)

    def suggestions(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) class that each sample most likely is of, and (N,) how likely, given its label's."""
        right = self.judged & (probability >= TRUSTED)
        left = torch.where(self.judged, 1 - probability, 1.0)
        suggested = torch.where(right, self.sample.classes, self.other)
        return suggested, torch.where(right, probability, self.other_share * left)

    def core_rates(self) -> tuple[Core, Core]:
        """What the most certain tenth of all samples says of the rate, and that of each class."""
        everyone = self.sample.parts.everyone
        counted = self.judged.nonzero().squeeze(1)
        most, guess = everyone(self.most[counted]), everyone(self.guess[counted])
        if (number := len(most)) == 0:
            return _NOTHING, _NOTHING
        agrees = guess == everyone(self.sample.classes[counted])
        said = torch.stack([everyone(self.certain[counted]), agrees, everyone(self.trust[counted])])
        as_good = most >= _CERTAIN
        of_all = as_good | (most >= most.sort(descending=True).values[int(_CORE * number)])
        order = most.argsort(descending=True, stable=True)
        order = order[guess[order].argsort(stable=True)]  # class by class, the most certain first
        sizes = torch.bincount(guess, minlength=self.sample.num_classes)
        place = torch.empty_like(order)
        place[order] = torch.arange(number, device=order.device)
        place -= (sizes.cumsum(0) - sizes)[guess]
        of_each = as_good | (place < _CORE * sizes[guess])
        there = torch.bincount(guess[of_each], minlength=len(sizes)).clamp_min(1)
        weights = torch.stack([of_all, of_each * (sizes / there)[guess]]).double()
        numbers = weights.sum(dim=1).square() / weights.square().sum(dim=1)
        certain, right, trust = said.double() @ (weights / weights.sum(dim=1, keepdim=True)).T
        rows = torch.stack([1 - right, 1 - trust, certain, numbers], dim=1).tolist()
        all_of_them, each_class = (
            Core(*rate_of_core(wrong, expected, certain, round(size)))
            for wrong, expected, certain, size in rows
        )
        return all_of_them, each_class
