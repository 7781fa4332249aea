"""What the ranks of torch.distributed have to have in common before a step."""

from __future__ import annotations

import zlib

from torch import Tensor

from noisydml import distributed
from noisydml.pml.batch import Batch


def agree_across_ranks(
    error: Exception | None,
    batch: Batch | None,
    *,
    modes: list[bool],
    eval_calls: int,
    changes: int,
    refreshed: int,
    agreed: bool,
    alone: bool,
) -> bool:
    """Raise where another rank refused its batch, or if the ranks were not called alike.

    A rank that raised alone would leave the others waiting in the next collective for ever. The
    one with the ``error`` tells the others and has it back, to raise it.

    Args:
        error: that of this rank, if it refused its batch.
        batch: of this rank, if it did not.
        modes: whether each wrapper of the nest trains.
        eval_calls: calls in eval mode with a graph since the last training call.
        changes: how often the state has changed since the ranks last had that of rank 0.
        refreshed: what tells of the samples that the last ``refresh`` was given; 0 for none.
        agreed: whether this rank has had it, and has loaded no other since.
        alone: whether one rank may load a state, which the others then take over.

    Returns:
        Whether ``agreed`` on all ranks; if not, ``changes`` are not compared.
    """
    code = int("".join(str(int(mode)) for mode in modes), base=2)
    flags = (error is not None) + 2 * agreed + 4 * eval_calls
    mine = [flags, _signature(batch), code, changes, refreshed]
    reports = distributed.exchange(mine, "the start of a call")
    if error is not None:
        return agreed
    all_flags, signatures, all_modes, all_changes, given = map(list, zip(*reports, strict=True))
    failed = [rank for rank, flags in enumerate(all_flags) if flags & 1]
    if failed:
        raise ValueError(f"rank {failed[0]} refused its batch; see the error raised there")
    if len(set(signatures)) > 1:
        raise ValueError(
            "indices_tuple, ref_emb, sample_weight and sample_ids must be given on all ranks or "
            "on none, with the same dtypes, and embeddings of the same width and dtype"
        )
    if len(set(all_modes)) > 1:
        raise RuntimeError(
            "every wrapper of a nest must be in train mode on all ranks or on none; from the "
            f"outermost, 1 for train: {', '.join(f'{m:0{len(modes)}b}' for m in all_modes)}"
        )
    if len({*given} - {0}) > 1:
        raise RuntimeError(
            "refresh must be given the same samples on all ranks, all of the data set: only a "
            "memory in parts (shard=True) takes a part of them from each"
        )
    if not all(flags & 2 for flags in all_flags):
        loaded = [rank for rank, flags in enumerate(all_flags) if not flags & 2]
        if not alone and len(loaded) < len(all_flags):
            raise RuntimeError(
                f"a state was loaded on rank {loaded[0]} and not on all ranks, each of which holds "
                "a part of a memory (shard=True): load it on all of them"
            )
        return False
    all_evals = [flags // 4 for flags in all_flags]
    if most := max(all_evals) - min(all_evals):
        raise RuntimeError(
            f"rank {all_evals.index(max(all_evals))} was in eval mode in {most} steps in which "
            "others trained; validation on one rank alone needs torch.no_grad()"
        )
    if most := max(all_changes) - min(all_changes):
        raise RuntimeError(
            f"rank {all_changes.index(max(all_changes))} is {most} steps ahead of rank "
            f"{all_changes.index(min(all_changes))}, whose state has not changed as often: an "
            "exception ended a step there, or end_epoch was not called. Load one state on all "
            "ranks to go on"
        )
    return True


def _signature(batch: Batch | None) -> int:
    """Arguments given, their dtypes and widths, as a number that other ranks can compare."""
    if batch is None:
        return -1
    given: list[Tensor | None] = [batch.embeddings, batch.ref_emb, batch.ref_labels]
    given += [batch.sample_weight, batch.sample_ids, *(batch.indices_tuple or ())]
    kinds = [None if t is None else (str(t.dtype), t.shape[1:]) for t in given]
    return zlib.crc32(repr(kinds).encode()) >> 1
