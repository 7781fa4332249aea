"""What each rank of a process group runs in test_ranks.py; importable by the spawned processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from contract.cases import CASES, WIDTH, build, chain, make_batch, whole_state
from pytorch_metric_learning import miners
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from noisydml import GatheredLoss, LossWrapper

STEPS = 4
# Uneven batches; rank 1 has none in step 2.
SIZES = [(14, 10), (9, 15), (24, 0), (3, 21)]

Result = dict[str, Any]


def shards(step: int, world: int) -> list[slice]:
    if world == 1:
        return [slice(0, 24)]
    sizes = SIZES[step % len(SIZES)]
    if world > 2:  # the second share is cut once more, into three
        third = sizes[1] // 3
        sizes = (sizes[0], third, third, sizes[1] - 2 * third)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def gathers_rows(case: str, leaf: str) -> bool:
    """Whether the loss is of all ranks' rows; a regulariser outside sees its own rank's."""
    return "gathered" in case or ("super_loss" in case and "regularized" not in case)


def train(case: str, leaf: str, rank: int, world: int, mined: bool = False) -> Result:
    """Train a model with a wrapper for a few steps on this rank's share of each batch.

    Where the loss sees the pairs of its own rank only, the model cannot be that of one process. So
    it stays as it is, and what is judged is the same in every step.
    """
    torch.manual_seed(4)
    model = nn.Linear(WIDTH, WIDTH)
    # Every rank draws other proxies; rank 0 has those of the single process.
    wrapper = build(case, leaf, seed=5 + rank)
    parallel: Callable[..., Any] = DistributedDataParallel(model) if world > 1 else model
    lr = 1e-2 if gathers_rows(case, leaf) else 0.0
    groups = [{"params": model.parameters(), "lr": lr}, *wrapper.parameter_groups(1e-2, 1e-2)]
    optimizer = torch.optim.SGD(groups, lr=1e-2)

    decisions: list[list[Result]] = []
    values, model_gradients = [], []
    for step in range(STEPS):
        arguments = make_batch(seed=step)
        rows = shards(step, world)[rank]
        inputs = arguments["embeddings"].detach()[rows]
        keywords: dict[str, Any] = {
            "sample_ids": arguments["sample_ids"][rows],
            "sample_weight": torch.linspace(0.5, 1.5, 24)[rows] if CASES[case].weighs else None,
        }
        labels = arguments["labels"][rows]
        embeddings = parallel(inputs)
        if mined:
            own = [slice(None)] if world > 1 else shards(step, 2)
            keywords["indices_tuple"] = mine(embeddings, labels, own)
        value = wrapper(embeddings, labels, **keywords)
        optimizer.zero_grad()
        value.backward()
        model_gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        optimizer.step()
        values.append(value.detach())
        decisions.append(decisions_of(wrapper))
    return {
        "values": torch.stack(values),
        "decisions": decisions,
        "gradients": torch.stack(model_gradients),
        "state": {name: value.detach() for name, value in whole_state(wrapper).items()},
    }


def mine(embeddings: Tensor, labels: Tensor, shares: list[slice]) -> tuple[Tensor, ...]:
    """Triplets within each share of the rows, pointing into all of them."""
    miner = miners.TripletMarginMiner(margin=0.3, type_of_triplets="all")
    found = []
    for rows in shares:
        triplets = miner(embeddings[rows], labels[rows])
        found.append([column + (rows.start or 0) for column in triplets])
    return tuple(torch.cat(columns) for columns in zip(*found, strict=True))


def decisions_of(wrapper: LossWrapper) -> list[Result]:
    """The decision of every wrapper of a nesting, and which rows it was made about.

    Those of all ranks, or this rank's and then as many that were mixed of them.
    """
    found, about_all, mixed = [], False, False
    for each in chain(wrapper):
        found.append({**vars(each.decision), "about_all": about_all, "mixed": mixed})
        about_all = about_all or isinstance(each, GatheredLoss)
        mixed = mixed or getattr(each.decision, "draws", None) is not None
    return found


def refusals(rank: int) -> dict[str, str]:
    """The error that this rank raises where only rank 1 is called wrongly."""
    messages = {}
    bad_calls: dict[str, dict[str, Any]] = {
        "nan": {"embeddings": torch.full((24, WIDTH), float("nan"))},
        "type": {"embeddings": None},
        "label": {"labels": torch.full((24,), 99)},
        "other arguments": {"sample_weight": torch.ones(24)},
        "other dtype": {"embeddings": make_batch()["embeddings"].detach().double()},
    }
    for name, bad in bad_calls.items():
        wrapper = build("confidence")
        arguments = {**make_batch(), **(bad if rank == 1 else {})}
        before = copy.deepcopy(wrapper.state_dict())
        try:
            wrapper(**arguments)
        except (TypeError, ValueError) as error:
            messages[name] = f"{type(error).__name__}: {error}"
        unchanged = all(torch.equal(before[k], v) for k, v in wrapper.state_dict().items())
        messages[name + " state"] = "same" if unchanged else "changed"
        wrapper(**make_batch())  # the ranks are still in step
    return messages


def loaded_on_rank_0(rank: int) -> list[Tensor]:
    """Thresholds where only rank 0 has loaded a state, as is usual, before the first step."""
    wrapper = build("running_mean", seed=5 + rank)
    if rank == 0:
        wrapper.step.fill_(100)
        wrapper.mean.fill_(5.0)
        wrapper.count.fill_(2400)
    return [wrapper(**make_batch(seed=7)), wrapper.decision.threshold, wrapper.step, wrapper.mean]


def meetings(case: str) -> int:
    """How often the ranks meet in a step, the first excepted."""
    wrapper, calls, gather = build(case), 0, dist.all_gather

    def counting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return gather(*arguments)

    wrapper(**make_batch(seed=0))
    dist.all_gather = counting
    try:
        wrapper(**make_batch(seed=1))
    finally:
        dist.all_gather = gather
    return calls


def run_jobs(rank: int, world: int, jobs: list[tuple[str, str]]) -> dict[Any, Any]:
    """The results of all jobs on this rank."""
    results: dict[Any, Any] = {job: train(*job, rank, world) for job in jobs}
    results["mined"] = train("ground_truth(gathered)", "triplet", rank, world, mined=True)
    results["refusals"] = refusals(rank)
    results["loaded"] = loaded_on_rank_0(rank)
    results["meetings"] = {case: meetings(case) for case in ("knn", "knn(gathered)")}
    return results
