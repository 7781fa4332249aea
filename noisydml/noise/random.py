"""Random choices made from uniform numbers alone.

numpy promises the stream of ``PCG64`` for ever, but not that of each method of ``Generator``.
Everything random in this package is computed from ``Generator.random``, 53 bits of the stream
each, by operations that every platform rounds alike, so a seed means the same noise everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Seed = int | np.random.Generator

_FUZZ = 1e-6  # keeps sums off the integers, where the rounding of rate * n would decide


def generator(seed: Seed) -> np.random.Generator:
    """The generator itself, or a new PCG64 generator from an integer of 0 or more.

    ``None`` is refused: noise that cannot be drawn again cannot be compared.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(
            f"seed must be an integer or a numpy.random.Generator, got {type(seed).__name__}"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return np.random.Generator(np.random.PCG64(int(seed)))


def below(rng: np.random.Generator, bound: Integers) -> Integers:
    """A uniform integer in [0, bound) for every entry of ``bound``, all of them at least 1."""
    return (rng.random(bound.shape) * bound).astype(np.int64)


def shuffled(rng: np.random.Generator, n: int) -> Integers:
    """The numbers 0 to n - 1 in random order."""
    return np.argsort(rng.random(n), kind="stable")


def other_than(rng: np.random.Generator, own: Integers, bound: int | Integers) -> Integers:
    """A uniform integer in [0, bound) other than ``own``, for every entry of ``own``."""
    drawn = below(rng, np.broadcast_to(np.asarray(bound) - 1, own.shape))
    return drawn + (drawn >= own)


def choose(
    rng: np.random.Generator, codes: Integers, rate: float, exact: bool
) -> NDArray[np.bool_]:
    """Which samples get a wrong label: (N,) bool for the (N,) ``codes`` of their classes.

    With ``exact`` the share ``rate`` of every class (see :func:`exact_counts`), else every sample
    by a coin of its own.
    """
    keys = rng.random(len(codes))
    if not exact:
        return keys < rate
    sizes = np.bincount(codes)
    counts = exact_counts(rng, sizes, rate)
    order = np.lexsort((keys, codes))  # class by class, at random within each
    start = np.cumsum(sizes) - sizes
    in_class = codes[order]
    chosen = np.zeros(len(codes), dtype=np.bool_)
    chosen[order] = np.arange(len(codes)) - start[in_class] < counts[in_class]
    return chosen


def exact_counts(rng: np.random.Generator, sizes: Integers, rate: float) -> Integers:
    r"""How many samples of every class: the share of each, and of all together, rounded.

    With :math:`T_j = r \sum_{i \le j} n_i` along a random order of the classes, class j gets
    :math:`\lfloor T_j + u \rfloor - \lfloor T_{j-1} + u \rfloor`: its share rounded down or up,
    up with a probability of about the fraction. This is systematic sampling. The offset u is
    drawn such that the total is :math:`r N` rounded to the nearest integer, halves up.
    """
    order = shuffled(rng, len(sizes))
    wanted = rate * np.cumsum(sizes[order])
    total = wanted[-1] if len(sizes) else 0.0
    target = np.floor(total + 0.5 + _FUZZ)
    low = max(0.0, target - total)
    high = min(1.0, target + 1 - total)
    offset = low + (high - low) * (_FUZZ + (1 - 2 * _FUZZ) * rng.random())
    reached = np.floor(wanted + offset).astype(np.int64)
    counts = np.empty(len(sizes), dtype=np.int64)
    counts[order] = np.diff(reached, prepend=0)
    return counts
