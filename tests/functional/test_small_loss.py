"""Small-loss selection against Co-teaching's Algorithm 1, counted in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import forget_rate, small_loss_threshold


def literal_kept(losses: list[float], rate: Fraction) -> set[int]:
    """The rows of smallest loss, all but floor(R n), and those as small as the last of them."""
    dropped = math.floor(rate * len(losses))
    order = sorted(range(len(losses)), key=losses.__getitem__)
    kept = order[: len(losses) - dropped]
    return {i for i, loss in enumerate(losses) if kept and loss <= losses[kept[-1]]}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("denominator", [2, 3, 7, 10, 100])
def test_who_is_kept(denominator: int, ties: bool) -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    for numerator in range(denominator):
        rate = Fraction(numerator, denominator)
        for n in (1, 2, 3, 4, 50, 100):
            g = torch.Generator().manual_seed(n)
            losses = torch.randint(4, (n,), generator=g) if ties else torch.rand(n, generator=g)
            losses = losses.float()
            threshold = small_loss_threshold(losses, numerator / denominator)
            kept = set((losses.double() <= threshold).nonzero().flatten().tolist())
            assert kept == literal_kept(losses.tolist(), rate)
            assert kept
            on_device = torch.tensor(numerator / denominator, dtype=torch.float64)
            assert small_loss_threshold(losses, on_device) == threshold


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_only_the_counted_take_part(rate: float) -> None:
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        losses = torch.randint(8, (20,), generator=g).float()
        counted = torch.rand(20, generator=g) < 0.6
        got = small_loss_threshold(losses, rate, counted)
        assert got == small_loss_threshold(losses[counted], rate)
    assert small_loss_threshold(losses, rate, torch.zeros(20).bool()) == math.inf


def test_nobody_is_dropped_where_the_share_is_less_than_one_sample() -> None:
    losses = torch.tensor([0.5, math.inf, 0.25])
    for rate in (0.0, 0.33):
        assert small_loss_threshold(losses, rate) == math.inf
    assert small_loss_threshold(losses, 1 / 3) == 0.5
    assert small_loss_threshold(losses[:0], 0.5) == math.inf
    assert small_loss_threshold(losses.half(), 0.5).dtype == torch.float64


def literal_remember_rate(t: int, tau: Fraction, t_k: int) -> Fraction:
    """Algorithm 1, line 8: the share that is kept."""
    return 1 - min(tau if t_k == 0 else Fraction(t, t_k) * tau, tau)


@pytest.mark.parametrize("ramp", [0, 1, 3, 1000])
@pytest.mark.parametrize("noise_rate", [0.0, 0.2, 0.45])
def test_the_schedule(noise_rate: float, ramp: int) -> None:
    for t in (0, 1, 2, 3, 4, 999, 1000, 10**9):
        got = forget_rate(torch.tensor(t), noise_rate, ramp)
        expected = 1 - literal_remember_rate(t, Fraction(str(noise_rate)), ramp)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(float(expected), abs=1e-15)


def test_nothing_asks_the_host() -> None:
    with fake_cuda() as device:
        rate = forget_rate(torch.zeros((), dtype=torch.int64, device=device), 0.5, 10)
        counted = torch.ones(8, dtype=torch.bool, device=device)
        threshold = small_loss_threshold(torch.rand(8, device=device), rate, counted)
        assert threshold.device.type == "cuda"


def test_bad_arguments() -> None:
    losses = torch.rand(4)
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
            small_loss_threshold(losses, rate)
        with pytest.raises(ValueError, match=r"noise_rate must be in \[0, 1\)"):
            forget_rate(torch.tensor(0), rate, 1)
    with pytest.raises(TypeError, match="rate must be a number, got str"):
        small_loss_threshold(losses, "0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="losses must have 1 dimension"):
        small_loss_threshold(losses.reshape(2, 2), 0.5)
    with pytest.raises(ValueError, match="counted must have 4 entries, one per loss, got 3"):
        small_loss_threshold(losses, 0.5, torch.ones(3).bool())
    with pytest.raises(ValueError, match="ramp must be at least 0, got -1"):
        forget_rate(torch.tensor(0), 0.5, -1)
