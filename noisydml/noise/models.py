"""Noise from the labels alone: uniform, pair flip, and in the largest or rarest classes only."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from noisydml.functional.checks import require_share
from noisydml.noise.checks import begin
from noisydml.noise.noisy_labels import NoisyLabels, put_back
from noisydml.noise.random import Seed, choose, other_than, shuffled


def uniform(
    labels: Any, rate: float, *, seed: Seed = 0, exact: bool = True, spare: Any = None
) -> NoisyLabels:
    r"""Move a share of the labels to other classes, all of them equally likely.

    A chosen sample is given each of the C - 1 other classes with the same probability: symmetric
    noise (van Rooyen et al., 2015), the "symmetric" noise of PRISM and the "uniform" noise of
    ProcSim and TITAN. The classes are the values that occur.

    Args:
        labels: (N,) integers, -1 for none: list, numpy array or tensor.
        rate: r, the share of wrong labels, in [0, 1].
        seed: integer of 0 or more, or a ``numpy.random.Generator``. An integer gives the same
            noise on any platform.
        exact: make :math:`r n` of the n labels of every class wrong, rounded down or up, and
            :math:`r N` of all, rounded to the nearest integer. With False every sample is chosen
            by a coin of its own (Bernoulli).
        spare: (N,) bool, the rows to leave alone, such as those of a validation set; None for
            none. Neither they nor rows without a label count in ``rate`` or among the classes.

    Returns:
        The labels as they were, but for the wrong ones. Small classes may vanish.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or there is one class only and a rate above 0.

    Example:
        >>> from noisydml.noise import uniform
        >>> noisy = uniform([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], rate=0.25)
        >>> noisy.labels
        array([0, 0, 0, 2, 1, 1, 2, 1, 2, 2, 2, 0])
        >>> noisy.original[noisy.is_noisy]
        array([0, 1, 2])
    """
    original, counted, classes, codes, rng = begin(labels, rate, seed, spare, exact=exact)
    is_noisy = choose(rng, codes, rate, exact)
    given = classes[codes]
    given[is_noisy] = classes[other_than(rng, codes[is_noisy], len(classes))]
    return put_back(original, counted, given, "uniform", rate)


def pair_flip(
    labels: Any, rate: float, *, seed: Seed = 0, exact: bool = True, spare: Any = None
) -> NoisyLabels:
    r"""Move a share of the labels of every class to the next class.

    The wrong label of a class is the next greater value that occurs, that of the last class the
    first. This is the pair flipping of Co-teaching (Han et al., 2018): asymmetric noise, in which
    above a rate of 1/2 most labels of every class are wrong in the same way.

    Args:
        labels: (N,) integers, -1 for none: list, numpy array or tensor.
        rate: share of wrong labels, in [0, 1]. A rate of 1 renames the classes in a circle.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take an exact share of every class, up to rounding. With False every sample is
            chosen by a coin of its own.
        spare: (N,) bool, the rows to leave alone, such as those of a validation set; None for
            none. Neither they nor rows without a label count in ``rate`` or among the classes.

    Returns:
        The labels as they were, but for the wrong ones. Small classes may vanish.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or there is one class only and a rate above 0.

    Example:
        >>> from noisydml.noise import pair_flip
        >>> pair_flip([3, 3, 5, 5, 9, 9], rate=0.5).labels
        array([3, 5, 5, 9, 3, 9])
    """
    original, counted, classes, codes, rng = begin(labels, rate, seed, spare, exact=exact)
    is_noisy = choose(rng, codes, rate, exact)
    given = np.where(is_noisy, np.roll(classes, -1)[codes], classes[codes])
    return put_back(original, counted, given, "pair_flip", rate)


def class_frequency(
    labels: Any,
    rate: float,
    *,
    which: Literal["largest", "rarest"] = "largest",
    share: float = 0.5,
    within: bool = True,
    seed: Seed = 0,
    exact: bool = True,
    spare: Any = None,
) -> NoisyLabels:
    r"""Make labels of the largest or of the rarest classes wrong, and no others.

    The idea is that of Dereka et al. (Deep Image Retrieval is not Robust to Label Noise, 2022),
    as ProcSim (section 2) sums it up. How many classes that are, and that wrong labels are drawn
    uniformly, is decided here.

    Args:
        labels: (N,) integers, -1 for none: list, numpy array or tensor.
        rate: share of wrong labels among *all* N, in [0, 1].
        which: ``"largest"`` or ``"rarest"`` classes.
        share: share of the classes that count as such, in (0, 1]; rounded up to whole classes,
            two at least. Classes of equal size are ranked at random.
        within: draw wrong labels from the group only. With False from all classes.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take an exact share of every class of the group, up to rounding. With False every
            sample of the group is chosen by a coin of its own.
        spare: (N,) bool, the rows to leave alone, such as those of a validation set; None for
            none. Neither they nor rows without a label count in ``rate`` or among the classes.

    Returns:
        The labels as they were, but for the wrong ones.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, the group has fewer than ``rate`` of all
            samples (the message says how many), or there is one class only and a rate above 0.

    Example:
        >>> from noisydml.noise import class_frequency
        >>> labels = [0] * 6 + [1] * 4 + [2] * 2 + [3]
        >>> class_frequency(labels, rate=0.3, which="largest", share=0.5).labels
        array([0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 2, 2, 3])
        >>> class_frequency(labels, rate=0.2, which="rarest", share=0.5).labels
        array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 2])
    """
    original, counted, classes, codes, rng = begin(
        labels, rate, seed, spare, within=within, exact=exact
    )
    if which not in ("largest", "rarest"):
        raise ValueError(f"which must be 'largest' or 'rarest', got {which!r}")
    require_share("share", share)
    if share == 0:
        raise ValueError("share must be above 0, got 0")
    n_labels, n_classes = len(codes), len(classes)

    # The ranks of the classes: the group has the ranks 0 to n_group - 1.
    sizes = np.bincount(codes)
    order = np.lexsort((shuffled(rng, n_classes), sizes if which == "rarest" else -sizes))
    ranks = np.argsort(order)[codes]  # (N,)
    n_group = min(n_classes, max(2, int(np.ceil(share * n_classes - 1e-9))))
    in_group = ranks < n_group
    n_inside = int(in_group.sum())
    wanted = rate * n_labels
    if wanted > n_inside + 1e-9 * n_labels:  # 0.55 * 100 is more than 55
        raise ValueError(
            f"rate must be at most {n_inside / n_labels}, the share of all samples in "
            f"the {n_group} {which} classes, got {rate}; make share larger"
        )

    is_noisy = np.zeros(n_labels, dtype=np.bool_)
    if n_inside:
        share_inside = min(1.0, wanted / n_inside)
        is_noisy[in_group] = choose(rng, ranks[in_group], share_inside, exact)
    given = classes[codes]
    bound = n_group if within else n_classes
    given[is_noisy] = classes[order][other_than(rng, ranks[is_noisy], bound)]
    return put_back(original, counted, given, f"class_frequency, {which}", rate)
