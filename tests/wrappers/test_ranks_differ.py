"""What would lead two ranks apart, or make one of them judge by what is not its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from processes import message, run_ranks
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from noisydml import GatheredLoss, JudgeFilter, KNNDenoiser

SIZE, CLASSES, WIDTH = 120, 4, 8


class Model(nn.Module):
    """A network with its loss inside, as trainers have it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, WIDTH)
        self.loss_fn = KNNDenoiser(ContrastiveLoss(), memory_size=SIZE, k=5, **settings)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> Any:
        return self.loss_fn(self.net(inputs), labels, sample_ids=ids)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SIZE) % CLASSES
    centers = 3 * torch.randn(CLASSES, WIDTH, generator=generator)
    return centers[labels] + torch.randn(SIZE, WIDTH, generator=generator), labels


def two_ranks(rank: int, world: int) -> dict[str, Any]:
    features, labels = data()
    own = torch.arange(rank, SIZE, world)
    told: dict[str, Any] = {}

    for shard in (False, True):
        torch.manual_seed(0)
        inside = DistributedDataParallel(Model(shard=shard, embedding_size=WIDTH))
        told[f"inside, {shard}"] = message(
            lambda inside=inside: inside(features[own[:10]], labels[own[:10]], own[:10])
        )

    for wrapper in (
        JudgeFilter(ContrastiveLoss(), dataset_size=SIZE),
        KNNDenoiser(ContrastiveLoss(), memory_size=SIZE),
    ):
        wrapper.refresh(features[own], labels[own], own)
        told[type(wrapper).__name__] = message(
            lambda wrapper=wrapper: wrapper(features[own], labels[own], sample_ids=own)
        )

    order = torch.arange(SIZE) if rank == 0 else torch.arange(SIZE).flip(0)
    ordered = JudgeFilter(ContrastiveLoss(), dataset_size=SIZE)
    ordered.refresh(features[order], labels[order], order)
    told["another order"] = message(lambda: ordered(features[own], labels[own], sample_ids=own))
    wrapper = KNNDenoiser(ContrastiveLoss(), memory_size=SIZE, embedding_size=WIDTH)
    state = wrapper.state_dict()
    wrapper.refresh(features[own], labels[own], own)
    wrapper.load_state_dict(state)
    told["loaded"] = message(lambda: wrapper(features[own], labels[own], sample_ids=own))

    uneven = JudgeFilter(ContrastiveLoss(), dataset_size=SIZE)
    uneven.refresh(features, labels)
    rows = torch.arange(60).split((40, 20))[rank]
    uneven(features[rows].requires_grad_(), labels[rows])
    told["uneven"] = {n: v for n, v in uneven.state_dict().items() if n.startswith("counters")}

    whole, loaded = (
        GatheredLoss(CrossBatchMemory(ContrastiveLoss(), WIDTH, memory_size=40)) for _ in range(2)
    )
    for start in (0, 16):
        some = torch.arange(start, start + 16)[rank::world]
        whole(features[some], labels[some])
    if rank == 0:
        loaded.load_state_dict(whole.state_dict())
    some = torch.arange(32, 48)[rank::world]
    told["queues"] = [
        (loss_fn(features[some], labels[some]).item(), loss_fn.loss.queue_idx)
        for loss_fn in (whole, loaded)
    ]
    return told


def test_two_ranks_stay_together_or_say_why_not(tmp_path: Path) -> None:
    first, second = run_ranks(two_ranks, 2, tmp_path)
    assert first["inside, False"] == second["inside, False"] == "no error"
    for told in (first, second):
        assert "must not be inside of DistributedDataParallel" in told["inside, True"]
    for name in ("JudgeFilter", "KNNDenoiser"):
        assert "refresh must be given the same samples on all ranks" in first[name]
        assert "refresh must be given the same samples on all ranks" in second[name]
    for name in ("another order", "loaded"):
        assert first[name] == second[name] == "no error"
    assert first["uneven"] == second["uneven"]
    assert first["queues"][0] == first["queues"][1] == second["queues"][0] == second["queues"][1]
