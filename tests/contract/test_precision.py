"""Promise 6: half precision and autocast work, and no state's dtype changes under the user."""

from __future__ import annotations

import pytest
import torch
from contract.cases import (
    CASES,
    LEAVES,
    WIDTH,
    build,
    chain,
    leaf_for,
    make_batch,
    with_leaves,
)
from torch import nn

HALVES = [torch.float16, torch.bfloat16]


def dtypes(wrapper: nn.Module) -> dict[str, torch.dtype]:
    state = dict(wrapper.named_parameters()) | dict(wrapper.named_buffers())
    return {name: value.dtype for name, value in state.items()}


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize(("case", "leaf"), with_leaves(*LEAVES))
def test_any_precision(case: str, leaf: str, dtype: torch.dtype) -> None:
    wrapper = build(case, leaf)
    before = dtypes(wrapper)
    arguments = make_batch(dtype=dtype)
    value = wrapper(**arguments)
    value.backward()
    assert value.isfinite()
    assert arguments["embeddings"].grad.isfinite().all()
    assert arguments["embeddings"].grad.abs().sum() > 0
    assert dtypes(wrapper) == before
    for each in chain(wrapper):
        for tensor in (each.decision.weight, each.decision.score, each.decision.threshold):
            assert tensor is None or torch.finfo(tensor.dtype).bits >= 32


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_decisions_do_not_depend_on_the_precision(case: str, dtype: torch.dtype) -> None:
    """Scored from the same numbers: half-precision embeddings, and their exact single copies."""
    half = make_batch(dtype=dtype)
    single = {**half, "embeddings": half["embeddings"].detach().float().requires_grad_()}
    mine, other = (build(case, leaf_for(case, "cross_entropy")) for _ in range(2))
    mine(**half)
    other(**single)
    for a, b in zip(chain(mine), chain(other), strict=True):
        assert torch.equal(a.decision.keep, b.decision.keep)
        torch.testing.assert_close(a.decision.weight, b.decision.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "leaf"), with_leaves("multi_similarity", "soft_triple", "cross_batch_memory")
)
def test_autocast(case: str, leaf: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, WIDTH)
    wrapper = build(case, leaf)
    before = dtypes(wrapper)
    for seed in range(2):
        arguments = make_batch(seed=seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            arguments["embeddings"] = model(arguments["embeddings"].detach())
            assert arguments["embeddings"].dtype == torch.bfloat16
            value = wrapper(**arguments)
        value.backward()
        assert value.isfinite()
    assert model.weight.grad.abs().sum() > 0
    assert dtypes(wrapper) == before


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.weighs])
def test_scores_are_not_computed_in_bfloat16_under_autocast(case: str) -> None:
    arguments = make_batch()
    mine, other = (build(case, leaf_for(case, "cross_entropy")) for _ in range(2))
    mine(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other(**arguments)
    for a, b in zip(chain(mine), chain(other), strict=True):
        if a.decision.score is not None:
            assert torch.equal(a.decision.score, b.decision.score)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_wrapper_in_half_precision_itself(dtype: torch.dtype) -> None:
    wrapper = build("confidence").to(dtype)
    value = wrapper(**make_batch(dtype=dtype))
    value.backward()
    assert value.isfinite()
    assert wrapper.confidence_loss.proxies.dtype == dtype
    assert wrapper.confidence_loss.proxies.grad.abs().sum() > 0
