"""What crosses ranks: collectives for batches of uneven sizes, and the batch of all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from noisydml.pml.batch import Batch

_BLOCK = 65_536  # rows that cross at once
_NUMBERS = 7  # integers that cross at once

# Where the ranks meet. Each says at which it is, so that nobody takes for his own the numbers of
# one whom an exception has led elsewhere.
MEETING = "a part of a memory"
_POINTS = (
    "the start of a call", "the gathering of rows", MEETING, "a label audit",
    "the taking over of a state",
)  # fmt: skip


def world_size() -> int:
    """Number of ranks; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def exchange(numbers: list[int], at: str) -> list[list[int]]:
    """The integers of every rank, in rank order. One host synchronisation for each seven.

    Args:
        numbers: as many on all ranks.
        at: where this rank is, one of ``_POINTS``.

    Raises:
        RuntimeError: on all ranks, if one of them is at another point.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found: list[list[int]] = [[] for _ in range(world_size())]
    for start in range(0, len(numbers), _NUMBERS):
        some = numbers[start : start + _NUMBERS]
        padding = [0] * (_NUMBERS - len(some))
        mine = torch.tensor([_POINTS.index(at), *some, *padding], device=device)
        everyone = [torch.empty_like(mine) for _ in found]
        dist.all_gather(everyone, mine)
        reports = torch.stack(everyone).tolist()
        places = [_POINTS[report[0]] for report in reports]
        for number, place in enumerate(places):
            if place != places[0]:
                raise RuntimeError(
                    f"the ranks have parted: rank 0 is at {places[0]} and rank {number} at "
                    f"{place}, as after an exception that ended a call on one of them"
                )
        for numbers_of, report in zip(found, reports, strict=True):
            numbers_of += report[1 : 1 + len(some)]
    return found


def number_of_each(number: int, at: str = MEETING) -> list[int]:
    """What :func:`exchange` has of a single number, in rank order."""
    return [each for (each,) in exchange([number], at)]


def gather_rows(tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Rows of all ranks, in rank order, on every rank; all tensors in one collective.

    Gradients flow back into this rank's own rows, times the number of ranks: where every rank
    computes the same loss from the gathered rows, averaging the parameters' gradients over the
    ranks (as DistributedDataParallel does) then gives those of one process with the whole batch.

    Args:
        tensors: (B_r, ...) each; only the first dimension may differ between ranks.
        sizes: every rank's ``B_r``.

    Returns:
        (sum of sizes, ...) each. On the wire: ``max(sizes)`` rows from every rank.
    """
    return list(_GatherRows.apply(sizes, *tensors))  # type: ignore[no-untyped-call]


def sum_over_ranks(tensors: list[Tensor]) -> None:
    """Replace the tensors, in place, by their sums over the ranks."""
    for tensor in tensors:
        dist.all_reduce(tensor)


def largest(value: Tensor) -> Tensor:
    """The largest of a tensor's values over the ranks, written into it."""
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def deal_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """What every rank has to say to this one.

    Args:
        rows: (sum of sizes, ...) tensor, first the rows for rank 0, then those for rank 1, ...
        sizes: how many rows each rank gets, ``B_r``, the same on all ranks.

    Returns:
        (R, B_r, ...) tensor. On the wire: each row goes to one rank.
    """
    received = rows.new_empty(world_size(), sizes[rank()], *rows.shape[1:])
    splits = [sizes[rank()]] * world_size()
    dist.all_to_all_single(received.flatten(0, 1), rows.contiguous(), splits, sizes)
    return received


@contextmanager
def together() -> Iterator[None]:
    """Whatever raises on one rank raises on all, so that nobody waits in the next collective."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = number_of_each(int(error is not None))
    if error is not None:
        raise error
    if 1 in failed:
        raise RuntimeError(f"rank {failed.index(1)} failed; see the error raised there")


def gather_to_first(rows: Tensor) -> Tensor | None:
    """(N, R, ...) on the CPU of rank 0, the (N, ...) rows of every rank; None on the others.

    Sent in blocks, so that a device holds no more than one of them beside its own rows.
    """
    first = rank() == 0
    shape = (len(rows), world_size(), *rows.shape[1:])
    found = torch.empty(shape, dtype=rows.dtype) if first else None
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].contiguous()
        parts = [torch.empty_like(block) for _ in range(world_size())] if first else None
        dist.gather(block, parts)
        if found is not None and parts is not None:
            found[start : start + _BLOCK] = torch.stack(parts, dim=1)
    return found


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """The state of a module whose memories are in parts, as one process would have it.

    What ``state_dict`` returns is this rank's part, which loads on the same rank of as many ranks.
    What this returns loads into any number of ranks, with ``shard=True`` or without. All ranks call
    it, and all of them load what was saved.

    Args:
        module: any module, such as a wrapper or what contains one.

    Returns:
        On rank 0 the ``state_dict``, with what was gathered on the CPU; on the others it is empty.

    Example:
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import KNNDenoiser
        >>> from noisydml.distributed import full_state_dict
        >>> loss_fn = KNNDenoiser(ContrastiveLoss(), memory_size=10, embedding_size=4, shard=True)
        >>> full_state_dict(loss_fn)["memory.features"].shape
        torch.Size([10, 4])
    """
    for part in module.modules():
        catch_up = getattr(part, "catch_up", None)  # on what is over, where all ranks meet
        if catch_up is not None:
            catch_up()
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        if hasattr(part, "full_state"):
            state |= part.full_state(f"{name}." if name else "")
    return state if rank() == 0 else {}


def broadcast_from_first(tensors: list[Tensor]) -> None:
    """Overwrite the tensors, in place, with those of rank 0."""
    for tensor in tensors:
        dist.broadcast(tensor.data, src=0)


def take_over_from_first(module: nn.Module) -> None:
    """Give a module the state of rank 0's, as by loading its ``state_dict``; parts stay apart."""
    if _in_parts(module):
        return
    if any(map(_in_parts, module.modules())):
        broadcast_from_first([*module.buffers(recurse=False)])
        for child in module.children():
            take_over_from_first(child)
        return
    state = module.state_dict()
    if not state:
        return
    names = [name for name, value in state.items() if isinstance(value, Tensor)]
    sizes = exchange([state[name].numel() for name in names], "the taking over of a state")[0]
    for name, size in zip(names, sizes, strict=True):
        mine = state[name]
        if mine.numel() != size:  # features of a width that only rank 0 knows yet
            state[name] = mine.new_empty(len(mine), size // len(mine))
    broadcast_from_first([state[name] for name in names])
    others = [name for name in state if name not in names]
    if others:
        values = [state[name] for name in others]
        dist.broadcast_object_list(values, src=0)
        state.update(zip(others, values, strict=True))
    module.load_state_dict(state)


def _in_parts(module: nn.Module) -> bool:
    ranks: Any = getattr(module, "ranks", 1)
    return hasattr(module, "full_state") and ranks > 1  # a head may have such a name, too


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        start, mine = sum(sizes[: rank()]), sizes[rank()]
        ctx.own = slice(start, start + mine)
        packed = [_bytes(rows) for rows in tensors]
        widths = [rows.shape[1] for rows in packed]
        padded = packed[0].new_zeros(max(sizes), sum(widths))
        padded[:mine] = torch.cat(packed, dim=1)
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        received = torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])
        return tuple(  # copies, as a single row that begins anywhere is contiguous, too
            part.clone(memory_format=torch.contiguous_format)
            .view(rows.dtype)
            .reshape(-1, *rows.shape[1:])
            for part, rows in zip(torch.split(received, widths, dim=1), tensors, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        own = [g[ctx.own] * world_size() if n else None for g, n in zip(grads, needed, strict=True)]
        return None, *own


def _bytes(rows: Tensor) -> Tensor:
    """(B, bytes of a row) of a tensor (B, ...)."""
    rows = rows.contiguous().reshape(len(rows), math.prod(rows.shape[1:]))
    if rows.stride(1) != 1:  # a single column is contiguous however far apart its rows are
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.view(torch.uint8)


def gather_batch(batch: Batch) -> Batch:
    """The batch of all ranks' rows, in rank order, on every rank."""
    if batch.first_own is not None or world_size() == 1:
        return batch
    counts = [len(batch), batch.num_refs, *map(len, batch.indices_tuple or ())]
    sizes, ref_sizes, *column_sizes = map(
        list, zip(*exchange(counts, "the gathering of rows"), strict=True)
    )
    start, ref_start = sum(sizes[: rank()]), sum(ref_sizes[: rank()])
    columns: list[Tensor] = []  # of pairs or triplets, pointing into the gathered rows
    for in_batch, in_ref in batch.index_columns():
        columns += [column + start for column in in_batch]
        columns += [column + ref_start for column in in_ref]
    gathered: dict[str, Any] = _gather(batch.per_row(), sizes)
    if batch.ref_emb is not None and batch.ref_labels is not None:
        references = {"ref_emb": batch.ref_emb, "ref_labels": batch.ref_labels}
        gathered |= _gather(references, ref_sizes)
    if columns:
        pairs = zip(columns, column_sizes, strict=True)
        gathered["indices_tuple"] = tuple(gather_rows([c], s)[0] for c, s in pairs)
    return replace(batch.changed(**gathered), first_own=start)


def _gather(tensors: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    return dict(zip(tensors, gather_rows([*tensors.values()], sizes), strict=True))
