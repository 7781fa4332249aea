"""The ranks of a process group, a process each, for tests."""

from __future__ import annotations

import inspect
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from noisydml.memory import judge

START = "forkserver"
# What every process would wait for, once for all; optimisers need the compiler's package.
mp.set_forkserver_preload(["noisydml", "pytorch_metric_learning.losses", "torch._dynamo"])


def run_ranks(train: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``train(rank, world, *arguments)`` returned on each rank; gloo, one thread a rank.

    It may stand in the test's own file: each rank runs that file for itself, to have it. The judge
    of each holds out as many labels as that of this process.
    """
    file, name = inspect.getfile(train), train.__name__
    given = (world, str(folder), file, name, judge.ASKED, arguments)
    mp.start_processes(_rank, args=given, nprocs=world, start_method=START)
    return [torch.load(_result(folder, rank), weights_only=False) for rank in range(world)]


def run_resumed(
    resume: Callable[..., Any], world: int, folder: Path, states: dict[str, Any]
) -> list[Any]:
    """What ``resume(rank, world, path)`` returned on each rank, with the states in a file there."""
    torch.save(states, folder / "saved.pt")
    return run_ranks(resume, world, folder, str(folder / "saved.pt"))


def message(call: Callable[[], object]) -> str:
    """What this rank is told."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _rank(
    rank: int, world: int, folder: str, file: str, name: str, asked: int, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    judge.ASKED = asked
    train = runpy.run_path(file)[name]
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save(train(rank, world, *arguments), _result(Path(folder), rank))
    dist.barrier()
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors here. If the interpreter is torn down under them, the
    # process aborts now and then (https://github.com/pytorch/pytorch/pull/179291); so it is not.
    os._exit(0)


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"
