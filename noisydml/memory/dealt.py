"""How the entries of a memory are dealt to the ranks of torch.distributed."""

from __future__ import annotations

import torch
from torch import Tensor

from noisydml import distributed


class Dealt:
    """Entry i of a memory is entry ``i // R`` of rank ``i % R``, of R; of a whole one R is 1.

    Where ranks meet they all call, and nobody waits alone: each tells the others first that it is
    there, and raises what they have raised.

    Args:
        size: entries of the whole memory, M.
        shard: whether each rank holds a part. torch.distributed is initialised by then.

    Attributes:
        rank, ranks: whose part this is, and of how many; 0 and 1 of a whole.
        part_size: entries of a part, the same on all ranks; the last may stay empty.
    """

    def __init__(self, size: int, shard: bool) -> None:
        self.size, self.shard = size, shard
        self.rank, self.ranks = _place(shard)
        self.part_size = -(-size // self.ranks)

    def require_ranks(self) -> None:
        """Raise RuntimeError if the ranks are not those that the memory was made for."""
        now = _place(self.shard)
        if now != (self.rank, self.ranks):
            raise RuntimeError(
                f"shard=True was given on rank {self.rank} of {self.ranks}, and this is rank "
                f"{now[0]} of {now[1]}: make the wrapper after torch.distributed is initialised"
            )

    def require_same(self, total: int, width: int) -> None:
        """Raise RuntimeError unless all parts have seen as many entries of one width."""
        reports = self.exchange([total, width])
        for rank, report in enumerate(reports):
            if report != reports[0]:
                raise RuntimeError(
                    f"the part of a memory on rank {rank} has seen {report[0]} entries of width "
                    f"{report[1]}, that on rank 0 {reports[0][0]} of width {reports[0][1]}: load "
                    "one state on all ranks"
                )

    def exchange(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every rank."""
        return distributed.exchange(numbers, distributed.MEETING)

    def numbers(self, device: torch.device) -> Tensor:
        """Which entries of the memory those of this part are; the last of a part may be none."""
        return torch.arange(self.rank, self.size, self.ranks, device=device)

    def mine(self, entries: Tensor) -> Tensor:
        """(B,) bool, which entries this rank holds."""
        return entries.remainder(self.ranks) == self.rank

    def part_of(self, rows: Tensor, fill: float) -> Tensor:
        """This rank's of the rows of a whole memory, (M, ...); ``fill`` in what stays empty."""
        if self.ranks == 1:
            return rows
        part = rows.new_full((self.part_size, *rows.shape[1:]), fill)
        own = rows[self.rank :: self.ranks]
        part[: len(own)] = own
        return part

    def to_write(self, entries: Tensor, fresh: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """Where in this part rows go, whether they do, and the rows.

        In the place of those of other ranks the first of its own stands once more, so that no
        shape depends on how many there are.
        """
        if self.ranks == 1:
            return entries, fresh, *rows
        own = self.mine(entries)
        place = torch.where(own, torch.arange(len(own), device=own.device), own.long().argmax())
        taken = (each.index_select(0, place) for each in rows)
        return entries.take(place) // self.ranks, (fresh & own).take(place), *taken

    def at(self, entries: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """Rows at some entries, (B,), from the ranks that hold them; all ranks ask for the same."""
        if self.ranks == 1:
            return tuple(rows.index_select(0, entries) for rows in parts)
        other = self.mine(entries).logical_not()
        found = [rows.index_select(0, entries // self.ranks) for rows in parts]
        for i, rows in enumerate(found):
            exact = torch.promote_types(rows.dtype, torch.float32)
            rows = rows.to(exact) if rows.is_floating_point() else rows
            found[i] = rows.masked_fill(other.view(-1, *[1] * (rows.ndim - 1)), 0)
        self.exchange([0])
        distributed.sum_over_ranks(found)  # of which all but one are zeros
        return tuple(found)

    def of_all_parts(self, values: Tensor) -> Tensor:
        """(M,) on every rank, from what each has for its :meth:`numbers`; all ranks call it."""
        if self.ranks == 1:
            return values
        self.exchange([0])
        sizes = [len(range(rank, self.size, self.ranks)) for rank in range(self.ranks)]
        (found,) = distributed.gather_rows([values], sizes)
        whole = torch.empty_like(found)
        for rank, part in enumerate(torch.split(found, sizes)):
            whole[rank :: self.ranks] = part
        return whole

    def whole_on_first(self, part: Tensor) -> Tensor | None:
        """(M, ...) on the CPU of rank 0 the rows of all parts, None elsewhere; all call it."""
        parts = distributed.gather_to_first(part)
        return None if parts is None else parts.flatten(0, 1)[: self.size]


def _place(shard: bool) -> tuple[int, int]:
    """This rank and the number of ranks of a memory in parts; 0 and 1 of a whole one."""
    return (distributed.rank(), distributed.world_size()) if shard else (0, 1)
