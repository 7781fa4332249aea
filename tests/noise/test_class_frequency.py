"""Class-frequency noise: only the largest or the rarest classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from noisydml.noise import class_frequency

SIZES = np.array([50, 400, 100, 200, 300, 150])
LABELS = np.repeat(np.arange(6), SIZES)


@pytest.mark.parametrize(
    ("which", "share", "group"),
    [
        ("largest", 0.5, [1, 4, 3]),
        ("largest", 0.34, [1, 4, 3]),  # rounded up to whole classes
        ("largest", 1 / 3, [1, 4]),
        ("largest", 0.01, [1, 4]),  # two at least
        ("rarest", 0.5, [0, 2, 5]),
        ("rarest", 2 / 3, [0, 2, 5, 3]),
        ("rarest", 1.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_only_that_group_is_corrupted(which: Any, share: float, group: list[int]) -> None:
    rate = 0.1
    noisy = class_frequency(LABELS, rate, which=which, share=share)
    assert set(LABELS[noisy.is_noisy]) == set(group)
    assert set(noisy.labels[noisy.is_noisy]) <= set(group)
    assert noisy.is_noisy.sum() == 120
    per_class = np.bincount(LABELS, weights=noisy.is_noisy, minlength=6)[group]
    assert (abs(per_class - 120 * SIZES[group] / SIZES[group].sum()) < 1).all()


def test_targets() -> None:
    labels = np.repeat(np.arange(5), [9000, 9000, 9000, 30, 30])
    inside = class_frequency(labels, 0.3, share=0.6)
    counts = inside.transition_matrix(counts=True)
    assert stats.chisquare(counts[~np.eye(5, dtype=bool)].reshape(5, 4)[0, :2]).pvalue > 1e-3
    assert not counts[:3, 3:].any()
    outside = class_frequency(labels, 0.3, share=0.6, within=False)
    counts = outside.transition_matrix(counts=True)
    assert not outside.is_noisy[labels >= 3].any()
    for i in range(3):
        assert stats.chisquare(np.delete(counts[i], i)).pvalue > 1e-3


def test_ties_are_broken_at_random() -> None:
    labels = np.repeat(np.arange(6), 10)
    groups = {
        frozenset(labels[class_frequency(labels, 0.2, share=1 / 3, seed=seed).is_noisy].tolist())
        for seed in range(100)
    }
    assert all(len(group) == 2 for group in groups)
    assert len(groups) > 10  # of 15


def test_the_whole_group_may_be_wrong() -> None:
    noisy = class_frequency(LABELS, 0.25, which="rarest", share=0.5)
    assert np.array_equal(noisy.is_noisy, np.isin(LABELS, [0, 2, 5]))


def test_rounding_refuses_nothing() -> None:
    """0.55 * 100 is 55.00000000000001."""
    labels = np.repeat(np.arange(4), [30, 25, 23, 22])
    for exact in (True, False):
        noisy = class_frequency(labels, 0.55, share=0.5, exact=exact)
        assert np.array_equal(noisy.is_noisy, labels < 2)


def test_bernoulli_in_the_group() -> None:
    labels = np.tile([0, 0, 0, 1, 1, 1, 2, 3], 5000)
    noisy = class_frequency(labels, 0.3, exact=False)
    assert set(labels[noisy.is_noisy]) == {0, 1}
    assert abs(noisy.rate - 0.3) < 0.01
    assert noisy.is_noisy.sum() != 12_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"which": "small"}, ValueError, "which must be 'largest' or 'rarest', got 'small'"),
        ({"share": 0}, ValueError, "share must be above 0, got 0"),
        ({"share": 1.5}, ValueError, r"share must be in \[0, 1\], got 1.5"),
        ({"share": "all"}, TypeError, "share must be a number, got str"),
        ({"within": 0}, TypeError, "within must be a bool, got int"),
        (
            {"rate": 0.3, "which": "rarest"},
            ValueError,
            "rate must be at most 0.25, the share of all samples in the 3 rarest classes, got 0.3",
        ),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_frequency(LABELS, **{"rate": 0.1, **options})


def test_frozen() -> None:
    labels = np.repeat(np.arange(4), [8, 6, 4, 2])
    noisy = class_frequency(labels, 0.3, seed=7)
    assert "".join(map(str, noisy.labels)) == "10100001000111222233"
