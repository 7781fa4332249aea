"""No statistic takes in a value that is not finite, with the checks of values and without."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contract.cases import CASES, assert_same_state, build, leaf_for, make_batch, naming, state_of
from pytorch_metric_learning import losses
from torch import Tensor, nn

from noisydml import ConfidenceWeightedLoss, LossWrapper, SmallLossFilter, SuperLoss

BAD = (math.nan, math.inf, -math.inf)


def assert_finite_state(wrapper: LossWrapper) -> None:
    for name, value in state_of(wrapper).items():
        assert not value.is_floating_point() or value.isfinite().all(), name


def spoilt(value: float) -> dict[str, Any]:
    arguments = make_batch(seed=1)
    arguments["embeddings"] = arguments["embeddings"].detach()
    arguments["embeddings"][3] = value
    return arguments


@pytest.mark.parametrize("case", CASES)
def test_embeddings_that_nobody_checks_leave_the_state_finite(case: str) -> None:
    for bad in (*BAD, 3e38):
        wrapper = build(case, leaf_for(case, "cross_entropy"), validate_args=False)
        with naming(bad):
            for step in range(6):
                wrapper(**(spoilt(bad) if step in (0, 4) else make_batch(seed=step)))
                assert_finite_state(wrapper)


class Overflowing(nn.Module):
    """One loss per sample, of which one is what it is told to be."""

    bad = 1.0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        losses = embeddings.square().sum(dim=1)
        return torch.where(torch.arange(len(losses)) == 3, self.bad, losses)


class OverflowingPairs(losses.ContrastiveLoss):
    """The first positive pair's loss is what it is told to be."""

    bad = 1.0

    def pos_calc(self, pos_pair_dist: Tensor, margin: float) -> Tensor:
        each = super().pos_calc(pos_pair_dist, margin)
        return torch.where(torch.arange(len(each)) == 0, self.bad, each)


def judged_by(loss: Any, case: str, **settings: Any) -> LossWrapper:
    if case.startswith("super_loss"):
        level = "pair" if isinstance(loss, OverflowingPairs) else "sample"
        return SuperLoss(loss, lam=1.0, level=level, **settings)
    if case == "small_loss":
        return SmallLossFilter(loss, noise_rate=0.3, ramp=0, **settings)
    return ConfidenceWeightedLoss(loss, loss, lam=1.0, threshold=case, **settings)


@pytest.mark.parametrize(
    "case",
    ["super_loss", "super_loss of pairs", "small_loss", "running_mean", "otsu", "gaussian_mixture"],
)
@pytest.mark.parametrize("bad", BAD)
def test_losses_to_judge_by_are_checked_like_embeddings(case: str, bad: float) -> None:
    for first in (True, False):
        loss: Any = OverflowingPairs() if case.endswith("pairs") else Overflowing()
        wrapper, twin = judged_by(loss, case), judged_by(loss, case, validate_args=False)
        for each in () if first else (wrapper, twin):
            each(**make_batch())
        before, loss.bad = state_of(wrapper), bad
        with pytest.raises(ValueError, match=r"loss.* must return finite losses"):
            wrapper(**make_batch())
        assert_same_state(before, wrapper)
        twin(**make_batch())
        assert_finite_state(twin)
        loss.bad = 1.0
        twin(**make_batch())
        assert twin.decision.weight.isfinite().all()
