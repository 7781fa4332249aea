"""Promise 10: the same seed gives the same numbers, and nobody else's random numbers are used."""

from __future__ import annotations

import pytest
import torch
from contract.cases import CASES, assert_equal, build, make_batch


@pytest.mark.parametrize("case", CASES)
def test_two_runs_are_equal(case: str, device: str) -> None:
    def run() -> torch.Tensor:
        wrapper, batches = build(case), [make_batch(seed=seed, device=device) for seed in range(5)]
        return torch.stack([wrapper(**batch).detach() for batch in batches])

    assert_equal(run(), run())


@pytest.mark.parametrize("case", CASES)
def test_the_callers_random_numbers_are_left_alone(case: str) -> None:
    wrapper = build(case)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    wrapper(**make_batch())
    assert torch.equal(torch.rand(4), expected)
