"""What labelled features say of the true classes behind the labels: evidence, and its fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from noisydml.functional.judge import (
    leave_one_out_similarity,
    near_identical,
    principal_components,
    within_class_whitening,
)
from noisydml.functional.neighbors import neighbor_weights
from noisydml.memory.index import NeighborIndex
from noisydml.memory.neighbors import Neighborhood

_WIDTH = 256  # columns that are kept of wide features
_ALL, _SOME = 128, 64  # classes that a sample is compared with: all, or the nearest of more
_BLOCK = 4096  # rows compared with all classes at once
_SHARPNESS = 8.0  # of the neighbours' votes
_FLOOR = 0.02  # of a vote, shared by all classes
_LEAST_TRUST = 0.02  # with which a label counts in the covariance
_PRIOR = 3.0  # labels of each class that are known beforehand to be wrong at random
FOLDS = 5  # parts of the labels, to be held out in turn
CENTER_ROUNDS, NEIGHBOR_ROUNDS = 5, 4  # rounds with centers alone, and with neighbours
_WHITENED = (0, 1, 2, 4, 7)  # rounds that begin with another covariance
_TEMPERATURES = [0.015 * 1.29**i for i in range(14)]
_PARTS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5)  # of the neighbours
_NONES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3)  # shares that may be of none of the classes
_CORE, _CERTAIN = 0.1, 0.99  # of the samples, those whose class is most certain, or as good as


class Sample:
    """What stays the same however much the labels are trusted."""

    def __init__(
        self,
        features: Tensor,
        codes: Tensor,
        num_classes: int,
        trust: Tensor,
        k: int,
        index: str | NeighborIndex | None,
    ) -> None:
        self.codes, self.num_classes = codes, num_classes
        self.features = principal_components(features, _WIDTH)
        self.classes = codes.clamp_min(0)
        weights = trust.masked_fill(codes < 0, 0)
        directions = self.directions(weights)
        distance, self.near = self._neighbors(directions, k, index)
        self.copies = near_identical(directions, distance, self.near)
        sizes = torch.bincount(self.copies, minlength=len(codes))
        self.weights = weights / sizes[self.copies]  # copies are one voter
        # What the copies of a sample that have its label weigh: no part of it is to judge it.
        voter = self.copies * num_classes + self.classes
        _, same = torch.unique(voter, return_inverse=True)
        voters = self.weights.new_zeros(int(same.max()) + 1).index_add_(0, same, self.weights)
        self.own_weights = voters[same]
        own_copy = self.copies[self.near.clamp_min(0)] == self.copies.unsqueeze(1)
        distance = distance.masked_fill((self.near < 0) | own_copy, math.inf)
        self.votes = neighbor_weights(distance, _SHARPNESS)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(len(codes), generator=generator, device="cpu")
        fold = drawn.to(codes.device) % FOLDS
        self.fold = fold[self.copies]
        self._candidates(directions)

    def directions(self, weights: Tensor) -> Tensor:
        """(N, D) unit vectors in the space that is whitened with these weights."""
        matrix = within_class_whitening(self.features, self.classes, weights, self.num_classes)
        return normalize(self.features @ matrix)

    def sums(self, directions: Tensor, weights: Tensor) -> Tensor:
        """(C, D) sum of each class."""
        sums = directions.new_zeros(self.num_classes, directions.shape[1])
        return sums.index_add_(0, self.classes, directions * weights.unsqueeze(1))

    def _neighbors(
        self, directions: Tensor, k: int, index: str | NeighborIndex | None
    ) -> tuple[Tensor, Tensor]:
        metric = index.metric if isinstance(index, NeighborIndex) else "cosine"
        hood = Neighborhood(index, metric)
        hood.build(directions, self.codes)
        labelled = (self.codes >= 0).nonzero().squeeze(1)
        rows = torch.arange(len(self.codes), device=self.codes.device)
        found = [
            hood.neighbors(directions[block], self.codes[block], k, block)
            for block in torch.split(rows, _BLOCK)
        ]
        distance = torch.cat([part[0] for part in found])
        position = torch.cat([part[1] for part in found])
        near = labelled[position.clamp_min(0)]
        return distance, torch.where(position < 0, -1, near)

    def _candidates(self, directions: Tensor) -> None:
        """The classes each sample is compared with, and what the rest of them are to it."""
        size, number = len(self.codes), self.num_classes
        rows = torch.arange(size, device=self.codes.device)
        if number <= _ALL:
            self.columns = torch.arange(number, device=rows.device).expand(size, number)
            self.own = self.classes
            self.rest = None
        else:
            sums = self.sums(directions, self.weights)
            columns, means, variances = [], [], []
            for block in torch.split(rows, max(1, _BLOCK * 1024 // number)):
                similarity, own = leave_one_out_similarity(
                    directions[block], sums, self.classes[block], self.own_weights[block]
                )
                similarity.scatter_(1, self.classes[block].unsqueeze(1), own.unsqueeze(1))
                value, column = similarity.topk(_SOME, dim=1)
                held = (column == self.classes[block].unsqueeze(1)).any(dim=1)
                column[:, -1] = torch.where(held, column[:, -1], self.classes[block])
                left = number - _SOME
                mean = (similarity.sum(dim=1) - value.sum(dim=1)) / left
                square = (similarity.square().sum(dim=1) - value.square().sum(dim=1)) / left
                columns.append(column.sort(dim=1).values)
                means.append(mean)
                variances.append((square - mean.square()).clamp_min(0))
            self.columns = torch.cat(columns)
            self.own = (self.columns == self.classes.unsqueeze(1)).int().argmax(dim=1)
            self.rest = (torch.cat(means), torch.cat(variances))
        # Where the transition from a candidate to the label stands among all that occur.
        keys = self.columns * number + self.classes.unsqueeze(1)
        _, self.pair = torch.unique(keys, return_inverse=True)
        self.pairs = int(self.pair.max()) + 1
        # In which column each neighbour votes; one more for a class that is no candidate.
        label = self.classes[self.near.clamp_min(0)]
        if self.rest is None:
            self.ballot = label
        else:
            parts = []
            for block in torch.split(rows, 512):
                same = label[block].unsqueeze(2) == self.columns[block].unsqueeze(1)
                parts.append(pad(same, (0, 1), value=True).int().argmax(dim=2))
            self.ballot = torch.cat(parts)


class Setting(NamedTuple):
    """The numbers of a round."""

    temperature: float
    part: float  # of the neighbours
    none: float  # share of the samples that are rather of none of the classes
    rate: float


def means(folds: list[list[Setting]]) -> list[Setting]:
    """Round by round, the mean over the folds."""
    return [
        Setting(*(sum(values) / len(values) for values in zip(*settings, strict=True)))
        for settings in zip(*folds, strict=True)
    ]


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
        taught = teaches.new_zeros(sample.num_classes).index_add_(0, sample.classes, teaches)
        self.known = (taught[sample.classes] - self.own_weights) > 1e-6
        self.trust = torch.ones_like(teaches)
        self.rate, self.round = 0.2, 0
        self.true: Tensor | None = None  # (N, K + 1) of each true class; the last is the rest
        if test is not None:
            self.fitted = (test & self.known & (sample.weights > 0)).nonzero().squeeze(1)

    def run(self, blended: bool, tick: Callable[[], None]) -> None:
        """The rounds with centers alone, or those with neighbours that follow."""
        self.setting = Setting(0.0, 0.0, 0.0, 0.0)  # sought anew
        for _ in range(NEIGHBOR_ROUNDS if blended else CENTER_ROUNDS):
            self._round(blended)
            tick()

    def _round(self, blended: bool) -> None:
        sample, trust = self.sample, self.trust
        if self.round in _WHITENED:
            self.directions = sample.directions(self.teaches * trust.clamp_min(_LEAST_TRUST))
        self.round += 1
        similarity = self._similarity()
        votes = self._votes() if blended else torch.zeros_like(similarity)
        transition = self._transition()
        if self.given is None:
            temperature, part, none = self._sought(similarity, votes, transition, blended)
        else:
            temperature, part, none, _ = self.given[self.round - 1]
        self.probable = _softmax(
            similarity, votes, temperature, part, none, sample.rest, sample.num_classes
        )
        joint = self.probable * transition
        self.likelihood = joint.sum(dim=1)
        self.true = joint / self.likelihood.clamp_min(1e-30).unsqueeze(1)
        own = self.true.gather(1, sample.own.unsqueeze(1)).squeeze(1)
        self.trust = torch.where(self.known & (sample.codes >= 0), own, 1.0)
        if self.given is None:
            wrong = 1 - float(self.trust[self.fitted].mean()) if len(self.fitted) else 0.0
            self.rate = min(max(wrong, 1e-4), 0.98)
        else:
            self.rate = self.given[self.round - 1].rate
        self.setting = Setting(temperature, part, none, self.rate)
        self.settings.append(self.setting)
        self.similarity = similarity

    def _sought(
        self, similarity: Tensor, votes: Tensor, transition: Tensor, blended: bool
    ) -> tuple[float, float, float]:
        """Temperature, part of the neighbours, share of none that predict those held out best."""
        rows, sample = self.fitted, self.sample
        if len(rows) == 0:
            return _TEMPERATURES[-1], 0.0, 0.0
        similarity, votes, transition = similarity[rows], votes[rows], transition[rows]
        rest = None if sample.rest is None else tuple(each[rows] for each in sample.rest)

        def value(temperature: float, part: float, none: float) -> float:
            probable = _softmax(
                similarity, votes, temperature, part, none, rest, sample.num_classes
            )
            return float((probable * transition).sum(dim=1).clamp_min(1e-12).log().mean())

        _, temperature, part = max(
            (value(temperature, part, self.setting.none), temperature, part)
            for temperature in self._near(_TEMPERATURES, self.setting.temperature)
            for part in (self._near(_PARTS, self.setting.part) if blended else (0.0,))
        )
        _, none = max((value(temperature, part, none), -none) for none in _NONES)
        return temperature, part, -none

    @staticmethod
    def _near(values: Any, value: float) -> list[float]:
        """Those between which a maximum that was at ``value`` may be now; all at first."""
        return [v for v in values if value == 0 or 0.6 < v / value < 1.7]

    def _similarity(self) -> Tensor:
        sample = self.sample
        sums = sample.sums(self.directions, self.teaches * self.trust)
        own_weights = self.own_weights * self.trust
        similarity, own = leave_one_out_similarity(
            self.directions,
            sums,
            sample.classes,
            own_weights,
            None if sample.rest is None else sample.columns,
        )
        return similarity.scatter(1, sample.own.unsqueeze(1), own.unsqueeze(1))

    def _votes(self) -> Tensor:
        """(N, K) logarithm of each class's share of the neighbours' votes."""
        sample = self.sample
        weights = (self.teaches * self.trust)[sample.near.clamp_min(0)] * sample.votes
        size, width = sample.columns.shape
        ballots = weights.new_zeros(size, width + 1).scatter_add_(1, sample.ballot, weights)
        floor = _FLOOR * sample.votes.sum(dim=1, keepdim=True) + 1e-9
        total = ballots.sum(dim=1, keepdim=True) + floor
        return ((ballots[:, :width] + floor / sample.num_classes) / total).log()

    def _transition(self) -> Tensor:
        """(N, K + 1) how likely each true class is to be given the label of the sample."""
        sample = self.sample
        away = self.rate / max(sample.num_classes - 1, 1)
        size, width = sample.columns.shape
        at_random = self.teaches.new_full((size, width + 1), away)
        at_random[:, width] = 1 / sample.num_classes
        at_random.scatter_(1, sample.own.unsqueeze(1), 1 - self.rate)
        if self.structured and self.true is not None:
            true = self.true[:, :width]
            counted = true * self.teaches.unsqueeze(1)
            pairs = counted.new_zeros(sample.pairs).index_add_(
                0, sample.pair.reshape(-1), counted.reshape(-1)
            )
            totals = counted.new_zeros(sample.num_classes).index_add_(
                0, sample.columns.reshape(-1), counted.reshape(-1)
            )
            mine = true * self.own_weights.unsqueeze(1)
            seen = (pairs[sample.pair] - mine).clamp_min(0)
            of = (totals[sample.columns] - mine).clamp_min(0)
            at_random[:, :width] = (seen + _PRIOR * at_random[:, :width]) / (of + _PRIOR)
        return torch.where((sample.codes >= 0).unsqueeze(1), at_random, 1.0)

    def suggestions(self) -> tuple[Tensor, Tensor]:
        """The class that each sample is of, -1 for none of them, and its probability."""
        sample = self.sample
        assert self.true is not None
        true = self.true.double()
        distrusted = (self.trust < 0.5) & (sample.codes >= 0)
        others = true.scatter(1, sample.own.unsqueeze(1), -1.0)
        support, column = torch.where(distrusted.unsqueeze(1), others, true).max(dim=1)
        none = sample.columns.new_full((len(column), 1), -1)
        suggested = torch.cat([sample.columns, none], dim=1).gather(1, column.unsqueeze(1))
        return suggested.squeeze(1), support.clamp_min(0)

    def certainty(self) -> float:
        return float(self.probable[:, : self.sample.columns.shape[1]].amax(dim=1).mean())

    def core_rate(self) -> tuple[float, float]:
        """Share of wrong labels where the features are certain of the class, and its error."""
        sample = self.sample
        counted = (self.known & (sample.codes >= 0)).nonzero().squeeze(1)
        most, column = self.probable[counted, : sample.columns.shape[1]].max(dim=1)
        if len(most) == 0:
            return 0.0, 1.0
        least = most.sort(descending=True).values[int(_CORE * len(most))].clamp_max(_CERTAIN)
        top = (most >= least).nonzero().squeeze(1)
        certain = float(most[top].mean())
        wrong = float((column[top] != sample.own[counted[top]]).double().mean())
        error = 2 * math.sqrt(max(wrong * (1 - wrong), 0.25 / len(top)) / len(top))
        return 1 - (1 - wrong) / certain, error


def _softmax(
    similarity: Tensor,
    votes: Tensor,
    temperature: float,
    part: float,
    none: float,
    rest: Any,
    num_classes: int,
) -> Tensor:
    """(N, K + 1) probability of each candidate and, at the end, of none of them."""
    logits = similarity / temperature
    if part > 0:
        logits = logits + part * votes
    outside = torch.full_like(logits[:, :1], -1e4)
    if none > 0 and len(logits) > 0:  # as near as the nearest class is to so many
        nearest = logits.amax(dim=1).sort().values
        outside = torch.ones_like(outside) * nearest[int(none * len(nearest))]
    if rest is not None:
        mean, variance = rest
        left = num_classes - similarity.shape[1]
        # The mean of exp(s / T) over similarities that are normally distributed.
        others = mean / temperature + variance / (2 * temperature**2)
        others = torch.minimum(others, logits.amin(dim=1)) + math.log(left)
        outside = torch.logaddexp(outside, others.unsqueeze(1))
    return torch.cat([logits, outside], dim=1).softmax(dim=1)
