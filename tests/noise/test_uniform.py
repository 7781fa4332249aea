"""Uniform noise: where wrong labels go."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from noisydml.noise import uniform


@pytest.mark.parametrize("exact", [True, False])
def test_targets_are_uniform_over_the_other_classes(exact: bool) -> None:
    labels = np.arange(200_000) % 10 * 7 - 20  # neither from 0 nor in steps of 1
    noisy = uniform(labels, 0.5, seed=1, exact=exact)
    counts = noisy.transition_matrix(counts=True)
    off = counts[~np.eye(10, dtype=bool)].reshape(10, 9)
    for row in off:
        assert stats.chisquare(row).pvalue > 1e-3
    assert counts[~np.eye(10, dtype=bool)].min() > 0
    assert set(noisy.labels) == set(labels)


def test_targets_of_unequal_classes_are_uniform() -> None:
    labels = np.repeat([0, 1, 2, 3], [30_000, 300, 3_000, 3])
    noisy = uniform(labels, 0.5)
    from_largest = noisy.labels[noisy.is_noisy & (labels == 0)]
    assert stats.chisquare(np.bincount(from_largest, minlength=4)[1:]).pvalue > 1e-3


def test_two_classes_swap() -> None:
    labels = np.array([4, 9] * 5)
    assert np.array_equal(uniform(labels, 1.0).labels, 13 - labels)


def test_frozen() -> None:
    noisy = uniform(np.arange(30) % 5, 0.3, seed=7)
    assert "".join(map(str, noisy.labels)) == "012310023441034012342434201234"
    noisy = uniform(np.arange(30) % 5, 0.3, seed=7, exact=False)
    assert "".join(map(str, noisy.labels)) == "012140023400034012343021001234"
