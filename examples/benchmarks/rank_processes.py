"""The ranks of torch.distributed on this machine, a process each."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_START = "fork" if sys.platform == "linux" else "spawn"


def on_ranks(work: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What ``work(rank, world, *arguments)`` returned on each rank, over gloo.

    Call it before this process has trained: one that has forks none that could.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (work, world, Path(folder), arguments)
        mp.start_processes(_rank, given, nprocs=world, start_method=_START)
        return [torch.load(_found(Path(folder), rank)) for rank in range(world)]


def _rank(
    rank: int, work: Callable[..., Any], world: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    if world > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save(work(rank, world, *arguments), _found(folder, rank))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may still hold tensors, which the interpreter would tear down


def _found(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"
