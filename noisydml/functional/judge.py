"""How many labels are wrong, and how likely each is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-12
_SURE = 0.6  # certainty of the core, from which on it refutes a model
_UNSURE = 0.2  # of what that falls short of one: so much may be missing by mistake
_LEAST_PART = 1 / 3  # of the rate: labels that are wrong may lie outside the core, such as junk


def core_rate(agreement: Tensor, wrong: Tensor) -> Tensor:
    r"""The share of wrong labels at the core of the classes, where neighbours agree most.

    :math:`\operatorname{clip}(2 r_{.1} - r_{.2}, 0, 1)`, with :math:`r_q` the share of labels,
    among those of the q of all samples whose neighbours agree most, that they do not agree on:
    extrapolated to where nobody disagrees by chance.

    Args:
        agreement: (N,) floating point, the share of the neighbours' votes for the leading class.
        wrong: (N,) bool, whether the given label is another one.

    Returns:
        0-dim float64; 0 for fewer than ten samples.

    Example:
        >>> import torch
        >>> from noisydml.functional.judge import core_rate
        >>> agreement, wrong = torch.linspace(1, 0, 100), torch.arange(100) % 5 == 0
        >>> core_rate(agreement, wrong)
        tensor(0.2000, dtype=torch.float64)
    """
    ordered = wrong[agreement.argsort(descending=True, stable=True)].double()
    tenth, fifth = len(wrong) // 10, len(wrong) // 5
    if tenth == 0:
        return torch.zeros((), dtype=torch.float64, device=wrong.device)
    return (2 * ordered[:tenth].mean() - ordered[:fifth].mean()).clamp(0, 1)


def agreement(guesses: Tensor, labels: Tensor) -> float:
    """By how many standard errors guesses and labels agree more often than by chance.

    Chance is that each class has as many of both as it has, and nothing to do with the other.

    Args:
        guesses: (n,) integers.
        labels: (n,) integers.

    Returns:
        0 where nothing can be said, as there are none or all are of one class. Asks the host.

    Example:
        >>> import torch
        >>> from noisydml.functional.judge import agreement
        >>> agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
        2.0
    """
    number = len(labels)
    classes, place = torch.unique(torch.cat([guesses, labels]), return_inverse=True)
    sizes = torch.bincount(place[:number], minlength=len(classes)).double()
    chance = float((sizes * torch.bincount(place[number:], minlength=len(classes))).sum())
    chance /= max(number, 1) ** 2
    spread = math.sqrt(number * chance * (1 - chance))
    return (float((guesses == labels).sum()) - number * chance) / spread if spread > 0 else 0.0


def rate_of_core(
    wrong: float, expected: float, certainty: float, number: int
) -> tuple[float, float, float]:
    """What the samples whose class is most certain say of the rate of wrong labels.

    Args:
        wrong: in ``[0, 1]``, the share of them whose label is another than that class.
        expected: in ``[0, 1]``, the share that a model expects to be wrong.
        certainty: in ``[0, 1]``, how certain their class is on average.
        number: of them, at least 1.

    Returns:
        Their rate, corrected by the certainty; two standard errors of it; and the part of its own
        rate that the model can be right about. That is less than one, a third at least, where it
        expects more than there are by three standard errors and the certainty is 0.6 or more:
        then it takes right labels of hard samples for wrong ones. ``(0, 1, 1)`` where nothing
        is certain.

    Example:
        >>> from noisydml.functional.judge import rate_of_core
        >>> [round(value, 3) for value in rate_of_core(0.02, 0.08, 0.98, 1000)]
        [0.0, 0.009, 0.333]
        >>> rate_of_core(0.08, 0.08, 0.98, 1000)[2]
        1.0
    """
    if certainty == 0:
        return 0.0, 1.0, 1.0
    error = 2 * math.sqrt(max(wrong * (1 - wrong), 0.25 / number) / number)
    core, part = 1 - (1 - wrong) / certainty, 1.0
    if certainty >= _SURE and expected > max(core + 1.5 * error, 0.0):
        there = 1 - (1 - wrong) / (certainty + _UNSURE * (1 - certainty))
        part = min(max(there / expected, _LEAST_PART), 1.0)
    return core, error, part


def shift_to_mean(probability: Tensor, mean: float, weights: Tensor) -> Tensor:
    """Probabilities moved by one constant in their logit, so that their weighted mean is as given.

    Their order stays.

    Args:
        probability: (N,) floating point in ``[0, 1]``.
        mean: in ``[0, 1]``.
        weights: (N,) floating point, not negative.

    Returns:
        (N,) float64.

    Example:
        >>> import torch
        >>> from noisydml.functional.judge import shift_to_mean
        >>> shift_to_mean(torch.tensor([0.2, 0.8]), 0.8, torch.ones(2))
        tensor([0.6347, 0.9653], dtype=torch.float64)
    """
    logit = torch.special.logit(probability.double(), eps=1e-12)
    weights = weights.double() / weights.double().sum().clamp_min(_TINY)
    low, high = logit.new_full((), -60.0), logit.new_full((), 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = ((logit + middle).sigmoid() * weights).sum() > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    shifted: Tensor = (logit + low).sigmoid()
    return shifted


def mean_log_odds(probability: Tensor, other: Tensor) -> Tensor:
    """What two judges say together: the mean of the log-odds of both.

    Args:
        probability: (N,) floating point, clipped to ``[1e-6, 1 - 1e-6]``.
        other: (N,) floating point, clipped to ``[1e-6, 1 - 1e-6]``.

    Returns:
        (N,) probabilities.

    Example:
        >>> import torch
        >>> from noisydml.functional.judge import mean_log_odds
        >>> mean_log_odds(torch.tensor([0.9, 0.9]), torch.tensor([0.9, 0.1]))
        tensor([0.9000, 0.5000])
    """
    first, second = (torch.special.logit(p, 1e-6) for p in (probability, other))
    mean: Tensor = (first + second) / 2
    return mean.sigmoid()


def strict_threshold(probability: Tensor, kept: float, least: float, most: float) -> Tensor:
    """The highest threshold at which a share of the right labels is kept.

    A sample counts with the probability that its label is right, so that this share is expected,
    not known.

    Args:
        probability: (N,) floating point in ``[0, 1]``.
        kept: the share of their sum that those at or above the threshold have at least, in
            ``(0, 1]``.
        least: what the threshold is not below, even if less is kept then.
        most: what it is not above.

    Returns:
        0-dim, of the dtype of the probabilities; ``least`` where there are none.

    Example:
        >>> import torch
        >>> from noisydml.functional.judge import strict_threshold
        >>> probability = torch.tensor([0.9, 0.9, 0.7, 0.6, 0.1], dtype=torch.float64)
        >>> [strict_threshold(probability, kept, 0.5, 0.8).item() for kept in (0.5, 0.75, 1)]
        [0.8, 0.7, 0.5]
    """
    ordered = probability.sort(descending=True).values
    right = ordered.cumsum(dim=0)
    highest = torch.where(right >= kept * right[-1:], ordered, least)
    return torch.nn.functional.pad(highest, (0, 1), value=least).amax().clamp(least, most)
