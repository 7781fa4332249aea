"""Decisions as numbers and words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from pytorch_metric_learning import losses
from torch._subclasses.fake_tensor import FakeTensor

from noisydml import (
    ConfidenceWeightedLoss,
    Decision,
    GroundTruthFilter,
    PRISMFilter,
    decision_stats,
    decision_summary,
)

KEYS = [
    "size", "kept", "mean_weight", "threshold", "noise_rate", "score_q10", "score_q50", "score_q90",
]  # fmt: skip


def test_the_numbers() -> None:
    score = torch.rand(101).bfloat16()
    keep = score > 0.3
    weight = torch.where(keep, torch.rand(101), 0.0)
    stats = decision_stats(
        Decision(keep, weight, score, torch.tensor([0.3]).squeeze(), torch.tensor(0.25).half())
    )
    assert list(stats) == KEYS
    assert all(type(value) is float for value in stats.values())
    ordered = np.sort(score.float().numpy())
    expected = [101, keep.numpy().mean(), weight.double().numpy().mean(), 0.3, 0.25,
                ordered[10], ordered[50], ordered[90]]  # fmt: skip
    assert list(stats.values()) == pytest.approx(expected, rel=1e-6)


def test_what_there_is_not() -> None:
    ones = torch.ones(3)
    stats = decision_stats(Decision(ones.bool(), ones))
    assert list(stats) == KEYS
    assert [stats[key] for key in KEYS[:3]] == [3, 1, 1]
    assert all(math.isnan(stats[key]) for key in KEYS[3:])

    nothing = decision_stats(Decision(ones[:0].bool(), ones[:0], ones[:0], ones[0]))
    assert list(nothing) == KEYS
    assert nothing["size"] == 0
    assert nothing["threshold"] == 1
    assert all(math.isnan(nothing[key]) for key in KEYS if key not in ("size", "threshold"))


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_odd_scores(odd: float) -> None:
    score = torch.tensor([odd, 1.0, 2.0, 3.0, odd])
    stats = decision_stats(Decision(score > 0, score, score, torch.tensor(-torch.inf)))
    known = sorted(x for x in score.tolist() if not math.isnan(x))
    assert stats["score_q50"] == known[len(known) // 2]
    assert stats["threshold"] == -math.inf


def test_the_line_of_a_nest() -> None:
    inner = ConfidenceWeightedLoss(
        losses.ContrastiveLoss(), losses.ProxyNCALoss(4, 8), lam=0.1, threshold=0.5
    )
    loss_fn = GroundTruthFilter(inner, torch.arange(12) < 3)
    assert decision_summary(loss_fn) == (
        "GroundTruthFilter: not called yet; ConfidenceWeightedLoss: not called yet"
    )
    embeddings, labels = torch.randn(12, 8), torch.arange(12) % 4
    loss_fn(embeddings, labels, sample_ids=torch.arange(12))
    stats = decision_stats(inner.decision)
    assert decision_summary(loss_fn) == (
        "GroundTruthFilter: kept 9 of 12, threshold 0.5, median score 1; "
        f"ConfidenceWeightedLoss: kept 9 of 9, mean weight {stats['mean_weight']:.3f}, "
        f"threshold {stats['threshold']:.3g}, median score {stats['score_q50']:.3g}"
    )
    assert stats["mean_weight"] < 1
    loss_fn.eval()
    loss_fn(embeddings[:0], labels[:0], sample_ids=labels[:0])
    assert decision_summary(loss_fn) == (
        "GroundTruthFilter: no samples; ConfidenceWeightedLoss: no samples"
    )
    with pytest.raises(TypeError, match="loss must be a LossWrapper, got ContrastiveLoss"):
        decision_summary(losses.ContrastiveLoss())


def test_the_line_has_the_noise_rate() -> None:
    loss_fn = PRISMFilter(
        losses.ContrastiveLoss(), num_classes=2, embedding_size=4, memory_size=8, noise_rate=0.25
    )
    for _ in range(2):
        loss_fn(torch.randn(8, 4), torch.arange(8) % 2)
    assert "noise rate 0.25" in decision_summary(loss_fn)


def test_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers of a decision are read from the device together; nothing else waits for it."""
    read = []
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: read.append(self.shape) or [0.0] * 7)
    with fake_cuda() as device:
        score = torch.rand(9, device=device)
        decision_stats(Decision(score > 0.5, score, score, score.sum()))
        decision_stats(Decision(score > 0.5, score))
    assert read == [(7,), (7,)]


def test_no_decision_yet() -> None:
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="got None: the loss has not been called yet"):
        decision_stats(loss_fn.decision)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decision must be a Decision, got GroundTruthFilter"):
        decision_stats(loss_fn)  # type: ignore[arg-type]
