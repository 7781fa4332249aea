"""The top-R threshold in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import top_r_threshold


def literal_threshold(values: list[float], rate: Fraction) -> float:
    """The floor(R n)-th smallest, by counting; -inf if that is the zeroth."""
    k = math.floor(rate * len(values))
    return sorted(values)[k - 1] if k else -math.inf


@pytest.mark.parametrize("denominator", [2, 3, 7, 10, 100, 1000])
def test_the_floor_is_exact(denominator: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    values = torch.rand(300, dtype=torch.float64)
    for numerator in range(0, denominator + 1, max(1, denominator // 50)):
        rate = Fraction(numerator, denominator)
        for n in (0, 1, 2, 3, 50, 100, 128, 300):
            got = top_r_threshold(values[:n], numerator / denominator)
            assert got.item() == literal_threshold(values[:n].tolist(), rate)
            on_device = torch.tensor(numerator / denominator, dtype=torch.float64)
            assert top_r_threshold(values[:n], on_device) == got
            everybody = torch.ones(n, dtype=torch.bool)
            assert top_r_threshold(values[:n], numerator / denominator, everybody) == got


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_only_the_known_take_part(rate: float) -> None:
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        values = torch.randint(5, (20,), generator=g) / 4  # with ties
        known = torch.rand(20, generator=g) < 0.6
        values[~known] = 1.0
        got = top_r_threshold(values, rate, known)
        assert got.item() == literal_threshold(values[known].tolist(), Fraction(str(rate)))
    nobody = top_r_threshold(values, rate, torch.zeros(20, dtype=torch.bool))
    assert nobody == -math.inf


def test_threshold_of_half_precision_and_nothing() -> None:
    values = torch.tensor([0.5, 0.25], dtype=torch.float16)
    assert top_r_threshold(values, 0.5) == 0.25
    assert top_r_threshold(values[:0], 0.5) == -math.inf
    assert top_r_threshold(values, 0.5).dtype == torch.float64


def test_bad_arguments() -> None:
    values = torch.rand(4)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"noise_rate must be in \[0, 1\]"):
            top_r_threshold(values, rate)
    with pytest.raises(TypeError, match="noise_rate must be a number, got str"):
        top_r_threshold(values, "0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probabilities must have 1 dimension"):
        top_r_threshold(values.reshape(2, 2), 0.5)
    with pytest.raises(ValueError, match="known must have 4 entries, one per probability, got 3"):
        top_r_threshold(values, 0.5, torch.ones(3).bool())


def test_no_host_is_asked() -> None:
    with fake_cuda() as device:
        p, known = torch.rand(8, device=device), torch.ones(8, device=device).bool()
        rate = torch.rand((), device=device)
        assert top_r_threshold(p, rate, known).shape == ()
        assert top_r_threshold(p, 0.5).device.type == "cuda"
