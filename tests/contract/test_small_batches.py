"""Promise 9: small batches are ordinary."""

from __future__ import annotations

import pytest
import torch
from contract.cases import CASES, LEAVES, WIDTH, build, chain, leaf_for, make_batch, with_leaves


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(("case", "leaf"), with_leaves(*LEAVES))
def test_a_batch_of_few(case: str, size: int, leaf: str) -> None:
    wrapper = build(case, leaf)
    for _ in range(2):
        arguments = make_batch(size)
        value = wrapper(**arguments, sample_weight=torch.rand(size))
        value.backward()
        assert value.shape == ()
        assert value.isfinite()
        assert arguments["embeddings"].grad.isfinite().all()
        for each in chain(wrapper):
            assert (each.decision.weight.isfinite()).all()


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_is_a_zero_with_a_graph_and_no_step(case: str) -> None:
    wrapper = build(case)
    before = {name: value.clone() for name, value in wrapper.named_buffers()}
    arguments = make_batch(0)
    value = wrapper(**arguments)
    assert value == 0
    value.backward()
    assert arguments["embeddings"].grad.shape == (0, WIDTH)
    assert wrapper.decision.keep.shape == (0,)
    for name, buffer in wrapper.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("case", CASES)
def test_one_class_only(case: str) -> None:
    wrapper = build(case)
    arguments = make_batch()
    arguments["labels"] = torch.full((24,), 2)
    value = wrapper(**arguments)
    value.backward()
    assert value.isfinite()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fewer_than_four_samples_are_all_trusted(size: int) -> None:
    """Otsu needs two samples on each side."""
    wrapper = build("confidence")
    wrapper(**make_batch(size))
    assert (wrapper.decision.weight == 1).all()
    assert wrapper.decision.threshold == -torch.inf


def test_equal_losses_are_all_trusted() -> None:
    wrapper = build("confidence")
    embeddings, labels = torch.ones(8, WIDTH), torch.zeros(8, dtype=torch.long)
    wrapper(embeddings, labels)
    assert (wrapper.decision.weight == 1).all()


@pytest.mark.parametrize("case", CASES)
def test_identical_and_zero_embeddings(case: str) -> None:
    wrapper = build(case)
    arguments = make_batch()
    arguments["embeddings"] = torch.zeros(24, WIDTH, requires_grad=True)
    wrapper(**arguments).backward()
    assert arguments["embeddings"].grad.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_reaches_every_parameter(case: str) -> None:
    """DistributedDataParallel around a wrapper waits for all of them, on every rank."""
    wrapper = build(case, leaf_for(case, "soft_triple"))
    wrapper(**make_batch(0)).backward()
    for parameter in wrapper.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
