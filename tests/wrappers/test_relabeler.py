"""MemoryRelabeler against a literal loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from clear_classes import CLASSES, WIDTH, data
from pytorch_metric_learning import losses
from torch import Tensor

from noisydml import GatheredLoss, KNNDenoiser, MemoryRelabeler, PRISMFilter

SIZE = 60


def make(loss: Any = None, **settings: Any) -> MemoryRelabeler:
    loss = loss or losses.MultiSimilarityLoss()
    denoiser = KNNDenoiser(loss, memory_size=SIZE, k=8)
    return MemoryRelabeler(denoiser, WIDTH, **{"memory_size": 40, **settings})


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("lead", [1.0, 2.0, math.inf])
def test_equals_a_literal_loop(lead: float) -> None:
    embeddings, labels, _ = data(SIZE)
    wrapper, bare = make(lead=lead, weight=0.5), losses.MultiSimilarityLoss()
    alone = KNNDenoiser(losses.MultiSimilarityLoss(), memory_size=SIZE, k=8)
    memory: list[tuple[Tensor, int]] = []
    relabelled = 0
    torch.manual_seed(1)
    for step in range(20):
        ids = torch.randperm(SIZE)[:16]
        batch = (embeddings[ids] + 0.1 * torch.randn(16, WIDTH)).requires_grad_()
        value = wrapper(batch, labels[ids], sample_ids=ids)
        expected = alone(batch, labels[ids], sample_ids=ids)
        decision = alone.decision
        assert torch.equal(wrapper.decision.keep, decision.keep)
        if decision.suggested_labels is not None:
            members = []
            for i in range(16):
                if decision.keep[i]:
                    members.append((i, int(labels[ids[i]])))
                elif decision.runner_up[i] * lead <= 1:
                    members.append((i, int(decision.suggested_labels[i])))
                    relabelled += 1
            rows = torch.tensor([i for i, _ in members])
            new = torch.tensor([label for _, label in members])
            if memory:
                stored = torch.stack([row for row, _ in memory])
                classes = torch.tensor([label for _, label in memory])
                against = bare(batch[rows], new, ref_emb=stored, ref_labels=classes)
                expected = expected + 0.5 * against
            memory += list(zip(unit(batch.detach())[rows], new.tolist(), strict=True))
            memory = memory[-40:]
        assert value.item() == pytest.approx(expected.item(), rel=1e-4), step
        (grad,) = torch.autograd.grad(value, batch, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, batch)
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-5)
    assert (relabelled > 0) == (lead < math.inf)


def test_most_new_labels_are_right_and_kept_ones_stay() -> None:
    embeddings, labels, truth = data(SIZE)
    wrapper = make(memory_size=SIZE)
    wrapper.filter.refresh(embeddings, labels)
    ids = torch.arange(SIZE)
    wrapper(embeddings, labels, sample_ids=ids)
    new = wrapper.memory.labels[: int(wrapper.memory.total)]
    stored = wrapper.memory.sample_ids[: len(new)]
    kept = wrapper.decision.keep[stored]
    assert torch.equal(new[kept], labels[stored][kept])
    assert (~kept).sum() >= 5
    assert (new == truth[stored])[~kept].double().mean() >= 0.9


def test_without_a_reference_it_is_the_loss_and_remembers_nobody() -> None:
    embeddings, labels, _ = data(SIZE)
    wrapper = make()
    value = wrapper(embeddings[:16], labels[:16])
    assert torch.equal(value, losses.MultiSimilarityLoss()(embeddings[:16], labels[:16]))
    assert wrapper.memory.total == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lead": 0.5}, ValueError, "lead must be at least 1, got 0.5"),
        ({"lead": math.nan}, ValueError, "lead must be at least 1, got nan"),
        ({"weight": 0}, ValueError, "weight must be"),
        ({"memory_size": 0}, ValueError, "memory_size must be"),
        ({"loss": losses.SoftTripleLoss(6, 8)}, TypeError, "MemoryRelabeler needs one of PML's"),
        ({"loss": GatheredLoss(losses.ContrastiveLoss())}, TypeError, "got GatheredLoss"),
    ],
)
def test_impossible_settings(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


def test_bad_arguments() -> None:
    prism = PRISMFilter(losses.ContrastiveLoss(), CLASSES, WIDTH, memory_size=SIZE)
    with pytest.raises(
        TypeError, match=r"loss must be a filter that suggests labels, .* got PRISM"
    ):
        MemoryRelabeler(prism, WIDTH, memory_size=SIZE)
    embeddings, labels, _ = data(SIZE)
    wrapper = make()
    with pytest.raises(ValueError, match="as wide as embedding_size, 8, got 7"):
        wrapper(embeddings[:, :7], labels)
    with pytest.raises(ValueError, match="ref_emb must not be given to MemoryRelabeler"):
        wrapper(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
    assert wrapper.filter.memory.total == 0
