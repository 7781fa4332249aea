"""Small Cluster noise: against the supplement's Algorithm 1, and against the published draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from noisydml.noise import NoisyLabels, small_cluster


def pairs(n_classes: int, n_pairs: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Images that come in identical pairs, so that everyone finds the same clusters."""
    points = np.eye(n_classes * n_pairs).repeat(2, axis=0)
    return np.arange(n_classes).repeat(2 * n_pairs), points


def literal(
    labels: NDArray[np.int64], images: NDArray[Any], rate: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Algorithm 1, line by line; a cluster is a set of equal images."""
    y = labels.copy()
    misplaced = np.zeros(len(y), dtype=bool)
    while misplaced.sum() < rate * len(y):
        c = rng.choice(np.unique(y))
        members = [j for j in range(len(y)) if y[j] == c]
        clusters: dict[bytes, list[int]] = {}
        for j in members:
            clusters.setdefault(images[j].tobytes(), []).append(j)
        for q in clusters.values():
            other = rng.choice([k for k in np.unique(y) if k != c])
            for j in q:
                y[j] = other
        misplaced[members] = True
    return y


def figures(original: NDArray[np.int64], given: NDArray[np.int64]) -> tuple[int, int, int]:
    """Wrong labels, groups moved together, size of the largest class."""
    wrong = given != original
    groups = np.unique(np.stack([original, given])[:, wrong], axis=1)
    return int(wrong.sum()), groups.shape[1], int(np.bincount(given).max())


def test_distribution_is_that_of_algorithm_1() -> None:
    labels, points = pairs(n_classes=6, n_pairs=3)
    ours, theirs = [], []
    for seed in range(250):
        ours.append(figures(labels, small_cluster(labels, 0.5, points, seed=seed).given))
        rng = np.random.default_rng(seed)
        theirs.append(figures(labels, literal(labels, points, 0.5, rng)))
    for mine, reference in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3
    assert {row[0] for row in ours} == {row[0] for row in theirs} == {18}


def test_equal_images_stay_together() -> None:
    labels, points = pairs(n_classes=8, n_pairs=5)
    for seed in range(5):
        given = small_cluster(labels, 0.6, points, seed=seed).given.reshape(-1, 2)
        assert (given[:, 0] == given[:, 1]).all()


def test_classes_and_targets_are_uniform() -> None:
    labels, points = pairs(n_classes=5, n_pairs=4)
    counts = np.zeros((5, 5), dtype=int)
    removed = np.zeros(5, dtype=int)
    for seed in range(400):
        noisy = small_cluster(labels, 0.1, points, seed=seed)
        counts += noisy.transition_matrix(counts=True) // 2  # whole pairs
        removed[noisy.vanished] += 1
    assert removed.sum() == 400
    assert stats.chisquare(removed).pvalue > 1e-3
    for i in range(5):
        assert stats.chisquare(np.delete(counts[i], i)).pvalue > 1e-3


@pytest.fixture(scope="module", params=[0, 1])
def draw(request: pytest.FixtureRequest) -> NoisyLabels:
    """The size of Cars196's training half at 25 %, on features like those after a ReLU."""
    rng = np.random.default_rng(request.param)
    labels = rng.permutation(np.arange(8054) % 98)
    centers = rng.normal(size=(98, 128))
    features = np.maximum(centers[labels] + rng.normal(size=(8054, 128)), 0)
    return small_cluster(labels, 0.25, features.astype(np.float32), seed=request.param)


def test_as_many_classes_and_images_as_published(draw: NoisyLabels) -> None:
    """Published: 25 of 98 classes removed, 25.6 % of the images noisy."""
    assert len(draw.vanished) in (24, 25)
    assert 0.25 <= draw.rate < 0.25 + 83 / 8054  # within one class
    assert len(draw.kept_classes) == 98 - len(draw.vanished)  # type: ignore[arg-type]
    assert np.array_equal(np.unique(draw.labels), np.arange(98 - len(draw.vanished)))


def test_groups_are_as_uneven_as_published(draw: NoisyLabels) -> None:
    """Published: 908 groups, of 1, 2, 3 and 4 images 484, 187, 87 and 52."""
    counts = draw.transition_matrix(counts=True, sparse=True).tocoo()
    groups = counts.data[counts.row != counts.col]
    assert 0.8 < len(groups) / 908 < 1.2
    shares = np.bincount(groups, minlength=5)[1:5] / len(groups)
    np.testing.assert_allclose(shares, np.array([484, 187, 87, 52]) / 908, atol=0.1)
    assert groups.max() > 10  # while a few are large


def test_all_images_of_a_removed_class_are_noise(draw: NoisyLabels) -> None:
    removed = np.isin(draw.original, draw.vanished)
    assert np.array_equal(draw.is_noisy, removed)
    assert not np.isin(draw.given, draw.vanished).any()


def test_rate_1_ends_in_one_class() -> None:
    labels, points = pairs(n_classes=4, n_pairs=2)
    noisy = small_cluster(labels, 1.0, points)
    assert set(noisy.labels) == {0}
    assert len(noisy.vanished) == 3
    assert noisy.rate == 0.75


def test_rounding_removes_no_class_more() -> None:
    """0.55 * 100 is 55.00000000000001."""
    labels = np.arange(100) % 20
    noisy = small_cluster(labels, 0.55, np.eye(100), images_per_cluster=5)
    assert len(noisy.vanished) == 11


def test_images_per_cluster() -> None:
    labels, points = pairs(n_classes=10, n_pairs=10)
    fine = small_cluster(labels, 0.3, points, images_per_cluster=2)
    coarse = small_cluster(labels, 0.3, points, images_per_cluster=100)
    assert figures(labels, coarse.given)[1] == len(coarse.vanished) == 3  # a class, a cluster
    assert figures(labels, fine.given)[1] > 12


def test_normalize() -> None:
    """Without it, the length of a feature counts."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 8
    unit = rng.normal(size=(80, 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    long = unit * 2.0 ** rng.integers(-8, 8, size=(80, 1))  # exact in floating point
    a = small_cluster(labels, 0.3, unit)
    b = small_cluster(labels, 0.3, long)
    c = small_cluster(labels, 0.3, long, normalize=False)
    assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.labels, c.labels)
    assert small_cluster(labels, 0.3, np.zeros((80, 4))).rate >= 0.3  # a norm of 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_features(dtype: torch.dtype) -> None:
    labels, points = pairs(n_classes=6, n_pairs=3)
    expected = small_cluster(labels, 0.4, points).rate
    features = torch.from_numpy(points).to(dtype).requires_grad_()
    assert small_cluster(torch.from_numpy(labels), 0.4, features).rate == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": [[0.0]] * 4}, TypeError, "features must be an array or tensor, got list"),
        ({"features": np.array([["a"]] * 4)}, TypeError, "features must hold real numbers"),
        ({"features": np.zeros(4)}, ValueError, r"features must have 2 dimensions, .* \(4,\)"),
        ({"features": np.zeros((3, 2))}, ValueError, "features must have 4 rows, .* got 3"),
        ({"features": np.full((4, 2), np.nan)}, ValueError, "features must be finite"),
        ({"images_per_cluster": 0}, ValueError, "images_per_cluster must be at least 1, got 0"),
        ({"images_per_cluster": 2.0}, TypeError, "images_per_cluster must be an integer"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"labels": [0, 0, 1, 1], "rate": 0.5, "features": np.eye(4)}
    small_cluster(**good)
    with pytest.raises(error, match=message):
        small_cluster(**{**good, **options})
