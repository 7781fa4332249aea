"""The true classes behind given labels, by expectation maximisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from noisydml.memory.evidence import (
    Evidence,
    Sample,
    Setting,
    nearest_class,
    thresholds_of_none,
)
from noisydml.memory.settings import FLATTEST, RATES, UNKNOWN, HeldOut

TRUSTED = 0.5  # probability of a label, from which on it counts as right
_LEAST_TRUST = 0.02  # with which a label counts in the covariance
_PRIOR = 1.0  # labels of each class that are known beforehand to be wrong at random
_EXPLAINED = 4  # times that a round says how labels come about, which converges slowly
ASKED = 10_000  # labels held out are enough
CENTER_ROUNDS, NEIGHBOR_ROUNDS = 5, 4  # rounds with centers alone, and with neighbours
_WHITENED = (0, 1, 2, 4, 7)  # rounds that begin with another covariance
_CORE, _CERTAIN = 0.1, 0.99  # of the samples, those whose class is most certain, or as good as


class Core(NamedTuple):
    """What :func:`~noisydml.functional.judge.rate_of_core` says of some samples."""

    rate: float
    width: float
    part: float


_NOTHING = Core(0.0, 1.0, 1.0)  # is certain


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
        self.setting = UNKNOWN  # sought anew
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
        rows, sample = self.asked, self.sample
        if self.number_asked == 0:
            return FLATTEST._replace(rate=self.rate)
        own = sample.own[rows].unsqueeze(1)
        transition = self._transition(rows)[:, :-1] if self.structured else None
        begins = self.round == 1 and not self.structured
        rates = self.teaches.new_tensor(RATES if begins else [self.rate])
        heldout = HeldOut(sample.parts, self.number_asked, evidence, own, transition, rates)
        return heldout.best(self.setting, flat=blended and sample.crowded)

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
