"""The numbers of a round of the judge: those that suit labels held out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisydml.functional.parts import Whole
from noisydml.memory.evidence import (
    Evidence,
    Setting,
    logit_of_none,
    nearest_class,
    thresholds_of_none,
)

_NUMBERS = 2**16  # probabilities at once, where settings are compared
_EQUAL = 3e-7  # of the mean logarithm, some roundings, by which settings are equally good
_TEMPERATURES = [0.015 * 1.29**i for i in range(14)]
# With which centers say next to nothing beside the neighbours, as where classes have several parts.
_FLAT = [0.015 * 1.29**i for i in range(14, 17)]
_PARTS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.5)  # of the neighbours
_SIZES = (0.0, 1.0)  # powers of the classes' sizes
_NONES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3)  # shares that may be of none of the classes
_EDGES = (0.0, 3.0)  # how sharply these are told from the others
RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # to begin with; distrust, which may vanish

UNKNOWN = Setting(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # any may be the best
FLATTEST = UNKNOWN._replace(temperature=_TEMPERATURES[-1])  # where no label is held out


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


class HeldOut(NamedTuple):
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

    def best(self, last: Setting, flat: bool) -> Setting:
        """The setting with which the labels are likeliest, near to that of the last round.

        ``flat`` if centers may say next to nothing.
        """
        # The highest first, for of equal ones the first counts.
        temperatures = _near(_TEMPERATURES + _FLAT * flat, last.temperature)[::-1]
        kappas = [0.0] if self.evidence.votes is None else _near(_PARTS, last.part)[::-1]
        tried = [
            last._replace(temperature=t, part=part, size=size)
            for t, part, size in product(temperatures, kappas, _SIZES)
        ]
        numbers = self.number * self.evidence.similarity.shape[1] // self.parts.ranks
        many = max(1, _NUMBERS // max(numbers, 1))
        edges = _EDGES if last.none > 0 else _EDGES[:1]
        found = []
        for start in range(0, len(tried), many):
            values = self.values(tried[start : start + many], [last.none] * len(edges), edges)
            found.append(values.amax(dim=(0, 2)))
        best = tried[_first_of_best(torch.cat(found))]

        sharp, nones = zip((0.0, 0.0), *product(_EDGES, _NONES), strict=True)
        likely, which = self.values([best], nones, sharp).squeeze(1).max(dim=1)
        # What one number more must bring to be significant (a likelihood ratio of 95 %): the share
        # over all labels, and an edge in each part of them.
        likely[1:] -= 2 / self.parts.size
        likely[1 + len(_NONES) :] -= 2 / self.number
        place = _first_of_best(likely)
        rate = float(self.rates[which[place]])
        best = best._replace(none=nones[place], edge=sharp[place], rate=rate)
        return Setting(*self.parts.first(likely.new_tensor(best, dtype=torch.float64)).tolist())


def _near(values: Any, value: float) -> list[float]:
    """Those between which a maximum that was at ``value`` may be now; all at first."""
    return [v for v in values if value == 0 or 0.6 < v / value < 1.7]
