"""Promise 2: a dropped sample is neither anchor, positive nor negative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    LEAVES,
    SAMPLES,
    assert_equal,
    build,
    kept_rows,
    leaf_of,
    make_batch,
    spy,
    with_leaves,
)
from pytorch_metric_learning import losses, miners
from torch import nn

from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    PrototypicalMixer,
    SmallLossFilter,
    SuperLoss,
    per_sample_loss,
)

# What goes on inside these is nothing but dropping.
ONLY_DROPS = [
    name
    for name, case in CASES.items()
    if case.drops and not (case.weighs or case.pairs_only or case.term or "mixer" in name)
]


@pytest.mark.parametrize(("case", "leaf"), [p for p in with_leaves(*LEAVES) if p[0] in ONLY_DROPS])
def test_equals_the_wrapped_loss_on_the_kept_rows(case: str, leaf: str, device: str) -> None:
    wrapper, bare = build(case, leaf).to(device), LEAVES[leaf]()
    if isinstance(bare, nn.Module):
        bare.load_state_dict(leaf_of(wrapper).state_dict())
        bare.to(device)
    arguments = make_batch(device=device)
    embeddings = arguments["embeddings"]
    value = wrapper(**arguments)
    keep = torch.zeros(24, dtype=torch.bool)
    keep[kept_rows(wrapper)] = True
    assert 0 < keep.sum() < 24
    keep = keep.to(device)
    expected = bare(embeddings[keep], arguments["labels"][keep]).mean()
    assert_equal(value, expected)
    (grad,) = torch.autograd.grad(value, embeddings)
    assert not grad[~keep].any()
    (wanted,) = torch.autograd.grad(expected, embeddings)
    assert_equal(grad, wanted)


@pytest.mark.parametrize("case", CASES)
def test_the_leaf_sees_the_kept_rows_and_no_others(case: str, device: str) -> None:
    seen: list[torch.Tensor] = []
    arguments = make_batch(device=device)
    embeddings = arguments["embeddings"]
    wrapper = CASES[case].make(spy(case, seen.append))
    wrapper(**arguments).backward()
    rows = kept_rows(wrapper).to(device)
    assert 0 < len(rows) < 24 if CASES[case].drops else len(rows) == 24
    (leaf_saw,) = seen
    assert torch.equal(leaf_saw, embeddings[rows])
    touched = torch.zeros(24, device=device).index_fill(0, rows, 1.0)
    if CASES[case].term is not None:  # outermost it has seen all rows
        term = CASES[case].term(arguments, touched)
        touched = touched + torch.autograd.grad(term, embeddings)[0].abs().sum(dim=1)
    assert torch.equal(embeddings.grad.abs().sum(dim=1) > 0, touched > 0)


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


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.can_drop_all])
def test_nothing_kept_is_a_zero_with_a_graph(case: str) -> None:
    def never(_: torch.Tensor) -> None:
        raise AssertionError("called with an empty batch")

    arguments = make_batch()
    arguments["sample_ids"] = torch.zeros(24, dtype=torch.long)  # sample 0 is noisy
    wrapper = CASES[case].make(spy(case, never))
    value = wrapper(**arguments)
    assert value.shape == ()
    expected = 0 * arguments["embeddings"].sum()
    if CASES[case].term is not None:
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
    wrapper = GroundTruthFilter(loss, torch.arange(SAMPLES) % 3 == 0)
    value = wrapper(**arguments)
    keep = wrapper.decision.keep
    assert torch.equal(value, loss(arguments["embeddings"][keep], arguments["labels"][keep]))
    with pytest.raises(TypeError, match="PNPLoss cannot be weighted"):
        wrapper(**arguments, sample_weight=torch.rand(24))


@pytest.mark.parametrize("loss", [losses.PNPLoss, torch.nn.CrossEntropyLoss])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: ConfidenceWeightedLoss(loss, losses.ProxyNCALoss(4, 8), lam=1.0, warmup=9),
        lambda loss: PrototypicalMixer(loss, 4, 8, memory_size=16, warmup=9),
        lambda loss: SmallLossFilter(loss, noise_rate=0.2, ramp=9),
        lambda loss: SuperLoss(loss, lam=1.0),
    ],
)
def test_what_has_no_value_per_sample_is_refused_before_anything_is_trained(
    loss: Any, wrap: Any
) -> None:
    with pytest.raises(TypeError, match=r"cannot be weighted|has no (value|terms)"):
        wrap(loss())(torch.randn(8, 8), torch.arange(8) % 4)
