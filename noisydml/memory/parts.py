"""A set of rows of which every rank of torch.distributed holds some."""

from __future__ import annotations

from torch import Tensor

from noisydml import distributed
from noisydml.functional.parts import Whole


class Parts(Whole):
    """The rows of this rank and of the others; see :class:`Whole`.

    Before anything crosses the ranks tell each other where they are, so that where one of them was
    stopped by an exception the others raise instead of waiting for it.

    Args:
        size: number of rows that this rank holds, which may differ from rank to rank.
    """

    def __init__(self, size: int) -> None:
        sizes = distributed.number_of_each(size)
        super().__init__(sum(sizes))
        self.ranks = len(sizes)
        self.start = sum(sizes[: distributed.rank()])
        self.own = slice(self.start, self.start + size)

    def everyone(self, rows: Tensor) -> Tensor:
        sizes = distributed.number_of_each(len(rows))
        if sum(sizes) == 0:
            return rows
        (found,) = distributed.gather_rows([rows], sizes)
        return found

    def total(self, value: Tensor) -> Tensor:
        distributed.number_of_each(0)
        value = value.contiguous()
        distributed.sum_over_ranks([value])
        return value

    def largest(self, value: Tensor) -> Tensor:
        distributed.number_of_each(0)
        return distributed.largest(value)

    def first(self, value: Tensor) -> Tensor:
        distributed.number_of_each(0)
        value = value.contiguous()
        distributed.broadcast_from_first([value])
        return value

    def at(self, rows: Tensor, places: Tensor) -> Tensor:
        sizes = distributed.number_of_each(len(places))
        if sum(sizes) == 0:
            return rows[:0]
        (asked,) = distributed.gather_rows([places], sizes)
        here = (asked >= self.own.start) & (asked < self.own.stop)
        answers = rows.new_zeros(len(asked), *rows.shape[1:])
        answers[here] = rows[asked[here] - self.start]
        # One rank has each row, the others zeros.
        return distributed.deal_rows(answers, sizes).sum(dim=0, dtype=rows.dtype)

    def blocks(self, size: int, step: int) -> list[slice]:
        most = max(distributed.number_of_each(size))
        return [slice(min(start, size), min(start + step, size)) for start in range(0, most, step)]
