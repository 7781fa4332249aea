"""NoisyLabels: consistency, the transition matrix, the summary, the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from noisydml.noise import NoisyLabels, small_cluster, uniform

SMALL = NoisyLabels([7, 7, 3, 3], [False, True, True, False], [7, 3, 7, 3], "by hand", 0.5)
REINDEXED = NoisyLabels([0, 1, 1, 0], [False, False, True, True], [3, 9, 5, 5], kept_classes=[3, 9])


def test_properties() -> None:
    assert SMALL.rate == 0.5
    assert len(SMALL) == 4
    assert SMALL.classes.tolist() == [3, 7]
    assert SMALL.vanished.tolist() == []
    assert SMALL.given.tolist() == SMALL.labels.tolist()
    assert REINDEXED.given.tolist() == [3, 9, 9, 3]
    assert REINDEXED.classes.tolist() == [3, 5, 9]
    assert REINDEXED.vanished.tolist() == [5]
    assert REINDEXED.rate == 0.5


def test_transition_matrix_against_a_loop() -> None:
    labels = np.random.default_rng(0).integers(-3, 6, size=300)
    labels = np.where(labels < 0, labels - 1, labels)  # -1 is none
    noisy = uniform(labels, 0.4)
    counts = np.zeros((9, 9), dtype=int)
    for original, given in zip(noisy.original, noisy.labels, strict=True):
        counts[original + 3 + (original < 0), given + 3 + (given < 0)] += 1
    assert np.array_equal(noisy.transition_matrix(counts=True), counts)
    np.testing.assert_allclose(
        noisy.transition_matrix(), counts / counts.sum(axis=1, keepdims=True), rtol=1e-15
    )
    sparse = noisy.transition_matrix(sparse=True)
    assert isinstance(sparse, csr_array)
    assert np.array_equal(sparse.toarray(), noisy.transition_matrix())


def test_transition_matrix_of_removed_classes() -> None:
    matrix = REINDEXED.transition_matrix()
    assert matrix.tolist() == [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]


def test_transition_matrix_of_many_classes() -> None:
    noisy = uniform(np.arange(100_000), 0.5)
    with pytest.raises(ValueError, match=r"sparse must be True .* got 100000 classes.* 80 GB"):
        noisy.transition_matrix()
    sparse = noisy.transition_matrix(counts=True, sparse=True)
    assert sparse.shape == (100_000, 100_000)
    assert sparse.nnz == 100_000
    assert sparse.diagonal().sum() == 50_000


@pytest.mark.parametrize("option", ["counts", "sparse"])
def test_transition_matrix_refuses(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} must be a bool, got int"):
        SMALL.transition_matrix(**{option: 1})  # type: ignore[call-overload]


def test_summary() -> None:
    assert SMALL.summary().splitlines() == [
        "by hand: 2 of 4 labels are wrong (50.0%, 50.0% asked for)",
        "classes: 2 before, 2 after",
        "samples a class: 2 to 2 (median 2) before, 2 to 2 (median 2) after",
        "wrong labels in a class, %: 50 to 50 (median 50)",
    ]
    assert REINDEXED.summary().splitlines() == [
        "given: 2 of 4 labels are wrong (50.0%)",
        "classes: 3 before, 2 after",
        "vanished classes: 1 (5)",
        "samples a class: 1 to 2 (median 1) before, 2 to 2 (median 2) after",
        "wrong labels in a class, %: 50 to 50 (median 50)",
        "labels are numbered anew, 0 to 1",
    ]


def test_summary_by_name() -> None:
    names = ["a", "b", "c", "d", "e", "owl"]
    assert "vanished classes: 1 (owl)" in REINDEXED.summary(names)


def test_summary_names_no_more_than_ten_vanished_classes() -> None:
    noisy = NoisyLabels([99] * 20, [True] * 20, np.arange(20))
    assert "vanished classes: 20 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in noisy.summary()


@pytest.mark.parametrize(
    "noisy",
    [
        SMALL,
        REINDEXED,
        uniform([], 0.0),
        uniform([5, 5, 8], 0.4),
        small_cluster([0, 0, 1, 1, 2, 2], 0.3, np.eye(6)),
    ],
)
def test_save_and_load(noisy: NoisyLabels, tmp_path: Path) -> None:
    path = tmp_path / "labels"  # without a suffix, it stays so
    noisy.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["labels"]
    loaded = NoisyLabels.load(path)
    for name in ("labels", "is_noisy", "original"):
        before, after = getattr(noisy, name), getattr(loaded, name)
        assert np.array_equal(before, after)
        assert before.dtype == after.dtype
    assert loaded.model == noisy.model
    assert loaded.requested_rate == noisy.requested_rate
    if noisy.kept_classes is None:
        assert loaded.kept_classes is None
    else:
        assert np.array_equal(loaded.kept_classes, noisy.kept_classes)


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NoisyLabels.load(tmp_path / "none.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="must be an npz file"):
        NoisyLabels.load(tmp_path / "array.npy")
    SMALL.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "broken.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken"):
        NoisyLabels.load(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3, int))
    with pytest.raises(ValueError, match="without is_noisy, model, original"):
        NoisyLabels.load(tmp_path / "other.npz")
    np.savez(
        tmp_path / "pickle.npz",
        labels=np.array([print], dtype=object),
        is_noisy=[True],
        original=[1],
        model="x",
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        NoisyLabels.load(tmp_path / "pickle.npz")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"labels": [0, 1, 0]}, ValueError, r"labels must have 2 entries, .* got shape \(3,\)"),
        ({"is_noisy": [True]}, ValueError, r"is_noisy must have 2 entries, .* got shape \(1,\)"),
        ({"is_noisy": [0, 1]}, TypeError, "is_noisy must hold bools, got dtype int64"),
        ({"is_noisy": [True, True]}, ValueError, "is_noisy must be True exactly where"),
        ({"is_noisy": [False, False]}, ValueError, "is_noisy must be True exactly where"),
        ({"original": [0.0, 1.0]}, TypeError, "original must hold integers"),
        ({"requested_rate": 2}, ValueError, r"requested_rate must be in \[0, 1\], got 2"),
        ({"kept_classes": [0]}, ValueError, r"labels must be in \[0, 1\), the kept classes"),
        ({"kept_classes": [0.0, 1.0]}, TypeError, "kept_classes must hold integers"),
    ],
    ids=str,
)
def test_bad_fields(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"labels": [0, 1], "is_noisy": [False, True], "original": [0, 0]}
    NoisyLabels(**good)
    with pytest.raises(error, match=message):
        NoisyLabels(**{**good, **fields})


def test_what_has_no_label_is_no_class() -> None:
    noisy = NoisyLabels([0, -1, -1, 1], [False, True, False, False], [0, 1, -1, 1])
    assert noisy.rate == pytest.approx(1 / 3)
    assert noisy.summary(["cat", "dog"]).splitlines()[:2] == [
        "given: 1 of 3 labels are wrong (33.3%)",
        "rows left alone: 1",
    ]
    with pytest.raises(TypeError, match="model must be a string"):
        NoisyLabels([0], [False], [0], model=3)  # type: ignore[arg-type]
