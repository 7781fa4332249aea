"""GroundTruthFilter; what it shares with every wrapper is in tests/contract."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.miners import MultiSimilarityMiner

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


@pytest.mark.parametrize(
    "loss",
    [losses.NTXentLoss(), losses.ContrastiveLoss(), losses.AngularLoss(), losses.NCALoss()],
)
@pytest.mark.parametrize("mined", [False, True])
def test_references_of_the_batch_go_with_their_samples(loss: torch.nn.Module, mined: bool) -> None:
    """Such as keys of a momentum encoder: without labels of their own row i is of sample i."""
    labels, ids = torch.arange(12) % 3, torch.arange(12)
    embeddings, keys = torch.randn(2, 12, 6)
    noisy = torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor([1, 5, 6]), True)
    loss_fn = GroundTruthFilter(loss, noisy)
    pairs = MultiSimilarityMiner()(embeddings, labels) if mined else None
    for given in ({}, {"ref_labels": labels}):
        got = loss_fn(embeddings, labels, pairs, ref_emb=keys, **given, sample_ids=ids)
        if mined:
            place = (~noisy).cumsum(0) - 1
            alive = [(~noisy)[a] & (~noisy)[b] for a, b in (pairs[:2], pairs[2:])]
            kept = [place[c[alive[i // 2]]] for i, c in enumerate(pairs)]
        right = labels[~noisy]
        expected = loss(
            embeddings[~noisy],
            right,
            tuple(kept) if mined else None,
            ref_emb=keys[~noisy],
            ref_labels=right,
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("loss", [losses.NTXentLoss(), losses.ArcFaceLoss(3, 6)])
def test_a_batch_compared_with_itself(loss: torch.nn.Module, dtype: torch.dtype) -> None:
    """Which PML knows by identity."""
    labels, ids = (torch.arange(12) % 3).to(dtype), torch.arange(12)
    embeddings = torch.randn(12, 6)
    noisy = torch.zeros(12, dtype=torch.bool)
    loss_fn = GroundTruthFilter(loss, noisy)
    got = loss_fn(embeddings, labels, ref_emb=embeddings, ref_labels=labels, sample_ids=ids)
    long = labels.long()
    expected = loss(embeddings, long, ref_emb=embeddings, ref_labels=long)
    torch.testing.assert_close(got, expected)
    loss_fn.is_noisy[3] = True
    got = loss_fn(embeddings, labels, ref_emb=embeddings, ref_labels=labels, sample_ids=ids)
    keep = torch.arange(12) != 3
    torch.testing.assert_close(got, loss(embeddings[keep], long[keep]))


def test_nobody_with_a_positive_is_no_loss() -> None:
    embeddings = torch.randn(6, 4, requires_grad=True)
    noisy = torch.arange(6) % 2 == 1
    loss_fn = GroundTruthFilter(losses.NCALoss(), noisy)
    value = loss_fn(embeddings, torch.arange(6) // 2, sample_ids=torch.arange(6))
    value.backward()
    assert value == 0
    assert not embeddings.grad.any()
    lax = GroundTruthFilter(losses.NCALoss(), noisy, validate_args=False)
    nan = torch.full_like(embeddings, torch.nan)
    assert lax(nan, torch.arange(6) // 3, sample_ids=torch.arange(6)).isnan()  # is not hidden


def test_references_of_other_samples_need_labels_or_pairs() -> None:
    loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), torch.zeros(12, dtype=torch.bool))
    with pytest.raises(ValueError, match="ref_labels must be given with a ref_emb of 7 rows"):
        loss_fn(
            torch.randn(12, 6),
            torch.arange(12) % 3,
            ref_emb=torch.randn(7, 6),
            sample_ids=torch.arange(12),
        )
