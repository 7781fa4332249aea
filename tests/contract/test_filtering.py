"""Promise 2: a dropped sample is neither anchor, positive nor negative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import CASES, LEAVES, SAMPLES, build, kept_rows, make_batch, spy
from pytorch_metric_learning import losses, miners

from noisydml import GroundTruthFilter, per_sample_loss

DROPPING = [name for name, case in CASES.items() if case.drops]


@pytest.mark.parametrize("leaf", LEAVES)
def test_equals_the_wrapped_loss_on_the_kept_rows(leaf: str) -> None:
    wrapper, bare = build("ground_truth", leaf), LEAVES[leaf]()
    if hasattr(bare, "load_state_dict"):
        bare.load_state_dict(wrapper.loss.state_dict())
    arguments = make_batch()
    value = wrapper(**arguments)
    keep = wrapper.decision.keep
    assert 0 < keep.sum() < len(keep)
    expected = bare(arguments["embeddings"][keep], arguments["labels"][keep]).mean()
    assert torch.equal(value, expected)
    (grad,) = torch.autograd.grad(value, arguments["embeddings"])
    assert torch.equal(grad[~keep], torch.zeros_like(grad[~keep]))
    (wanted,) = torch.autograd.grad(expected, arguments["embeddings"])
    assert torch.equal(grad, wanted)


@pytest.mark.parametrize("case", DROPPING)
def test_the_leaf_never_sees_a_dropped_row(case: str) -> None:
    seen: list[torch.Tensor] = []

    arguments = make_batch()
    wrapper = CASES[case].make(spy(case, seen.append))
    wrapper(**arguments)
    rows = kept_rows(wrapper)
    assert 0 < len(rows) < 24
    assert len(seen) == 1
    assert torch.equal(seen[0], arguments["embeddings"][rows])


def cut_literally(indices: tuple[Any, ...], keep: list[bool], has_ref: bool) -> list[list[int]]:
    """Pair by pair and triplet by triplet, with a dictionary of new positions."""
    position = {old: new for new, old in enumerate(i for i, k in enumerate(keep) if k)}
    groups = [indices[:2], indices[2:]] if len(indices) == 4 else [indices]
    columns: list[list[int]] = []
    for group in groups:
        result: list[list[int]] = [[] for _ in group]
        for row in zip(*[column.tolist() for column in group], strict=True):
            own = row[:1] if has_ref else row
            if all(keep[i] for i in own):
                for column, i, is_own in zip(
                    result, row, [True, *[not has_ref] * (len(row) - 1)], strict=True
                ):
                    column.append(position[i] if is_own else i)
        columns += result
    return columns


@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_mined_tuples_are_cut_and_renumbered(kind: str, with_ref: bool) -> None:
    received: list[Any] = []

    class Spy(losses.TripletMarginLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):  # type: ignore[no-untyped-def]
            received.append(indices_tuple)
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    arguments = make_batch()
    reference = make_batch(17, seed=9)
    ref = (reference["embeddings"], reference["labels"]) if with_ref else (None, None)
    miner = (
        miners.PairMarginMiner(pos_margin=0.2, neg_margin=1.2)
        if kind == "pairs"
        else miners.TripletMarginMiner(margin=0.4)
    )
    indices = miner(arguments["embeddings"], arguments["labels"], *ref)
    assert all(len(column) > 10 for column in indices)
    wrapper = GroundTruthFilter(Spy(), torch.arange(SAMPLES) % 3 == 0)
    value = wrapper(**arguments, indices_tuple=indices, ref_emb=ref[0], ref_labels=ref[1])
    keep = wrapper.decision.keep
    expected = cut_literally(indices, keep.tolist(), with_ref)
    assert [column.tolist() for column in received[0]] == expected
    direct = losses.TripletMarginLoss()(
        arguments["embeddings"][keep],
        arguments["labels"][keep],
        tuple(torch.tensor(column, dtype=torch.long) for column in expected),
        *ref,
    )
    assert torch.equal(value, direct)


@pytest.mark.parametrize("case", [name for name in DROPPING if CASES[name].can_drop_all])
def test_nothing_kept_is_a_zero_with_a_graph(case: str) -> None:
    def never(_: torch.Tensor) -> None:
        raise AssertionError("called with an empty batch")

    arguments = make_batch()
    arguments["sample_ids"] = torch.zeros(24, dtype=torch.long)  # sample 0 is noisy
    wrapper = CASES[case].make(spy(case, never))
    value = wrapper(**arguments)
    assert value.shape == ()
    expected = 0 * arguments["embeddings"].sum()
    if CASES[case].term is not None:  # which no filter touches
        expected = CASES[case].term(arguments, torch.zeros(24))
    torch.testing.assert_close(value, expected)
    (wanted,) = torch.autograd.grad(expected, arguments["embeddings"])
    value.backward()
    torch.testing.assert_close(arguments["embeddings"].grad, wanted)


@pytest.mark.parametrize("leaf", ["multi_similarity", "contrastive", "cross_entropy"])
def test_sample_weights_are_cut_with_the_rows(leaf: str) -> None:
    arguments, weight = make_batch(), torch.rand(24)
    wrapper = build("ground_truth", leaf)
    value = wrapper(**arguments, sample_weight=weight)
    keep = wrapper.decision.keep
    per_sample = per_sample_loss(
        LEAVES[leaf](), arguments["embeddings"][keep], arguments["labels"][keep]
    )
    torch.testing.assert_close(value, (weight[keep] * per_sample).mean())


def test_a_reduced_loss_can_be_filtered_but_not_weighted() -> None:
    arguments = make_batch()
    loss = losses.PNPLoss()
    assert build("ground_truth")  # fine
    wrapper = GroundTruthFilter(loss, torch.arange(SAMPLES) % 3 == 0)
    value = wrapper(**arguments)
    keep = wrapper.decision.keep
    assert torch.equal(value, loss(arguments["embeddings"][keep], arguments["labels"][keep]))
    with pytest.raises(TypeError, match="PNPLoss cannot be weighted"):
        wrapper(**arguments, sample_weight=torch.rand(24))
