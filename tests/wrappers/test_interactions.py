"""SelectedInteractions against losses written as loops over the pairs that are left."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.losses import GenericPairLoss
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GatheredLoss,
    GroundTruthFilter,
    LabelAudit,
    PRISMFilter,
    SelectedInteractions,
)

SIZE, WIDTH, CLASSES = 18, 6, 4


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels, and who is distrusted, a third."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, WIDTH, generator=g, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SIZE,), generator=g), torch.rand(SIZE, generator=g) < 0.3


def selecting(loss: Any, noisy: Tensor) -> SelectedInteractions:
    return SelectedInteractions(GroundTruthFilter(loss, noisy))


def literal_pairs(y: Tensor, noisy: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    positive, negative = [], []
    for i in range(len(y)):
        for j in range(len(y)):
            if y[i] != y[j]:
                negative.append([i, j])
            elif i != j and not noisy[i] and not noisy[j]:
                positive.append([i, j])
    return positive, negative


def literal_triplets(y: Tensor, noisy: Tensor) -> list[list[int]]:
    positive, negative = literal_pairs(y, noisy)
    return [[a, p, n] for a, p in positive for b, n in negative if a == b]


def columns(*groups: list[list[int]]) -> tuple[Tensor, ...]:
    return tuple(column for group in groups for column in torch.tensor(group).t())


@pytest.mark.parametrize("seed", range(5))
def test_contrastive_loss_by_hand(seed: int) -> None:
    """Means over the pairs of nonzero loss, positive and negative, of distances of unit vectors."""
    x, y, noisy = random_batch(seed)
    unit = nn.functional.normalize(x)
    positive, negative = literal_pairs(y, noisy)
    pull = [float((unit[i] - unit[j]).norm()) for i, j in positive]
    push = [max(0.0, 1 - float((unit[i] - unit[j]).norm())) for i, j in negative]
    expected = sum(math.fsum(v) / sum(e > 0 for e in v) for v in (pull, push))
    loss_fn = selecting(losses.ContrastiveLoss(), noisy)
    assert loss_fn(x, y, sample_ids=torch.arange(SIZE)).item() == pytest.approx(expected, rel=1e-6)
    assert loss_fn.decision.keep.all()
    assert torch.equal(loss_fn.decision.weight == 0, noisy)
    assert loss_fn.filter.decision is loss_fn.decision


PAIR_LOSSES = [
    name
    for name, kind in inspect.getmembers(losses, inspect.isclass)
    if issubclass(kind, GenericPairLoss) and kind is not GenericPairLoss
] + ["AngularLoss"]
TRIPLET_LOSSES = ["TripletMarginLoss", "MarginLoss", "HistogramLoss", "DynamicSoftMarginLoss"]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("name", PAIR_LOSSES + TRIPLET_LOSSES)
def test_every_loss_that_is_taken(name: str) -> None:
    for seed in range(3):
        x, y, noisy = random_batch(seed)
        x = x.float().requires_grad_()
        pairs = columns(*literal_pairs(y, noisy))
        told = pairs if name in PAIR_LOSSES else columns(literal_triplets(y, noisy))
        loss, twin = getattr(losses, name)(), getattr(losses, name)()
        value = selecting(loss, noisy)(x, y, sample_ids=torch.arange(SIZE))
        expected = twin(x, y, told)
        torch.testing.assert_close(value, expected)
        got, wanted = (torch.autograd.grad(v, x)[0] for v in (value, expected))
        torch.testing.assert_close(got, wanted)
        assert not torch.allclose(value, getattr(losses, name)()(x, y))  # it has made a difference


@pytest.mark.parametrize("name", PAIR_LOSSES + TRIPLET_LOSSES)
def test_in_a_batch_of_one_class_a_distrusted_sample_has_no_part(name: str) -> None:
    x, _, noisy = random_batch(0)
    x, y = x.float().requires_grad_(), torch.zeros(SIZE, dtype=torch.long)
    plain = getattr(losses, name)()(x, y)
    value = selecting(getattr(losses, name)(), noisy)(x, y, sample_ids=torch.arange(SIZE))
    (gradient,) = torch.autograd.grad(value, x)
    assert not gradient[noisy].any()
    assert bool(plain) == bool(value)
    if name in ("ContrastiveLoss", "MultiSimilarityLoss"):  # positives alone are enough for them
        assert gradient[~noisy].any(dim=1).all()


@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_mined_tuples_lose_their_distrusted_positives(kind: str, with_ref: bool) -> None:
    received: list[Any] = []

    class Spy(losses.TripletMarginLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):  # type: ignore[no-untyped-def]
            received.append(indices_tuple)
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    x, y, noisy = random_batch(1)
    other, other_y, _ = random_batch(2)
    ref = (other, other_y) if with_ref else (None, None)
    miner = miners.TripletMarginMiner(margin=0.4)
    if kind == "pairs":
        miner = miners.PairMarginMiner(pos_margin=0.2, neg_margin=1.2)
    mined = miner(x, y, *ref)
    selecting(Spy(), noisy)(x, y, mined, *ref, sample_ids=torch.arange(SIZE))

    own = 1 if with_ref else 2  # how many of anchor and positive are rows of the batch
    width = 2 if kind == "pairs" else 3
    rows = torch.stack(mined[:width], dim=1).tolist()
    expected = [row for row in rows if not any(noisy[i] for i in row[:own])]
    got = received[0]
    assert torch.stack(got[:width], dim=1).tolist() == expected
    assert 0 < len(expected) < len(mined[0])
    if kind == "pairs":
        assert torch.equal(got[2], mined[2])
        assert torch.equal(got[3], mined[3])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss"])
def test_against_a_reference(name: str, labelled: bool) -> None:
    """Others are trusted; without labels of their own they are the batch once more."""
    x, y, noisy = random_batch(3)
    other, other_y, _ = random_batch(4)
    trusted_there = torch.ones(SIZE, dtype=torch.bool) if labelled else ~noisy
    there = other_y if labelled else y
    positive, negative = [], []
    for i in range(SIZE):
        for j in range(SIZE):
            if y[i] != there[j]:
                negative.append([i, j])
            elif not noisy[i] and trusted_there[j] and (labelled or i != j):
                positive.append([i, j])
    told = columns(positive, negative)
    if name == "TripletMarginLoss":
        told = columns([[a, p, n] for a, p in positive for b, n in negative if a == b])
    ref = (other, other_y if labelled else None)
    value = selecting(getattr(losses, name)(), noisy)(
        x, y, None, *ref, sample_ids=torch.arange(SIZE)
    )
    torch.testing.assert_close(value, getattr(losses, name)()(x, y, told, *ref))


def test_the_filter_is_that_of_every_other_run() -> None:
    """It judges, remembers and counts as if it dropped."""
    kept = PRISMFilter(
        losses.ContrastiveLoss(), CLASSES, WIDTH, memory_size=40, noise_rate=0.3, warmup=1
    )
    selected = SelectedInteractions(copy.deepcopy(kept))
    for seed in range(4):
        x, y, _ = random_batch(seed)
        kept(x, y)
        selected(x, y)
        assert torch.equal(selected.decision.weight, kept.decision.weight)
        assert torch.equal(selected.decision.threshold, kept.decision.threshold)
    assert not kept.decision.keep.all()
    for name, value in kept.state_dict().items():
        assert torch.equal(selected.state_dict()[f"loss.{name}"], value)


def test_prisms_memory_loss_has_trusted_anchors_only() -> None:
    x, y, _ = random_batch(0)
    settings = {"memory_size": 40, "noise_rate": 0.3, "warmup": 1}
    without = SelectedInteractions(
        PRISMFilter(losses.ContrastiveLoss(), CLASSES, WIDTH, **settings)
    )
    loss_fn = SelectedInteractions(
        PRISMFilter(losses.ContrastiveLoss(), CLASSES, WIDTH, memory_loss=True, **settings)
    )
    for wrapper in (without, loss_fn):
        wrapper(x, y)
    memory = x.clone().float(), y.clone()
    x, y, _ = random_batch(1)
    difference = loss_fn(x, y) - without(x, y)
    trusted = loss_fn.decision.weight > 0
    assert not trusted.all()
    positive = [[i, j] for i in range(SIZE) for j in range(SIZE) if y[i] == memory[1][j]]
    negative = [[i, j] for i in range(SIZE) for j in range(SIZE) if y[i] != memory[1][j]]
    told = columns([pair for pair in positive if trusted[pair[0]]], negative)
    unit = nn.functional.normalize(memory[0]).to(x.dtype)
    torch.testing.assert_close(difference, losses.ContrastiveLoss()(x, y, told, unit, memory[1]))


def test_a_filter_in_eval_mode_trusts_everyone() -> None:
    x, y, noisy = random_batch(0)
    loss_fn = selecting(losses.ContrastiveLoss(), noisy)
    loss_fn.filter.eval()
    assert torch.equal(loss_fn(x, y), losses.ContrastiveLoss()(x, y))
    assert loss_fn.decision.weight.all()


def test_two_of_them_add_up() -> None:
    x, y, noisy = random_batch(0)
    other = random_batch(1)[2]
    inner = selecting(losses.ContrastiveLoss(), other)
    outer = SelectedInteractions(GroundTruthFilter(inner, noisy))
    ids = torch.arange(SIZE)
    expected = selecting(losses.ContrastiveLoss(), noisy | other)(x, y, sample_ids=ids)
    torch.testing.assert_close(outer(x, y, sample_ids=ids), expected)


def test_an_audit_sees_who_is_distrusted() -> None:
    x, y, noisy = random_batch(0)
    loss_fn = selecting(losses.ContrastiveLoss(), noisy)
    audit = LabelAudit(loss_fn, SIZE)
    loss_fn(x, y, sample_ids=torch.arange(SIZE))
    assert sorted(audit.result().issues.tolist()) == noisy.nonzero().flatten().tolist()


NOISY = torch.zeros(8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (losses.ContrastiveLoss(), "loss must be a filter, .*, got ContrastiveLoss"),
        (GatheredLoss(losses.ContrastiveLoss()), "loss must be a filter, .*, got GatheredLoss"),
        (
            ConfidenceWeightedLoss(losses.ContrastiveLoss(), losses.ProxyNCALoss(4, 6), lam=1),
            "loss must be a filter, .*, got ConfidenceWeightedLoss",
        ),
        (GroundTruthFilter, "loss must be a loss, got the class GroundTruthFilter"),
        (GroundTruthFilter(losses.ProxyNCALoss(4, 6), NOISY), "pair or triplet .*ProxyNCALoss"),
        (
            GroundTruthFilter(losses.CrossBatchMemory(losses.ContrastiveLoss(), 6), NOISY),
            "pair or triplet losses, .*, got CrossBatchMemory",
        ),
        (
            GroundTruthFilter(GatheredLoss(losses.SoftTripleLoss(4, 6)), NOISY),
            "pair or triplet losses, .*, got SoftTripleLoss",
        ),
        (GroundTruthFilter(nn.CrossEntropyLoss(reduction="none"), NOISY), "got CrossEntropyLoss"),
    ],
)
def test_what_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SelectedInteractions(loss)
