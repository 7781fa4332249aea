"""The estimate of the share of wrong labels, against loops over samples and classes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from noisydml.functional import low_rank_counts, own_similarity
from noisydml.functional.prism import smooth_noise_rate


def literal_counts(similarities: Tensor, labels: list[int]) -> tuple[float, float]:
    found = expected = 0.0
    for row, label in zip(similarities.tolist(), labels, strict=True):
        classes = [k for k, s in enumerate(row) if s > -math.inf]
        if label not in classes or len(classes) < 2:
            continue
        ranks = len(classes) - 1  # 1 to K, 0 is the nearest
        rank = sum(row[k] > row[label] for k in classes)
        middle = Fraction(ranks + 1, 2)
        found += 1 if rank > middle else 0.5 if rank == middle else 0
        expected += 0.5
    return found, expected


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_counts_against_a_loop(classes: int, dtype: torch.dtype) -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        similarities = torch.randint(5, (30, classes), generator=g).to(dtype)  # with ties
        similarities[:, torch.rand(classes, generator=g) < 0.3] = -math.inf
        labels = torch.randint(classes, (30,), generator=g)
        got = low_rank_counts(similarities, own_similarity(similarities, labels))
        assert tuple(x.item() for x in got) == literal_counts(similarities, labels.tolist())
        assert all(x.dtype == torch.float64 for x in got)


def test_counts_of_no_rows() -> None:
    none = torch.zeros(0, 5)
    assert [x.item() for x in low_rank_counts(none, none[:, 0])] == [0, 0]


@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_every_wrong_label_counts_half_on_average(classes: int) -> None:
    """All ranks of wrong labels, once each: the expectation is met exactly."""
    row = torch.arange(classes, 0, -1.0)
    similarities = row.repeat(classes - 1, 1)
    labels = torch.arange(1, classes)  # every class but the nearest
    found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
    assert found == expected


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_the_ratio_estimates_the_share_of_wrong_labels(rate: float) -> None:
    n, classes = 20_000, 31
    rng = np.random.default_rng(int(100 * rate))
    true = torch.from_numpy(rng.integers(classes, size=n))
    similarities = torch.from_numpy(rng.normal(size=(n, classes)))
    similarities[torch.arange(n), true] += 6.0
    wrong = torch.from_numpy(rng.random(n) < rate)
    shift = torch.from_numpy(rng.integers(1, classes, size=n))
    labels = torch.where(wrong, (true + shift) % classes, true)
    found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
    # found is a sum of independent numbers in [0, 1]: Hoeffding's bound at one in a million.
    bound = math.sqrt(n * math.log(2e6) / 2) / expected.item() if rate else 1e-9
    assert abs(found.item() / expected.item() - wrong.double().mean().item()) <= bound


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="labels must have 4 entries"):
        own_similarity(torch.rand(4, 3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="own must have 4 entries, one per row of similarities"):
        low_rank_counts(torch.rand(4, 3), torch.rand(3))


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 3])
def test_the_rate_is_that_of_the_window(classes: int, window: int) -> None:
    g = torch.Generator().manual_seed(classes)
    counts, literal = torch.zeros(window, 2, dtype=torch.float64), [(0.0, 0.0)] * window
    rates = set()
    for step in range(60):
        size = 0 if step % 20 == 19 else 12
        similarities = torch.randint(5, (size, classes), generator=g).float()
        similarities[:, torch.rand(classes, generator=g) < 0.3] = -math.inf
        labels = torch.randint(classes, (size,), generator=g)
        counted = torch.rand(size, generator=g) < 0.5
        own = own_similarity(similarities, labels)
        rate, counts = smooth_noise_rate(similarities, own, counted, counts)
        rows = counted.nonzero().flatten()
        of_batch = literal_counts(similarities[rows], labels[rows].tolist())
        literal = [*literal[1:], of_batch]
        assert [tuple(row) for row in counts.tolist()] == literal
        found, expected = (sum(column) for column in zip(*literal, strict=True))
        assert rate.item() == pytest.approx(min(found / expected, 1) if expected else 0, abs=1e-15)
        rates.add(rate.item())
    assert rates == {0.0} if classes == 1 else len(rates) > 5


def test_no_host_is_asked() -> None:
    with fake_cuda() as device:
        similarities, own = torch.randn(8, 5, device=device), torch.rand(8, device=device)
        for part in low_rank_counts(similarities, own):
            assert part.device.type == "cuda"
        counts = torch.zeros(30, 2, dtype=torch.float64, device=device)
        for part in smooth_noise_rate(similarities, own, None, counts):
            assert part.device.type == "cuda"
