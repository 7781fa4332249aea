"""Promise 9: small batches are ordinary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    WIDTH,
    build,
    chain,
    every_case_and_leaf,
    leaf_for,
    make_batch,
    naming,
)


def assert_defined(wrapper: Any, arguments: dict[str, Any]) -> None:
    value = wrapper(**arguments)
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    assert arguments["embeddings"].grad.isfinite().all()
    for each in chain(wrapper):
        assert each.decision.weight.isfinite().all()


@pytest.mark.parametrize(("case", "leaf"), every_case_and_leaf("multi_similarity"))
def test_a_batch_of_few(case: str, leaf: str, device: str) -> None:
    for size in range(6):
        wrapper = build(case, leaf)
        for step in range(2):
            weight = torch.rand(size).to(device)
            with naming(f"{size} samples, step {step}"):
                arguments = make_batch(size, device=device)
                assert_defined(wrapper, {**arguments, "sample_weight": weight})


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_is_a_zero_that_reaches_every_parameter(case: str, device: str) -> None:
    """And it is no step. DistributedDataParallel around a wrapper waits for all parameters."""
    wrapper = build(case, leaf_for(case, "soft_triple")).to(device)
    before = {name: value.clone() for name, value in wrapper.named_buffers()}
    arguments = make_batch(0, device=device)
    value = wrapper(**arguments)
    assert value == 0
    value.backward()
    assert arguments["embeddings"].grad.shape == (0, WIDTH)
    assert wrapper.decision.keep.shape == (0,)
    for name, buffer in wrapper.named_buffers():
        assert torch.equal(buffer, before[name]), name
    for name, parameter in wrapper.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


ALIKE = {
    "of one class": {"labels": torch.full((24,), 2)},
    "of zeros": {"embeddings": torch.zeros(24, WIDTH)},
    "of one embedding": {"embeddings": torch.ones(24, WIDTH)},
    "of one embedding and class": {
        "embeddings": torch.ones(24, WIDTH),
        "labels": torch.full((24,), 2),
    },
    "of one sample": {"sample_ids": torch.full((24,), 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_samples_alike(case: str, device: str) -> None:
    for name, changes in ALIKE.items():
        arguments = make_batch(device=device)
        arguments |= {key: value.to(device, copy=True) for key, value in changes.items()}
        arguments["embeddings"].requires_grad_()
        with naming(name):
            assert_defined(build(case), arguments)


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
