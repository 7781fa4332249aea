"""PrototypicalMixer with a head under torch.distributed; without one it is in tests/contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from pytorch_metric_learning import losses
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from noisydml import GatheredLoss, PrototypicalMixer

SHARES = {1: [slice(0, 24)], 2: [slice(0, 15), slice(15, 24)]}
STEPS = 6


def train(rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(3)  # the body; of the heads rank 0's counts
    body = nn.Linear(6, 8)
    torch.manual_seed(4 + rank)
    head: nn.Module = nn.Linear(8, 5)
    parallel: nn.Module = body
    if world > 1:
        head, parallel = DistributedDataParallel(head), DistributedDataParallel(body)
    loss_fn = PrototypicalMixer(
        GatheredLoss(losses.SupConLoss(temperature=0.5)), 4, 8, head,
        memory_size=40, cycles=3, max_retrieved=6, seed=rank,
    )  # fmt: skip
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    values, draws = [], []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randperm(40, generator=generator)[:24][SHARES[world][rank]]
        inputs = torch.eye(6)[ids % 4] + 0.1 * torch.randn(40, 6, generator=generator)[ids]
        labels = torch.where(ids < 8, (ids + 1) % 4, ids % 4)
        value = loss_fn(parallel(inputs), labels, sample_ids=ids)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
        draws.append(loss_fn.decision.draws)
    return {
        "values": torch.stack(values),
        "draws": draws,
        "parameters": [p.detach() for p in parameters],
        "refined": loss_fn.prototypes.refined,
        "means": loss_fn.prototypes.means,
    }


@pytest.mark.slow
def test_two_ranks_train_like_one_process(tmp_path: Path) -> None:
    two = run_ranks(train, 2, tmp_path)
    one = train(0, 1)
    assert one["draws"][-1] is not None
    assert (one["refined"] != -1).any()
    for result in two:
        torch.testing.assert_close(result["values"], one["values"])
        torch.testing.assert_close(result["parameters"], one["parameters"])
        torch.testing.assert_close(result["means"], one["means"])
        assert torch.equal(result["refined"], one["refined"])
    for step in range(STEPS):
        if one["draws"][step] is not None:
            drawn = torch.cat([result["draws"][step] for result in two])
            torch.testing.assert_close(drawn, one["draws"][step])
