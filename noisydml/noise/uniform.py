"""Uniform label noise: a wrong label is any other class."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisydml.noise.checks import (
    Seed,
    generator,
    read_labels,
    require_flag,
    require_rate,
    require_two_classes,
)
from noisydml.noise.draws import choose, other_than
from noisydml.noise.noisy_labels import NoisyLabels


def uniform(labels: Any, rate: float, *, seed: Seed = 0, exact: bool = True) -> NoisyLabels:
    r"""Move a share of the labels to other classes, all of them equally likely.

    With C classes a chosen sample of class i is given each class :math:`j \ne i` with
    probability :math:`1 / (C - 1)`: symmetric noise (van Rooyen et al., 2015), the "symmetric"
    noise of PRISM and the "uniform" noise of ProcSim and TITAN. Never is the own class drawn, so
    the rate is the share of labels that are wrong.

    Args:
        labels: (N,) integers, any values: list, numpy array or tensor. The classes are the values
            that occur.
        rate: share of wrong labels, in [0, 1].
        seed: integer of 0 or more, or a ``numpy.random.Generator``. The same seed gives the same
            noise on any platform.
        exact: take an exact share of every class. A class of n samples has :math:`r n` wrong
            labels, rounded down or up, such that all classes together have :math:`r N`, rounded
            to the nearest integer. With False every sample is chosen by a coin of its own
            (Bernoulli).

    Returns:
        The labels as they were, but for the wrong ones. A rate of 1 makes every label wrong, a
        rate of 0 none. A class of one sample may vanish, which ``vanished`` lists.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``labels`` has not one dimension, ``rate`` is not in [0, 1], or there is
            one class only and ``rate`` is above 0.

    Example:
        >>> from noisydml.noise import uniform
        >>> noisy = uniform([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], rate=0.25)
        >>> noisy.labels
        array([0, 0, 0, 2, 1, 1, 2, 1, 2, 2, 2, 0])
        >>> noisy.original[noisy.is_noisy]
        array([0, 1, 2])
    """
    original = read_labels("labels", labels)
    require_rate("rate", rate)
    require_flag("exact", exact)
    rng = generator(seed)
    classes, codes = np.unique(original, return_inverse=True)
    require_two_classes(rate, len(classes), len(original))

    is_noisy = choose(rng, codes, len(classes), rate, exact)
    given = original.copy()
    given[is_noisy] = classes[other_than(rng, codes[is_noisy], len(classes))]
    return NoisyLabels(given, is_noisy, original, "uniform", rate)
