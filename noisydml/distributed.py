"""What crosses ranks: collectives for batches of uneven sizes, and the batch of all ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from noisydml.pml.batch import Batch


def world_size() -> int:
    """Number of ranks; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def exchange(numbers: list[int], dtype: torch.dtype = torch.int64) -> list[list[int]]:
    """The integers of every rank, in rank order. One host synchronisation."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.tensor(numbers, dtype=dtype, device=device)
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
        dist.broadcast(tensor.data, src=0)


def take_over_from_first(module: nn.Module) -> None:
    """Give a module the state of rank 0's, as by loading its ``state_dict``."""
    state = module.state_dict()
    names = [name for name, value in state.items() if isinstance(value, Tensor)]
    if not names:
        return
    sizes = exchange([state[name].numel() for name in names])[0]
    for name, size in zip(names, sizes, strict=True):
        mine = state[name]
        if mine.numel() != size:  # features of a width that only rank 0 knows yet
            state[name] = mine.new_empty(len(mine), size // len(mine))
    broadcast_from_first([state[name] for name in names])
    module.load_state_dict(state)


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


def gather_batch(batch: Batch) -> Batch:
    """The batch of all ranks' rows, in rank order, on every rank."""
    if batch.first_own is not None or world_size() == 1:
        return batch
    counts = [len(batch), batch.num_refs, *map(len, batch.indices_tuple or ())]
    sizes, ref_sizes, *column_sizes = map(list, zip(*exchange(counts), strict=True))
    start, ref_start = sum(sizes[: rank()]), sum(ref_sizes[: rank()])
    columns: list[Tensor] = []  # of pairs or triplets, pointing into the gathered rows
    for in_batch, in_ref in batch.index_columns():
        columns += [column + start for column in in_batch]
        columns += [column + ref_start for column in in_ref]
    ref_emb, ref_labels = batch.ref_emb, batch.ref_labels
    return replace(
        batch.map_rows(lambda rows: gather_rows(rows, sizes)),
        indices_tuple=tuple(map(gather_rows, columns, column_sizes)) or None,
        ref_emb=None if ref_emb is None else gather_rows(ref_emb, ref_sizes),
        ref_labels=None if ref_labels is None else gather_rows(ref_labels, ref_sizes),
        first_own=start,
    )
