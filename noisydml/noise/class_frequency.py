"""Class-frequency label noise: only the largest or the rarest classes are corrupted."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from noisydml.noise.checks import (
    Seed,
    generator,
    read_labels,
    require_flag,
    require_rate,
    require_two_classes,
)
from noisydml.noise.draws import choose, other_than, shuffled
from noisydml.noise.noisy_labels import NoisyLabels


def class_frequency(
    labels: Any,
    rate: float,
    *,
    which: Literal["largest", "rarest"] = "largest",
    share: float = 0.5,
    within: bool = True,
    seed: Seed = 0,
    exact: bool = True,
) -> NoisyLabels:
    r"""Make labels of the largest or of the rarest classes wrong, and no others.

    The idea is that of Dereka et al. (Deep Image Retrieval is not Robust to Label Noise, 2022),
    as ProcSim (section 2) sums it up: only the most frequent or the rarest classes are corrupted,
    which restricts the labels that can be assigned. How many classes that are, and that wrong
    labels are drawn uniformly, is decided here.

    Args:
        labels: (N,) integers, any values: list, numpy array or tensor. The classes are the values
            that occur.
        rate: share of wrong labels among *all* N, as in the other models, in [0, 1].
        which: ``"largest"`` or ``"rarest"`` classes.
        share: share of the classes that count as such, in (0, 1]; rounded up to whole classes,
            two at least. Classes of equal size are ranked at random.
        within: draw the wrong labels from the other classes of that group. With False from all
            other classes.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take the same share of every class of the group, rounded as in
            :func:`~noisydml.noise.uniform.uniform`; else every sample of the group by a coin of
            its own.

    Returns:
        The labels as they were, but for the wrong ones.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or the group has fewer than ``rate`` of all
            samples (the message says how many it has), or there is one class only and ``rate`` is
            above 0.

    Example:
        >>> from noisydml.noise import class_frequency
        >>> labels = [0] * 6 + [1] * 4 + [2] * 2 + [3]
        >>> class_frequency(labels, rate=0.3, which="largest", share=0.5).labels
        array([0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 2, 2, 3])
        >>> class_frequency(labels, rate=0.2, which="rarest", share=0.5).labels
        array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 2])
    """
    original = read_labels("labels", labels)
    require_rate("rate", rate)
    if which not in ("largest", "rarest"):
        raise ValueError(f"which must be 'largest' or 'rarest', got {which!r}")
    require_rate("share", share)
    if share == 0:
        raise ValueError("share must be above 0, got 0")
    require_flag("within", within)
    require_flag("exact", exact)
    rng = generator(seed)
    classes, codes, sizes = np.unique(original, return_inverse=True, return_counts=True)
    n_classes = len(classes)
    require_two_classes(rate, n_classes, len(original))

    # The ranks of the classes: the group has the ranks 0 to n_group - 1.
    tie = shuffled(rng, n_classes)
    rank = np.empty(n_classes, dtype=np.int64)
    rank[np.lexsort((tie, sizes if which == "rarest" else -sizes))] = np.arange(n_classes)
    n_group = min(n_classes, max(2, int(np.ceil(share * n_classes - 1e-9))))
    ranks = rank[codes]  # (N,)
    in_group = ranks < n_group
    n_inside = int(in_group.sum())
    wanted = rate * len(original)
    if wanted > n_inside + 1e-9 * len(original):  # 0.55 * 100 is more than 55
        raise ValueError(
            f"rate must be at most {n_inside / len(original):.2g}, the share of all samples in "
            f"the {n_group} {which} classes, got {rate}; make share larger"
        )

    is_noisy = np.zeros(len(original), dtype=np.bool_)
    if n_inside:
        share_inside = min(1.0, wanted / n_inside)
        is_noisy[in_group] = choose(rng, ranks[in_group], n_group, share_inside, exact)
    by_rank = np.empty_like(classes)
    by_rank[rank] = classes
    given = original.copy()
    bound = n_group if within else n_classes
    given[is_noisy] = by_rank[other_than(rng, ranks[is_noisy], bound)]
    return NoisyLabels(given, is_noisy, original, f"class_frequency, {which}", rate)
