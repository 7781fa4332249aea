"""A set of rows, all of which are here; :mod:`noisydml.memory.parts` has one that ranks share."""

from __future__ import annotations

from torch import Tensor


class Whole:
    """What has to be known of the rows that are elsewhere: nothing, as there are none.

    A method is called by all ranks that share the rows, and returns the same on each of them but
    for :meth:`at` and :meth:`blocks`.

    Args:
        size: number of rows, N.

    Attributes:
        size: number of rows of all ranks.
        ranks: number of these.
        start: where the rows of this rank begin among them, which stand rank by rank.
        own: the slice of them.
    """

    ranks = 1

    def __init__(self, size: int) -> None:
        self.size, self.start = size, 0
        self.own = slice(0, size)

    def everyone(self, rows: Tensor) -> Tensor:
        """What all ranks have, rank by rank, of (n, ...) rows of this one; n may be any number."""
        return rows

    def total(self, value: Tensor) -> Tensor:
        """The sum over the ranks, which may be written into the value."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum over the ranks, which may be written into the value."""
        return value

    def first(self, value: Tensor) -> Tensor:
        """The value of the first rank, so that rounding leads no two of them apart."""
        return value

    def at(self, rows: Tensor, places: Tensor) -> Tensor:
        """(M, ...) the rows at places (M,) among all, of which this rank has ``rows``."""
        return rows[places]

    def blocks(self, size: int, step: int) -> list[slice]:
        """``step`` rows at a time, of ``size`` here; as many slices as the largest rank has."""
        return [slice(start, start + step) for start in range(0, size, step)]
