"""MemoryRelabeler against a literal loop, and noisydml.robust."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor

import noisydml
from noisydml import GatheredLoss, JudgeFilter, KNNDenoiser, MemoryRelabeler, PRISMFilter

CLASSES, WIDTH, SIZE = 6, 8, 60


def data(size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of clear classes; labels of which every fourth is wrong; the true ones."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(size) % CLASSES
    centers = 3 * torch.randn(CLASSES, WIDTH, generator=generator)
    embeddings = centers[truth] + torch.randn(size, WIDTH, generator=generator)
    wrong = torch.randperm(size, generator=generator)[: size // 4]
    shift = torch.randint(1, CLASSES, (len(wrong),), generator=generator)
    labels = truth.index_copy(0, wrong, (truth[wrong] + shift) % CLASSES)
    return embeddings, labels, truth


def make(loss: Any = None, **settings: Any) -> MemoryRelabeler:
    loss = loss or losses.MultiSimilarityLoss()
    denoiser = KNNDenoiser(loss, memory_size=SIZE, k=8)
    return MemoryRelabeler(denoiser, WIDTH, **{"memory_size": 40, **settings})


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("lead", [1.0, 2.0, math.inf])
def test_equals_a_literal_loop(lead: float) -> None:
    embeddings, labels, _ = data()
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
    embeddings, labels, truth = data()
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
    embeddings, labels, _ = data()
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
    embeddings, labels, _ = data()
    wrapper = make()
    with pytest.raises(ValueError, match="as wide as embedding_size, 8, got 7"):
        wrapper(embeddings[:, :7], labels)
    with pytest.raises(ValueError, match="ref_emb must not be given to MemoryRelabeler"):
        wrapper(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
    assert wrapper.filter.memory.total == 0


def test_robust_is_a_judge_with_no_rate_and_no_tuning() -> None:
    loss_fn = noisydml.robust(losses.SoftTripleLoss(10, WIDTH), dataset_size=200)
    assert isinstance(loss_fn, JudgeFilter)
    assert len(loss_fn.memory) == len(loss_fn.reference) == 200
    assert loss_fn.memory.embedding_size is None
    assert loss_fn.start == "judge"
    loss_fn = noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200)
    with pytest.raises(ValueError, match=f"embeddings must be as wide as embedding_size, {WIDTH}"):
        loss_fn(torch.ones(2, WIDTH + 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        loss_fn(torch.ones(2, WIDTH), torch.tensor([0, 10]))
    with pytest.raises(TypeError, match="dataset_size must be given, "):
        noisydml.robust(losses.ContrastiveLoss(), 10)


def test_robust_is_prism_without_a_rate_for_a_network_from_scratch() -> None:
    loss_fn = noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200, start="train")
    assert isinstance(loss_fn, PRISMFilter)
    assert loss_fn.noise_rate is None
    assert (loss_fn.num_classes, len(loss_fn.memory)) == (10, 200)
    with pytest.raises(TypeError, match='embedding_size must be given with start="train"'):
        noisydml.robust(losses.ContrastiveLoss(), 10, dataset_size=200, start="train")
    with pytest.raises(TypeError, match='num_classes must be given with start="train"'):
        noisydml.robust(losses.ContrastiveLoss(), dataset_size=200, start="train")
    with pytest.raises(ValueError, match="start must be"):
        noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200, start="scratch")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 100), "num_classes must be"),
        ((10, 0, 100), "embedding_size must be"),
        ((10, 8, 0), "dataset_size must be"),
        ((10, 8, 9), "dataset_size must be at least num_classes, 10, got 9"),
    ],
)
def test_robust_refuses(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisydml.robust(losses.ContrastiveLoss(), *sizes)


def test_robust_finds_the_wrong_labels_in_an_unchanged_loop() -> None:
    size = 300
    embeddings, labels, truth = data(size)
    loss_fn = noisydml.robust(losses.MultiSimilarityLoss(), dataset_size=size)
    torch.manual_seed(0)
    kept = torch.ones(size, dtype=torch.bool)
    for _ in range(3):
        for ids in torch.randperm(size).split(20):
            loss_fn(embeddings[ids], labels[ids])
            kept[ids] = loss_fn.decision.keep
    assert (kept == (labels == truth)).double().mean() >= 0.93
    assert abs(loss_fn.decision.noise_rate - 0.25) < 0.1


@pytest.mark.parametrize("judged_start", [True, False])
def test_who_was_in_no_pass_waits_where_the_untrained_features_told_the_labels(
    judged_start: bool,
) -> None:
    size = 300
    embeddings, labels, truth = data(size)
    start = "judge" if judged_start else "train"
    loss_fn = JudgeFilter(losses.MultiSimilarityLoss(), dataset_size=size, start=start)
    for ids in torch.arange(200).split(20):
        loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    loss_fn.end_epoch()
    ids = torch.arange(190, 210)
    loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    decision = loss_fn.decision
    assert decision.judged.tolist() == [True] * 10 + [False] * 10
    right = labels[ids[:10]] == truth[ids[:10]]
    assert decision.keep[:10].tolist() == right.tolist()
    assert decision.keep[10:].tolist() == [not judged_start] * 10
    loss_fn.end_epoch()  # now they are judged
    loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    assert loss_fn.decision.judged.all()


def test_a_refused_refresh_leaves_the_judge_as_it_was() -> None:
    embeddings, labels, _ = data(60)
    with pytest.raises(ValueError, match="none that FAISS knows"):
        JudgeFilter(losses.ContrastiveLoss(), dataset_size=60, index="Flatt")
    loss_fn = JudgeFilter(
        losses.ContrastiveLoss(), dataset_size=60, num_classes=int(labels.max()) + 1
    )
    loss_fn.refresh(embeddings, labels)
    before = {
        name: value.clone() for name, value in loss_fn.state_dict().items() if "_extra" not in name
    }
    with pytest.raises(ValueError, match="labels must be in"):
        loss_fn.refresh(embeddings, labels + 1)
    loss_fn.index = "IVF61,Flat"  # more cells than features
    with pytest.raises(ValueError, match="IVF61,Flat"):
        loss_fn.refresh(2 - embeddings, labels)
    for name, value in before.items():
        assert torch.equal(loss_fn.state_dict()[name], value), name
