"""Promise 6: half precision and autocast work, and no state's dtype changes under the user."""

from __future__ import annotations

import pytest
import torch
from contract.cases import (
    CASES,
    STATEFUL_LEAVES,
    WIDTH,
    assert_equal,
    build,
    chain,
    every_case_and_leaf,
    leaf_for,
    make_batch,
    naming,
    with_leaves,
)
from torch import nn

HALVES = [torch.float16, torch.bfloat16]


def dtypes(wrapper: nn.Module) -> dict[str, torch.dtype]:
    state = dict(wrapper.named_parameters()) | dict(wrapper.named_buffers())
    return {name: value.dtype for name, value in state.items()}


@pytest.mark.parametrize(
    ("case", "leaf"),  # the leaves with proxies or a memory with all cases
    sorted({*with_leaves(*STATEFUL_LEAVES), *every_case_and_leaf("multi_similarity")}),
)
def test_any_precision(case: str, leaf: str, device: str) -> None:
    for dtype in (*HALVES, torch.float64):
        with naming(dtype):
            wrapper = build(case, leaf)
            before = dtypes(wrapper)
            arguments = make_batch(dtype=dtype, device=device)
            value = wrapper(**arguments)
            value.backward()
            assert value.isfinite()
            assert arguments["embeddings"].grad.isfinite().all()
            assert arguments["embeddings"].grad.abs().sum() > 0
            assert dtypes(wrapper) == before
            for each in chain(wrapper):
                for tensor in (each.decision.weight, each.decision.score, each.decision.threshold):
                    assert tensor is None or torch.finfo(tensor.dtype).bits >= 32


@pytest.mark.parametrize("case", CASES)
def test_decisions_do_not_depend_on_the_precision(case: str, device: str) -> None:
    """Scored from the same numbers: half-precision embeddings, and their exact single copies."""
    for dtype in HALVES:
        half = make_batch(dtype=dtype, device=device)
        single = {**half, "embeddings": half["embeddings"].detach().float().requires_grad_()}
        mine, other = (build(case, leaf_for(case, "cross_entropy")) for _ in range(2))
        mine(**half)
        other(**single)
        for a, b in zip(chain(mine), chain(other), strict=True):
            with naming(f"{dtype}, {type(a).__name__}"):
                assert torch.equal(a.decision.keep, b.decision.keep)
                assert_equal(a.decision.weight, b.decision.weight)


@pytest.mark.parametrize(("case", "leaf"), every_case_and_leaf("soft_triple"))
def test_autocast(case: str, leaf: str, device: str) -> None:
    for dtype in HALVES:
        torch.manual_seed(0)
        model, wrapper = nn.Linear(WIDTH, WIDTH).to(device), build(case, leaf)
        before = dtypes(wrapper)
        for seed in range(2):
            arguments = make_batch(seed=seed, device=device)
            with naming(f"{dtype}, step {seed}"):
                with torch.autocast(device, dtype=dtype):
                    arguments["embeddings"] = model(arguments["embeddings"].detach())
                    assert arguments["embeddings"].dtype == dtype
                    value = wrapper(**arguments)
                value.backward()
                assert value.isfinite()
        assert model.weight.grad.isfinite().all(), dtype
        assert model.weight.grad.abs().sum() > 0, dtype
        assert dtypes(wrapper) == before, dtype


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.weighs])
def test_scores_are_not_computed_in_bfloat16_under_autocast(case: str, device: str) -> None:
    arguments = make_batch(device=device)
    mine, other = (build(case, leaf_for(case, "cross_entropy")) for _ in range(2))
    mine(**arguments)
    with torch.autocast(device, dtype=torch.bfloat16):
        other(**arguments)
    for a, b in zip(chain(mine), chain(other), strict=True):
        if a.decision.score is not None:
            assert_equal(a.decision.score, b.decision.score)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_wrapper_in_half_precision_itself(dtype: torch.dtype, device: str) -> None:
    wrapper = build("confidence").to(device, dtype)
    value = wrapper(**make_batch(dtype=dtype, device=device))
    value.backward()
    assert value.isfinite()
    assert wrapper.confidence_loss.proxies.dtype == dtype
    assert wrapper.confidence_loss.proxies.grad.abs().sum() > 0
