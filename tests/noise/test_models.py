"""What all models have in common, and what uniform, pair_flip and class_frequency do alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

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
        (np.zeros((2, 2), int), ValueError, r"labels must have 1 dimension, got shape \(2, 2\)"),
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


# uniform: where wrong labels go


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


def test_uniform_swaps_two_classes() -> None:
    labels = np.array([4, 9] * 5)
    assert np.array_equal(uniform(labels, 1.0).labels, 13 - labels)


def test_uniform_is_frozen() -> None:
    noisy = uniform(np.arange(30) % 5, 0.3, seed=7)
    assert "".join(map(str, noisy.labels)) == "012310023441034012342434201234"
    noisy = uniform(np.arange(30) % 5, 0.3, seed=7, exact=False)
    assert "".join(map(str, noisy.labels)) == "012140023400034012343021001234"


# pair_flip: every class is mistaken for the next


def test_pair_flip_to_the_next_class_and_from_the_last_the_first() -> None:
    labels = np.tile([3, 5, 9], 40)
    noisy = pair_flip(labels, 0.4)
    following = {3: 5, 5: 9, 9: 3}
    wrong = noisy.is_noisy
    assert noisy.labels[wrong].tolist() == [following[x] for x in labels[wrong]]
    expected = [[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]]
    np.testing.assert_allclose(noisy.transition_matrix(), expected)


def test_pair_flip_is_frozen() -> None:
    assert (
        "".join(map(str, pair_flip(np.arange(20) % 4, 0.3, seed=7).labels))
        == "01200133023312230123"
    )


# class_frequency: only the largest or the rarest classes

FREQUENCIES = np.array([50, 400, 100, 200, 300, 150])
UNEVEN = np.repeat(np.arange(6), FREQUENCIES)


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
def test_class_frequency_corrupts_only_that_group(
    which: Any, share: float, group: list[int]
) -> None:
    rate = 0.1
    noisy = class_frequency(UNEVEN, rate, which=which, share=share)
    assert set(UNEVEN[noisy.is_noisy]) == set(group)
    assert set(noisy.labels[noisy.is_noisy]) <= set(group)
    assert noisy.is_noisy.sum() == 120
    per_class = np.bincount(UNEVEN, weights=noisy.is_noisy, minlength=6)[group]
    assert (abs(per_class - 120 * FREQUENCIES[group] / FREQUENCIES[group].sum()) < 1).all()


def test_targets_of_class_frequency() -> None:
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


def test_classes_of_equal_size_are_ranked_at_random() -> None:
    labels = np.repeat(np.arange(6), 10)
    groups = {
        frozenset(labels[class_frequency(labels, 0.2, share=1 / 3, seed=seed).is_noisy].tolist())
        for seed in range(100)
    }
    assert all(len(group) == 2 for group in groups)
    assert len(groups) > 10  # of 15


def test_the_whole_group_may_be_wrong() -> None:
    noisy = class_frequency(UNEVEN, 0.25, which="rarest", share=0.5)
    assert np.array_equal(noisy.is_noisy, np.isin(UNEVEN, [0, 2, 5]))


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
def test_refusals_of_class_frequency(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_frequency(UNEVEN, **{"rate": 0.1, **options})


def test_class_frequency_is_frozen() -> None:
    labels = np.repeat(np.arange(4), [8, 6, 4, 2])
    noisy = class_frequency(labels, 0.3, seed=7)
    assert "".join(map(str, noisy.labels)) == "10100001000111222233"


SPARING: dict[str, Callable[..., NoisyLabels]] = {
    "uniform": uniform,
    "pair_flip": pair_flip,
    "class_frequency": class_frequency,
    "semantic": lambda labels, rate, **options: semantic(labels, rate, TREE, **options),
    "small_cluster": cluster,
}


@pytest.mark.parametrize("model", SPARING)
def test_spared_rows_and_missing_labels_are_left_alone(model: str) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, N_CLASSES, size=1000)
    spare = rng.random(1000) < 0.3
    labels[rng.random(1000) < 0.1] = -1
    labels[spare & (rng.random(1000) < 0.1)] = 3
    counted = ~spare & (labels != -1)
    noisy = SPARING[model](labels[:, None], 0.4, spare=torch.from_numpy(spare))
    assert np.array_equal(noisy.original, labels)
    assert np.array_equal(noisy.given[~counted], labels[~counted])
    assert not noisy.is_noisy[~counted].any()
    assert (noisy.labels[labels == -1] == -1).all()
    assert noisy.labels[labels != -1].min() == 0
    assert -1 not in noisy.classes
    assert noisy.transition_matrix(counts=True).sum() == counted.sum()
    assert np.array_equal(~counted, noisy.spared)
    assert noisy.rate == noisy.is_noisy.sum() / counted.sum()
    assert noisy.rate == pytest.approx(0.4, abs=0.11 if model == "small_cluster" else 0.001)
    assert f"of {counted.sum()} labels are wrong" in noisy.summary()
    assert f"rows left alone: {(~counted).sum()}" in noisy.summary()
    if model != "small_cluster":  # the rows left alone change nothing of what is drawn
        alone = SPARING[model](labels[counted], 0.4)
        assert np.array_equal(alone.labels, noisy.labels[counted])


def test_classes_of_spared_rows_alone_are_no_targets() -> None:
    labels, spare = np.arange(100) % 4, np.arange(100) % 4 == 3
    assert set(uniform(labels, 1, spare=spare).labels[~spare]) == {0, 1, 2}
    assert uniform([-1, -1], 0.5).rate == 0
    with pytest.raises(ValueError, match=r"at least 2 classes .* got 1; -1 stands for no label"):
        uniform([-1, 1, 1], 0.5)


@pytest.mark.parametrize(
    ("spare", "error", "message"),
    [
        ([0, 1], TypeError, "spare must hold bools, got dtype int64"),
        ([True], ValueError, r"spare must have 2 entries, one per label, got shape \(1,\)"),
    ],
)
def test_refused_masks(spare: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        uniform([0, 1], 0.5, spare=spare)
