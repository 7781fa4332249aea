"""The top-R threshold in exact arithmetic, smoothed on the host as on a device."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import top_r_threshold
from noisydml.functional.top_r import _smooth_on_device, _smooth_on_host, smooth_top_r


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


@pytest.mark.parametrize("window", [1, 2, 30])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_smoothing_on_the_host_is_that_on_a_device(window: int, rate: float) -> None:
    """What the CPU does against what CUDA does: bit by bit, with NaN, ties and restarts."""
    g = torch.Generator().manual_seed(window)
    state = (torch.zeros(window, dtype=torch.float64), torch.zeros((), dtype=torch.int64))
    restarts = 0
    for step in range(200):
        size = int(torch.randint(1, 12, (), generator=g))
        p = torch.rand(size, generator=g).mul(0.2 if step % 7 == 0 else 1).double()
        if step % 5 == 0:
            p = p.mul(3).round().div(3)
        if step % 11 == 0:
            p[0] = math.nan
        known = torch.rand(size, generator=g) < (0 if step % 13 == 0 else 0.8)
        share = torch.full((), rate, dtype=torch.float64)
        host = _smooth_on_host(p, share, known, *state)
        device = _smooth_on_device(p, share, known, *state)
        for mine, other in zip(host, device, strict=True):
            assert mine.dtype == other.dtype
            assert torch.equal(mine.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
        restarts += int(host.number < state[1])
        state = host.quantiles, host.number
    assert restarts > 0 or rate == 0 or window == 1


def test_smoothing_asks_no_host() -> None:
    with fake_cuda() as device:
        p, known = torch.rand(8, device=device), torch.ones(8, device=device).bool()
        window = torch.zeros(30, dtype=torch.float64, device=device)
        number = torch.zeros((), dtype=torch.int64, device=device)
        for part in smooth_top_r(p, torch.rand((), device=device), known, window, number):
            assert part.device.type == "cuda"
