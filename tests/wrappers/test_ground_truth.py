"""GroundTruthFilter; what it shares with every wrapper is in tests/contract."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses

from noisydml import GroundTruthFilter

IS_NOISY = torch.tensor([True, False, False, True, False])


def test_ids_choose_and_may_repeat() -> None:
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), IS_NOISY)
    ids = torch.tensor([4, 0, 3, 3, 1, 1])
    loss_fn(torch.randn(6, 8), torch.tensor([0, 1, 0, 1, 0, 1]), sample_ids=ids)
    assert loss_fn.decision.keep.tolist() == [True, False, False, False, True, True]
    assert loss_fn.decision.weight.tolist() == [1, 0, 0, 0, 1, 1]
    assert ((loss_fn.decision.score < loss_fn.decision.threshold) == IS_NOISY[ids]).all()


def test_the_truth_is_copied_and_saved() -> None:
    truth = IS_NOISY.clone()
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), truth)
    truth[:] = True
    assert torch.equal(loss_fn.is_noisy, IS_NOISY)
    assert torch.equal(loss_fn.state_dict()["is_noisy"], IS_NOISY)


def test_small_integer_ids_are_taken() -> None:
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), IS_NOISY)
    ids = torch.arange(5, dtype=torch.uint8)
    loss_fn(torch.randn(5, 8), torch.arange(5) % 2, sample_ids=ids)
    assert torch.equal(loss_fn.decision.keep, ~IS_NOISY)


def test_a_sparse_truth_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="is_noisy must be"):
        GroundTruthFilter(losses.ContrastiveLoss(), torch.ones(4, dtype=torch.bool).to_sparse())
