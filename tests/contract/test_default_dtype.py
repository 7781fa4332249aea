"""Promise 6: nothing depends on torch's default dtype."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from contract.cases import CASES, build, make_batch, naming


@pytest.fixture(autouse=True)
def _single_again() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_another_default_dtype(case: str) -> None:
    for before, after in ((torch.float64, torch.float64), (torch.float32, torch.float64)):
        for dtype in (torch.float16, torch.float32, torch.float64):
            torch.set_default_dtype(before)
            wrapper = build(case)
            torch.set_default_dtype(after)
            with naming(f"{before}, {after}, {dtype}"):
                for step in range(4):
                    value = wrapper(**make_batch(seed=step, dtype=dtype))
                    value.backward()
                    assert value.isfinite()
