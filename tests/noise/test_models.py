"""What uniform, pair_flip, class_frequency, semantic and small_cluster have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from noisydml.noise import (
    ClassHierarchy,
    NoisyLabels,
    class_frequency,
    pair_flip,
    semantic,
    small_cluster,
    uniform,
)

N_CLASSES = 12
LABELS = np.random.default_rng(5).permutation(np.arange(240) % N_CLASSES)
TREE = ClassHierarchy.from_paths([f"{i % 3}/{i % 6}/{i}" for i in range(N_CLASSES)])


def cluster(labels: Any, rate: Any, **options: Any) -> NoisyLabels:
    n = np.asarray(labels, dtype=object).size
    return small_cluster(labels, rate, np.random.default_rng(6).normal(size=(n, 8)), **options)


def near(labels: Any, rate: Any, **options: Any) -> NoisyLabels:
    return semantic(labels, rate, TREE, **options)


def every_class(labels: Any, rate: Any, **options: Any) -> NoisyLabels:
    return class_frequency(labels, rate, share=1.0, **options)


Model = Callable[..., NoisyLabels]
BY_SAMPLE: list[Model] = [uniform, pair_flip, every_class, near]
by_sample = pytest.mark.parametrize("model", BY_SAMPLE, ids=lambda model: model.__name__)
every_model = pytest.mark.parametrize(
    "model", [*BY_SAMPLE, cluster], ids=lambda model: model.__name__
)


@by_sample
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.333, 0.5, 0.9, 1.0])
def test_exact_shares(model: Model, rate: float) -> None:
    labels = np.repeat(np.arange(N_CLASSES), [1, 2, 3, 5, 7, 11, 20, 20, 40, 41, 100, 250])
    noisy = model(labels, rate)
    sizes = np.bincount(labels)
    wrong = np.bincount(labels, weights=noisy.is_noisy)
    assert (np.floor(rate * sizes + 1e-9) <= wrong).all()
    assert (wrong <= np.ceil(rate * sizes - 1e-9)).all()
    assert noisy.is_noisy.sum() == np.floor(rate * len(labels) + 0.5)


@by_sample
def test_exact_shares_of_even_classes(model: Model) -> None:
    noisy = model(np.repeat(np.arange(N_CLASSES), 20), 0.1)
    assert (noisy.is_noisy.reshape(N_CLASSES, 20).sum(axis=1) == 2).all()


@by_sample
def test_shares_of_small_classes_add_up(model: Model) -> None:
    """A tenth of five is no whole number, yet a tenth of all is wrong."""
    noisy = model(np.repeat(np.arange(N_CLASSES), 5), 0.1)
    assert noisy.is_noisy.sum() == 6
    assert noisy.is_noisy.reshape(N_CLASSES, 5).sum(axis=1).max() == 1


@by_sample
def test_bernoulli(model: Model) -> None:
    labels = np.tile(np.arange(N_CLASSES), 2000)
    noisy = model(labels, 0.3, exact=False)
    n = len(labels)
    assert abs(noisy.is_noisy.sum() - 0.3 * n) < 4 * np.sqrt(n * 0.3 * 0.7)
    per_class = noisy.is_noisy.reshape(-1, N_CLASSES).sum(axis=0)
    assert len(set(per_class)) > 1
    spread = per_class.std(ddof=1) / np.sqrt(2000 * 0.3 * 0.7)
    assert 0.5 < spread < 1.6  # as of a binomial distribution
    assert not model(labels, 0.0, exact=False).is_noisy.any()
    assert model(labels, 1.0, exact=False).is_noisy.all()


@every_model
def test_noisy_is_where_the_label_differs(model: Model) -> None:
    noisy = model(LABELS, 0.4)
    assert np.array_equal(noisy.given != LABELS, noisy.is_noisy)
    assert np.array_equal(noisy.original, LABELS)
    assert noisy.requested_rate == 0.4


@every_model
def test_every_kind_of_labels(model: Model) -> None:
    expected = model(LABELS, 0.3).labels
    assert expected.dtype == np.int64
    for labels in (
        LABELS.tolist(),
        tuple(LABELS.tolist()),
        LABELS.astype(np.uint8),
        LABELS.astype(np.int16),
        torch.from_numpy(LABELS),
        torch.from_numpy(LABELS).int(),
    ):
        assert np.array_equal(model(labels, 0.3).labels, expected)


@every_model
def test_input_is_left_alone(model: Model) -> None:
    labels = LABELS.copy()
    noisy = model(labels, 0.5)
    noisy.labels[:] = -1
    noisy.original[:] = -1
    assert np.array_equal(labels, LABELS)


@every_model
def test_results_serve_torch(model: Model) -> None:
    noisy = model(LABELS, 0.3)
    assert torch.from_numpy(noisy.labels).dtype == torch.int64
    assert torch.from_numpy(noisy.is_noisy).dtype == torch.bool


@every_model
def test_seeds(model: Model) -> None:
    first = model(LABELS, 0.3, seed=3)
    assert np.array_equal(first.labels, model(LABELS, 0.3, seed=3).labels)
    assert not np.array_equal(first.is_noisy, model(LABELS, 0.3, seed=4).is_noisy)
    generator = np.random.default_rng(3)
    assert np.array_equal(first.labels, model(LABELS, 0.3, seed=generator).labels)
    assert not np.array_equal(first.is_noisy, model(LABELS, 0.3, seed=generator).is_noisy)


@every_model
def test_rate_0(model: Model) -> None:
    noisy = model(LABELS, 0)
    assert np.array_equal(noisy.labels, LABELS)
    assert noisy.rate == 0
    assert not len(noisy.vanished)


@by_sample
def test_rate_1(model: Model) -> None:
    noisy = model(LABELS, 1)
    assert (noisy.labels != LABELS).all()


@every_model
def test_no_labels(model: Model) -> None:
    noisy = model([], 0.5)
    assert len(noisy) == 0
    assert noisy.rate == 0
    assert "0 of 0" in noisy.summary()


@every_model
def test_one_class(model: Model) -> None:
    assert model([0, 0, 0], 0).labels.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"labels must have at least 2 classes .* got 1"):
        model([0, 0, 0], 0.1)


@by_sample
def test_classes_of_one_sample(model: Model) -> None:
    labels = np.arange(N_CLASSES)
    noisy = model(labels, 0.5)
    assert noisy.is_noisy.sum() == 6
    assert set(noisy.vanished) == set(labels) - set(noisy.given)
    assert model(labels, 1.0).is_noisy.all()


def test_clusters_of_one_sample() -> None:
    noisy = cluster(np.arange(N_CLASSES), 0.5)
    assert noisy.is_noisy.sum() == 6
    assert len(noisy.vanished) == 6


@every_model
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("abc", TypeError, "labels must be a list, array or tensor of integers, got str"),
        (None, TypeError, "labels must be a list, array or tensor of integers, got NoneType"),
        ([0.0, 1.0], TypeError, "labels must hold integers, got dtype float64"),
        ([True, False], TypeError, "labels must hold integers, got dtype bool"),
        (["a", "b"], TypeError, "labels must hold integers, got dtype <U1"),
        (np.zeros(0), TypeError, "labels must hold integers, got dtype float64"),
        (torch.zeros(2), TypeError, "labels must hold integers, got dtype torch.float32"),
        (np.zeros((2, 1), int), ValueError, r"labels must have 1 dimension, got shape \(2, 1\)"),
        (torch.tensor(1), ValueError, r"labels must have 1 dimension, got shape \(\)"),
        ([[0], [1, 2]], ValueError, "labels must have 1 dimension, got rows of unequal length"),
        (np.array([2**63, 0], np.uint64), ValueError, "labels must fit into int64"),
    ],
)
def test_bad_labels(model: Model, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model(labels, 0.5)


@every_model
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": -0.1}, ValueError, r"rate must be in \[0, 1\], got -0.1"),
        ({"rate": 1.1}, ValueError, r"rate must be in \[0, 1\], got 1.1"),
        ({"rate": float("nan")}, ValueError, r"rate must be in \[0, 1\], got nan"),
        ({"rate": "0.5"}, TypeError, "rate must be a number, got str"),
        ({"rate": True}, TypeError, "rate must be a number, got bool"),
        ({"seed": None}, TypeError, "seed must be an integer or a .*Generator, got NoneType"),
        ({"seed": 1.0}, TypeError, "seed must be an integer or a .*Generator, got float"),
        ({"seed": True}, TypeError, "seed must be an integer or a .*Generator, got bool"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
        ({"exact": 1}, TypeError, "exact must be a bool, got int"),
    ],
    ids=str,
)
def test_bad_options(
    model: Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if model is cluster and "exact" in options:
        options = {"normalize": 1}
        message = message.replace("exact", "normalize")
    with pytest.raises(error, match=message):
        model(LABELS, **{"rate": 0.5, **options})
