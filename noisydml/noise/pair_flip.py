"""Pair-flip label noise: every class is mistaken for the next."""

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
from noisydml.noise.draws import choose
from noisydml.noise.noisy_labels import NoisyLabels


def pair_flip(labels: Any, rate: float, *, seed: Seed = 0, exact: bool = True) -> NoisyLabels:
    r"""Move a share of the labels of every class to the next class.

    The wrong label of class c is :math:`c + 1`, of the last class the first, along the ascending
    classes that occur. This is the pair flipping of Co-teaching (Han et al., 2018): asymmetric
    noise, in which above a rate of 1/2 most labels of every class are wrong in the same way.

    Args:
        labels: (N,) integers, any values: list, numpy array or tensor. The classes are the values
            that occur.
        rate: share of wrong labels, in [0, 1].
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take an exact share of every class, rounded as in
            :func:`~noisydml.noise.uniform.uniform`; else every sample by a coin of its own.

    Returns:
        The labels as they were, but for the wrong ones. A rate of 1 renames the classes in a
        circle. A class of one sample may vanish.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``labels`` has not one dimension, ``rate`` is not in [0, 1], or there is
            one class only and ``rate`` is above 0.

    Example:
        >>> from noisydml.noise import pair_flip
        >>> pair_flip([3, 3, 5, 5, 9, 9], rate=0.5).labels
        array([3, 5, 5, 9, 3, 9])
    """
    original = read_labels("labels", labels)
    require_rate("rate", rate)
    require_flag("exact", exact)
    rng = generator(seed)
    classes, codes = np.unique(original, return_inverse=True)
    require_two_classes(rate, len(classes), len(original))

    is_noisy = choose(rng, codes, len(classes), rate, exact)
    given = np.where(is_noisy, np.roll(classes, -1)[codes], original)
    return NoisyLabels(given, is_noisy, original, "pair_flip", rate)
