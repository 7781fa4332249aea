"""The collectives of torch.distributed that the wrappers use, for batches of uneven sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def exchange(numbers: list[int]) -> list[list[int]]:
    """The integers of every rank, in rank order. Eight bytes each, one host synchronisation."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    return [[int(number) for number in numbers] for numbers in torch.stack(everyone).tolist()]


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all ranks, in rank order, on every rank.

    Gradients flow back into this rank's own rows, times the number of ranks: where every rank
    computes the same loss from the gathered rows, averaging the parameters' gradients over the
    ranks (as DistributedDataParallel does) then gives those of one process with the whole batch.

    Args:
        rows: (B_r, ...) tensor; only the first dimension may differ between ranks.
        sizes: every rank's ``B_r``.

    Returns:
        (sum of sizes, ...) tensor. On the wire: ``max(sizes)`` rows from every rank.
    """
    gathered: Tensor = _GatherRows.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return gathered


def broadcast_from_first(tensors: list[Tensor]) -> None:
    """Overwrite the tensors, in place, with those of rank 0."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        start = sum(sizes[: rank()])
        ctx.own = slice(start, start + len(rows))
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output[ctx.own] * world_size(), None
