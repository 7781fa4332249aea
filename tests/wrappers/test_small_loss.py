"""SmallLossFilter against Co-teaching's Algorithm 1 written as a loop, with one network."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import literal
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from noisydml import GatheredLoss, SmallLossFilter

WIDTH, CLASSES = 6, 4
CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none")


def random_batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = int(rng.integers(1, 20))
    return rng.normal(size=(size, WIDTH)), rng.integers(CLASSES, size=size)


def kept_rows(scores: np.ndarray, dropped: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    return sorted(order[: len(scores) - dropped])


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("ramp", [0, 1, 7])
def test_algorithm_1_over_random_steps(ramp: int, by_itself: bool) -> None:
    """Rank by the loss, keep the share 1 - min(t / t_k tau, tau), compute the loss of these."""
    rng = np.random.default_rng(0)
    tau = Fraction(2, 5)
    torch.manual_seed(0)
    proxies = losses.ProxyNCALoss(CLASSES, WIDTH).double()
    multi_similarity = losses.MultiSimilarityLoss(2, 40, 0.1)
    score_loss = None if by_itself else proxies
    loss_fn = SmallLossFilter(multi_similarity, noise_rate=0.4, ramp=ramp, score_loss=score_loss)
    dropped_in_all = 0
    for t in range(12):
        x, y = random_batch(rng)
        if by_itself:
            scores = literal.multi_similarity(x, y, 2, 40, 0.1)
        else:
            scores = np.array(literal.proxy_nca(x, y, proxies.proxies.detach().numpy(), 1))
        rate = min(tau * t / ramp, tau) if ramp else tau
        dropped = math.floor(rate * len(x))
        rows = kept_rows(scores, dropped)
        value = loss_fn(torch.tensor(x), torch.tensor(y))

        expected = literal.multi_similarity(x[rows], y[rows], 2, 40, 0.1).mean()
        assert value.item() == pytest.approx(expected, rel=1e-6)
        decision = loss_fn.decision
        assert decision.keep.nonzero().flatten().tolist() == rows
        np.testing.assert_allclose(decision.score, -scores, rtol=1e-6)
        assert decision.noise_rate.item() == pytest.approx(float(rate))
        largest = scores[rows].max() if dropped else math.inf
        assert -decision.threshold.item() == pytest.approx(largest, rel=1e-6)
        dropped_in_all += dropped
    assert dropped_in_all > 10
    assert loss_fn.step == 12


def test_the_proxies_are_trained_on_the_kept_samples_alone() -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(2)))
    x = x.float().requires_grad_()
    proxies = losses.ProxyNCALoss(CLASSES, WIDTH)
    loss_fn = SmallLossFilter(
        losses.MultiSimilarityLoss(), noise_rate=0.5, ramp=0, score_loss=proxies
    )
    loss_fn(x, y).backward()
    keep = loss_fn.decision.keep
    assert 0 < keep.sum() < len(y)
    expected = proxies(x.detach()[keep], y[keep])
    torch.testing.assert_close(
        proxies.proxies.grad, torch.autograd.grad(expected, proxies.proxies)[0]
    )
    assert loss_fn.parameter_groups(1e-3)[0]["params"] == [proxies.proxies]


@pytest.mark.parametrize("named", [False, True])
def test_judging_by_the_training_loss_trains_its_proxies_once(named: bool) -> None:
    x, y = (torch.tensor(part) for part in random_batch(np.random.default_rng(3)))
    x = x.float()
    loss = losses.ProxyNCALoss(CLASSES, WIDTH)
    loss_fn = SmallLossFilter(loss, noise_rate=0.5, ramp=0, score_loss=loss if named else None)
    loss_fn(x, y).backward()
    keep = loss_fn.decision.keep
    (wanted,) = torch.autograd.grad(loss(x[keep], y[keep]), loss.proxies)
    torch.testing.assert_close(loss.proxies.grad, wanted)
    assert loss_fn.own_parameters() == []


def test_equal_losses_are_kept_together() -> None:
    """Losses of 0 are what a loss with a margin gives to most samples."""
    loss_fn = SmallLossFilter(CROSS_ENTROPY, noise_rate=0.5, ramp=0)
    loss_fn(torch.zeros(6, 2), torch.zeros(6).long())
    assert loss_fn.decision.keep.all()
    logits = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]])
    loss_fn(logits, torch.zeros(6).long())
    assert loss_fn.decision.keep.tolist() == [True] * 5 + [False]


def test_the_selection_does_not_depend_on_the_order_of_the_rows() -> None:
    logits, labels = torch.randn(30, CLASSES).round(), torch.randint(CLASSES, (30,))
    loss_fn = SmallLossFilter(CROSS_ENTROPY, noise_rate=0.4, ramp=0)
    loss_fn(logits, labels)
    keep, order = loss_fn.decision.keep, torch.randperm(30)
    loss_fn(logits[order], labels[order])
    assert torch.equal(loss_fn.decision.keep, keep[order])


def test_small_losses_are_those_of_right_labels() -> None:
    """What the method rests on: the losses of a third of wrong labels are the larger ones."""
    g = torch.Generator().manual_seed(0)
    true = torch.randint(CLASSES, (60,), generator=g)
    wrong = torch.arange(60) % 3 == 0
    labels = torch.where(wrong, (true + 1) % CLASSES, true)
    logits = 3 * torch.eye(CLASSES)[true] + torch.randn(60, CLASSES, generator=g)
    loss_fn = SmallLossFilter(CROSS_ENTROPY, noise_rate=1 / 3, ramp=0)
    loss_fn(logits, labels)
    assert loss_fn.decision.keep.sum() == 40
    assert wrong[loss_fn.decision.keep.logical_not()].float().mean() > 0.9


def test_a_batch_that_fails_does_not_move_the_ramp() -> None:
    loss_fn = SmallLossFilter(CROSS_ENTROPY, noise_rate=0.5, ramp=2)
    logits, labels = torch.randn(8, CLASSES), torch.randint(CLASSES, (8,))
    loss_fn(logits, labels)
    with pytest.raises(ValueError, match="labels must have 8 entries"):
        loss_fn(logits, labels[:7])
    loss_fn(logits[:0], labels[:0])
    loss_fn.eval()(logits, labels)
    assert loss_fn.step == 1
    loss_fn.train()(logits, labels)
    assert loss_fn.decision.noise_rate == 0.25
    assert loss_fn.decision.keep.sum() == 6


def remembering() -> losses.CrossBatchMemory:
    return losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH)


@pytest.mark.parametrize(
    ("loss", "score_loss", "message"),
    [
        (GatheredLoss(losses.ContrastiveLoss()), None, "one value per sample, .* GatheredLoss"),
        (losses.ContrastiveLoss(), GatheredLoss(CROSS_ENTROPY), "one value per sample"),
        (remembering(), None, "by default loss itself, must not be a CrossBatchMemory"),
        (losses.ContrastiveLoss(), remembering(), "score_loss.* must not be a CrossBatchMemory"),
        (losses.DynamicSoftMarginLoss(), None, "must not be a DynamicSoftMarginLoss"),
        (losses.ProxyAnchorLoss(4, 6), None, "ProxyAnchorLoss cannot be weighted"),
        (losses.ContrastiveLoss(), losses.ProxyNCALoss, "score_loss must be a loss, got the cl"),
    ],
)
def test_what_cannot_judge(loss: Any, score_loss: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SmallLossFilter(loss, noise_rate=0.5, ramp=0, score_loss=score_loss)


def test_a_memory_is_filled_once_with_the_kept_samples() -> None:
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=32)
    proxies = losses.ProxyNCALoss(CLASSES, WIDTH)
    loss_fn = SmallLossFilter(memory, noise_rate=0.5, ramp=0, score_loss=proxies)
    loss_fn(torch.randn(10, WIDTH), torch.randint(CLASSES, (10,)))
    assert memory.queue_idx == loss_fn.decision.keep.sum() == 5


def test_a_mined_tuple_is_cut_but_not_judged_by() -> None:
    x = torch.randn(6, WIDTH)
    y, pairs = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([[0, 2], [1, 3], [0, 2], [4, 5]])
    plain = SmallLossFilter(losses.ContrastiveLoss(), noise_rate=0.5, ramp=0)
    mined = SmallLossFilter(losses.ContrastiveLoss(), noise_rate=0.5, ramp=0)
    plain(x, y)
    mined(x, y, tuple(pairs))
    assert torch.equal(plain.decision.score, mined.decision.score)


def test_repr_shows_the_settings() -> None:
    loss_fn = SmallLossFilter(CROSS_ENTROPY, noise_rate=0.5, ramp=100)
    assert "noise_rate=0.5, ramp=100" in repr(loss_fn)
