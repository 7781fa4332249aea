"""PRISM's choice on the host against that on a device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import own_similarity
from noisydml.functional.prism import (
    Candidates,
    Selection,
    Window,
    _select_on_device,
    _select_on_host,
    select,
)


def empty(window: int, given: bool) -> Window:
    low_ranks = None if given else torch.zeros(window, 2, dtype=torch.float64)
    quantiles = torch.zeros(window, dtype=torch.float64)
    return Window(quantiles, torch.zeros((), dtype=torch.int64), low_ranks)


@pytest.mark.parametrize("classes", [1, 2, 5, 300])
@pytest.mark.parametrize("window", [1, 2, 30])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9, None])
@pytest.mark.parametrize("by", ["probability", "own", "anything"])
def test_the_host_chooses_as_a_device_does(
    classes: int, window: int, rate: float | None, by: str
) -> None:
    """With ties, NaN, absent classes, rows that do not count, restarts of the window, warm-up."""
    g = torch.Generator().manual_seed(window)
    after = empty(window, rate is not None)
    dropped = 0
    rates = set()
    for step in range(120):
        size = int(torch.randint(1, 12, (), generator=g))
        similarities = torch.randn(size, classes, generator=g) * 3
        if step % 3 == 0:
            similarities = similarities.round()
        if step % 7 == 0:
            similarities *= 0.2
        if step % 11 == 0:
            similarities[0] = torch.nan
        labels = torch.randint(classes, (size,), generator=g)
        similarities[torch.arange(size), labels] += 6 * (torch.rand(size, generator=g) < 0.6)
        similarities[:, torch.rand(classes, generator=g) < 0.2] = -torch.inf
        scores = None if by == "probability" else own_similarity(similarities, labels)
        scores = torch.rand(size, generator=g) if by == "anything" else scores
        samples = torch.rand(size, generator=g) < 0.8 if step % 2 else None
        batch = Candidates(similarities, labels, scores, samples, rate, torch.tensor(step), 5)
        host, device = _select_on_host(batch, after), _select_on_device(batch, after)
        assert torch.equal(host.keep, device.keep)
        mine, others = [*host[:4], *host.window], [*device[:4], *device.window]
        for one, other in zip(mine, others, strict=True):
            if one is None or other is None:
                assert one is other is None
            else:
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=1e-15, atol=0, equal_nan=True)
        assert step >= 5 or (host.keep | host.scores.isnan()).all()
        dropped += int((~host.keep).sum())
        rates.add(host.noise_rate.item())
        after = host.window
    assert dropped > 0 or rate == 0 or (rate is None and classes == 1)
    assert rates == {rate} if rate is not None else max(rates) <= 1


@pytest.mark.parametrize("choose", [_select_on_host, _select_on_device])
def test_the_window_starts_again_where_nobody_would_be_kept(
    choose: Callable[[Candidates, Window], Selection],
) -> None:
    window = empty(30, True)
    for best in (1.0, 0.9, 0.1):
        scores = best * torch.tensor([0.5, 0.75, 1.0])
        labels = torch.zeros(3, dtype=torch.int64)
        batch = Candidates(scores.unsqueeze(1), labels, scores, None, 0.4, torch.tensor(1), 0)
        chosen = choose(batch, window)
        assert chosen.keep.tolist() == [False, True, True]
        restarted = best == 0.1
        assert int(chosen.window.number) == (1 if restarted else int(window.number) + 1)
        assert chosen.window.quantiles[-1] == scores[0].double()
        assert chosen.window.quantiles.count_nonzero() == chosen.window.number
        window = chosen.window


def test_no_host_is_asked() -> None:
    with fake_cuda() as device:
        similarities = torch.randn(8, 5, device=device)
        labels = torch.zeros(8, dtype=torch.int64, device=device)
        window = Window(*(None if x is None else x.to(device) for x in empty(30, False)))
        step = torch.zeros((), dtype=torch.int64, device=device)
        for scores in (None, torch.rand(8, device=device)):
            batch = Candidates(similarities, labels, scores, labels == 0, None, step, 5)
            chosen = select(batch, window)
            for part in (*chosen[:4], *chosen.window):
                assert part is not None
                assert part.device.type == "cuda"
