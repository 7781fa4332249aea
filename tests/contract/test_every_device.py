"""One test a promise, on the CPU and, where there is one, on a CUDA device.

The other files of this folder go into every corner on the CPU; these make sure that nothing of it
depends on being there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    CLASSES,
    WIDTH,
    assert_same_state,
    build,
    chain,
    kept_rows,
    leaf_for,
    leaf_of,
    make_batch,
    spy,
    state_of,
)
from torch import nn

from noisydml import LossWrapper

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]
pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("case", CASES),
]


def batch_on(device: str, size: int = 24, seed: int = 0, **settings: Any) -> dict[str, Any]:
    arguments = make_batch(size, seed, **settings)
    moved = {name: value.detach().to(device) for name, value in arguments.items()}
    moved["embeddings"].requires_grad_()
    return moved


def test_identity(case: str, device: str) -> None:
    wrapper = build(case, leaf_for(case, "soft_triple"), trusting=True).to(device)
    arguments = batch_on(device)
    value = wrapper(**arguments)
    expected = leaf_of(wrapper)(arguments["embeddings"], arguments["labels"])
    assert torch.equal(value, expected)
    wanted = [arguments["embeddings"], *leaf_of(wrapper).parameters()]
    for mine, other in zip(
        torch.autograd.grad(value, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        assert torch.equal(mine, other)


def test_filtering(case: str, device: str) -> None:
    seen: list[int] = []
    arguments = batch_on(device)
    wrapper = CASES[case].make(spy(case, lambda embeddings: seen.append(len(embeddings))))
    wrapper(**arguments).backward()
    rows = kept_rows(wrapper)
    assert 0 < len(rows) < 24 if CASES[case].drops else len(rows) == 24
    assert seen == [len(rows)]
    touched = arguments["embeddings"].grad.abs().sum(dim=1) > 0
    if CASES[case].term is not None:  # a regulariser has seen all rows
        rows = torch.arange(24)
    assert torch.equal(touched.cpu().nonzero().squeeze(1), rows)


def test_gradients(case: str, device: str) -> None:
    arguments = batch_on(device)
    wrapper = build(case)
    wrapper(**arguments).backward()
    assert arguments["embeddings"].grad.isfinite().all()
    for each in chain(wrapper):
        assert each.decision.weight.device == arguments["embeddings"].device
        assert not each.decision.weight.requires_grad
        for proxies in each.own_parameters():
            assert proxies.grad.device == arguments["embeddings"].device
            assert proxies.grad.abs().sum() > 0


def train(wrapper: LossWrapper, optimizer: Any, device: str, steps: range) -> list[torch.Tensor]:
    values = []
    for step in steps:
        value = wrapper(**batch_on(device, seed=step))
        if optimizer is not None:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        values.append(value.detach())
    return values


def test_resume(case: str, device: str, tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[LossWrapper, Any]:
        wrapper = build(case, leaf_for(case, "cross_batch_memory"), seed=seed)
        groups = wrapper.parameter_groups(1e-2, 1e-1)
        return wrapper, torch.optim.Adam(groups) if groups else None

    whole, optimizer = fresh(1)
    expected = train(whole, optimizer, device, range(6))
    first, optimizer = fresh(1)
    got = train(first, optimizer, device, range(3))
    saved = {"loss": first.state_dict(), "optimizer": optimizer and optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    second, optimizer = fresh(2)
    second.to(device)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True, map_location=device)
    second.load_state_dict(saved["loss"])
    if optimizer is not None:
        optimizer.load_state_dict(saved["optimizer"])
    got += train(second, optimizer, device, range(3, 6))
    torch.testing.assert_close(torch.stack(got), torch.stack(expected))
    assert whole.state_dict().keys() == second.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision(case: str, device: str, dtype: torch.dtype) -> None:
    model, wrapper = nn.Linear(WIDTH, WIDTH).to(device), build(case, leaf_for(case, "soft_triple"))
    before = {name: value.dtype for name, value in state_of(wrapper).items()}
    arguments = batch_on(device)
    with torch.autocast(device, dtype=dtype):
        arguments["embeddings"] = model(arguments["embeddings"].detach())
        value = wrapper(**arguments)
    value.backward()
    assert arguments["embeddings"].dtype == dtype
    assert value.isfinite()
    assert model.weight.grad.isfinite().all()
    assert {name: value.dtype for name, value in state_of(wrapper).items()} == before


def test_bad_input(case: str, device: str) -> None:
    wrapper = build(case)
    wrapper(**batch_on(device))
    before = state_of(wrapper)
    nan = torch.full((24, WIDTH), math.nan, device=device)
    negative = torch.full((24,), -1, device=device)
    bad: list[dict[str, Any]] = [{"embeddings": nan}, {"sample_ids": negative}]
    if CASES[case].has_classes:
        bad.append({"labels": negative + CLASSES + 1})
    for change in bad:
        with pytest.raises(ValueError, match=next(iter(change))):
            wrapper(**{**batch_on(device), **change})
        assert_same_state(before, wrapper)


@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_small_batches(case: str, device: str, size: int) -> None:
    arguments = batch_on(device, size)
    value = build(case)(**arguments)
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    assert arguments["embeddings"].grad.isfinite().all()


def test_determinism(case: str, device: str) -> None:
    def run() -> torch.Tensor:
        return torch.stack(train(build(case), None, device, range(4)))

    torch.testing.assert_close(run(), run(), rtol=0, atol=0 if device == "cpu" else 1e-6)
