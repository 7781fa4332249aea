"""Promise 10: the same seed gives the same numbers, and nobody else's random numbers are used."""

from __future__ import annotations

import pytest
import torch
from contract.cases import CASES, build, make_batch


@pytest.mark.parametrize("case", CASES)
def test_two_runs_are_equal(case: str) -> None:
    def run() -> torch.Tensor:
        wrapper = build(case)
        return torch.stack([wrapper(**make_batch(seed=seed)).detach() for seed in range(5)])

    assert torch.equal(run(), run())


@pytest.mark.parametrize("case", CASES)
def test_the_callers_random_numbers_are_left_alone(case: str) -> None:
    wrapper = build(case)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    wrapper(**make_batch())
    assert torch.equal(torch.rand(4), expected)
