"""Random choices: uniform, and the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisydml.noise.random import (
    below,
    choose,
    exact_counts,
    generator,
    other_than,
    shuffled,
)


def test_below_is_uniform() -> None:
    drawn = below(generator(0), np.full(70_000, 7))
    assert stats.chisquare(np.bincount(drawn, minlength=7)).pvalue > 1e-3
    mixed = below(generator(1), np.tile([1, 2, 3], 1000)).reshape(-1, 3)
    assert mixed.max(axis=0).tolist() == [0, 1, 2]


def test_other_than_is_uniform_without_the_own() -> None:
    own = np.repeat(np.arange(5), 20_000)
    drawn = other_than(generator(0), own, 5)
    table = np.zeros((5, 5), dtype=int)
    np.add.at(table, (own, drawn), 1)
    assert not np.diag(table).any()
    for i in range(5):
        assert stats.chisquare(np.delete(table[i], i)).pvalue > 1e-3


def test_shuffled_is_a_permutation() -> None:
    orders = np.array([shuffled(generator(seed), 4) for seed in range(4800)])
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    rate=st.one_of(st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.29, 0.3, 1 / 3, 0.5, 0.7])),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_exact_counts(sizes: list[int], rate: float, seed: int) -> None:
    n = np.array(sizes)
    counts = exact_counts(generator(seed), n, rate)
    assert (counts >= np.floor(rate * n - 1e-5)).all()
    assert (counts <= np.ceil(rate * n + 1e-5)).all()
    assert (counts >= 0).all()
    assert (counts <= n).all()
    assert abs(counts.sum() - rate * n.sum()) <= 0.5 + 1e-5


def test_exact_counts_treat_classes_alike() -> None:
    """Which of the equal classes gets the sample more is left to chance."""
    drawn = np.array([exact_counts(generator(s), np.full(10, 5), 0.1) for s in range(4000)])
    assert (drawn.sum(axis=1) == 5).all()
    # The sum is fixed, which makes the classes vary less than independent ones: a bound.
    assert stats.chisquare(drawn.sum(axis=0)).pvalue > 1e-3
    assert set(drawn.ravel()) == {0, 1}


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_exact_counts_round_up_as_often_as_the_fraction(fraction: float) -> None:
    sizes = np.array([10] * 50 + [11] * 50)
    rate = fraction / 10
    drawn = np.array([exact_counts(generator(s), sizes, rate) for s in range(500)])
    expected = rate * np.array([10, 11])
    found = drawn.reshape(500, 2, 50).mean(axis=(0, 2))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_chosen_samples_are_uniform_in_a_class() -> None:
    codes = np.repeat([0, 1], [10, 20])
    chosen = np.array([choose(generator(s), codes, 0.3, True) for s in range(2000)])
    assert (chosen[:, :10].sum(axis=1) == 3).all()
    assert (chosen[:, 10:].sum(axis=1) == 6).all()
    np.testing.assert_allclose(chosen.mean(axis=0), 0.3, atol=0.05)


def test_frozen_stream() -> None:
    """A change here would change the noise of every seed ever used."""
    rng = generator(2024)
    assert below(rng, np.full(8, 1000)).tolist() == [675, 214, 309, 799, 995, 142, 78, 180]
    assert shuffled(rng, 8).tolist() == [6, 4, 1, 0, 7, 5, 2, 3]
    assert other_than(rng, np.arange(6), 6).tolist() == [5, 4, 3, 1, 1, 2]
