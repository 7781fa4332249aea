"""Embeddings on disk and in parts are judged as those in memory are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from noisydml import LabelIssues, find_label_issues
from noisydml.audit.rows import EmbeddingRows
from noisydml.functional import whitening as functional
from noisydml.memory import evidence
from noisydml.memory.whitened import Whitened

pytestmark = pytest.mark.usefixtures("few_held_out")


def example(width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """500 samples, of which some are wrong and some have no label."""
    rng = np.random.default_rng(0)
    labels = np.arange(500) % 10
    inner = rng.normal(size=(10, 16))[labels] + 0.8 * rng.normal(size=(500, 16))
    embeddings = inner @ rng.normal(size=(16, width)) + 0.1 * rng.normal(size=(500, width))
    labels[:50] = (labels[:50] + rng.integers(1, 10, 50)) % 10
    labels[50:70] = -1
    return embeddings.astype(np.float16), labels


def same(one: LabelIssues, other: LabelIssues) -> bool:
    return (
        torch.equal(one.issues, other.issues)
        and torch.allclose(one.score, other.score, atol=1e-6, equal_nan=True)
        and torch.equal(one.suggested_labels, other.suggested_labels)
        and torch.equal(one.neighbors, other.neighbors)
        and abs(one.noise_rate - other.noise_rate) < 1e-6
    )


@pytest.mark.parametrize(("metric", "width"), [("cosine", 300), ("euclidean", 16)])
def test_the_answer_is_that_of_an_array(metric: Any, width: int, tmp_path: Path) -> None:
    embeddings, labels = example(width)
    weights = np.linspace(0.5, 1, 500)
    np.save(tmp_path / "all.npy", embeddings)
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    expected = find_label_issues(embeddings, labels, metric=metric, sample_weight=weights)
    assert 30 < len(expected) < 70
    for value in (
        mapped,
        [mapped],
        [mapped[:3], mapped[3:3], mapped[3:]],
        (torch.from_numpy(embeddings[:201]).requires_grad_(), embeddings[201:].astype(float)),
        list(embeddings[:, None].astype(np.float32)),  # one row in each
    ):
        found = find_label_issues(value, labels, metric=metric, sample_weight=weights)
        assert same(found, expected)


@pytest.mark.parametrize("width", [16, 300])
def test_small_blocks_say_the_same(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = example(width)
    whole = find_label_issues(embeddings, labels)
    monkeypatch.setattr(functional, "_NUMBERS", 37 * width)
    monkeypatch.setattr(Whitened, "block", 41)
    for most in (128, 5):  # of the classes, compared with all or with the nearest of them
        monkeypatch.setattr(evidence, "_ALL", most)
        monkeypatch.setattr(evidence, "_SOME", 9)
        found = find_label_issues(embeddings, labels)
        assert torch.allclose(found.score, whole.score, atol=0.05, equal_nan=True)
    monkeypatch.setattr(Whitened, "block", 4096)
    assert torch.allclose(
        find_label_issues(embeddings, labels).score, found.score, atol=1e-5, equal_nan=True
    )


def test_rows_are_read_where_they_are(tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for parts in (mapped, [mapped[:1], rows[1:1], rows[1:5], torch.from_numpy(rows[5:])]):
        read = EmbeddingRows(parts, "euclidean")
        assert read.shape == (6, 2)
        for start in range(6):
            for stop in range(start + 1, 8):
                assert read[start:stop].tolist() == rows[start:stop].tolist()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 4))], ValueError, "of one width, got 3 and 4 columns"),
        ([np.ones((2, 3)), np.ones((2, 3), int)], TypeError, "floating point, got dtype int64"),
        ([np.ones((2, 0)), np.ones((2, 0))], ValueError, "at least 1 column, got 0"),
        ([np.ones((2, 3)), torch.ones(2, 3).to_sparse()], TypeError, "dense tensor"),
    ],
)
def test_what_are_no_parts(parts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"embeddings must .*{message}"):
        find_label_issues(parts, [0, 1, 0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_noticed_in_every_block(bad: float, tmp_path: Path) -> None:
    embeddings, labels = example(16)
    embeddings[499, 3] = bad
    np.save(tmp_path / "all.npy", embeddings)
    for value in (
        np.load(tmp_path / "all.npy", mmap_mode="r"),
        [embeddings[:300], embeddings[300:]],
    ):
        with pytest.raises(ValueError, match="embeddings must be finite, got NaN or infinity"):
            find_label_issues(value, labels)


@pytest.mark.parametrize("shape", [(6,), (3, 2, 1)])
def test_a_mapped_array_of_another_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", np.ones(shape))
    with pytest.raises(ValueError, match="embeddings must have 2 dimensions"):
        find_label_issues(np.load(tmp_path / "odd.npy", mmap_mode="r"), [0, 1, 0])


@functools.cache
def by_distances() -> LabelIssues:
    embeddings, labels = example(16)
    return find_label_issues(embeddings.astype(np.float64), labels, metric="euclidean")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("factor", "offset"), [(1, 1.7e9), (1, -1e12), (1e40, 0), (1e-50, 0), (1e300, 1e305)]
)
def test_what_float32_does_not_hold(
    metric: Any, factor: float, offset: float, tmp_path: Path
) -> None:
    embeddings, labels = example(16)
    expected = by_distances()
    moved = embeddings.astype(np.float64) * factor + offset
    np.save(tmp_path / "all.npy", moved)
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    for value in (moved, torch.from_numpy(moved), mapped, [mapped[:7], moved[7:]]):
        found = find_label_issues(value, labels, metric=metric)
        assert not found.contradictions
        agree = np.isin(found.issues.numpy(), expected.issues.numpy()).mean()
        assert agree > (0.9 if metric == "euclidean" else 0.6)
        assert found.noise_rate == pytest.approx(expected.noise_rate, abs=0.02)


def test_an_offset_of_one_column() -> None:
    """Such as a time in seconds beside what is small; a row of zeros does not hide it."""
    embeddings, labels = example(16)
    embeddings, expected = embeddings.astype(np.float64), by_distances()
    embeddings[:, 3] += 1.7e9
    found = find_label_issues(embeddings, labels, metric="euclidean")
    assert torch.equal(found.issues.sort().values, expected.issues.sort().values)
    embeddings[3] = 0
    rows = EmbeddingRows(embeddings, "euclidean")[4:500]
    assert (rows[:, 3] - rows[0, 3]).abs().max() < 100
    assert (rows[:, 3] - rows[0, 3]).unique().numel() > 400


def test_numbers_of_float64_that_float32_holds_are_as_float32() -> None:
    embeddings = example(16)[0].astype(np.float64) + 0.1
    for metric in ("cosine", "euclidean"):
        rows = EmbeddingRows(embeddings, metric)[:]
        assert torch.equal(rows, EmbeddingRows(embeddings.astype(np.float32), metric)[:])


def test_numbers_too_large_beside_the_others() -> None:
    embeddings, labels = example(16)
    embeddings = embeddings.astype(np.float64)
    embeddings[3, 3] = 1e40
    for value in (embeddings, [embeddings[:300], embeddings[300:]]):
        find_label_issues(value, labels)  # the others are small beside it
    embeddings[3, 3] = 1
    embeddings, labels = np.tile(embeddings, (3, 1)), np.tile(labels, 3)
    embeddings[1400, 3] = 1e40
    for metric in ("cosine", "euclidean"):
        with pytest.raises(ValueError, match="that float32 holds beside the first 1024 of them"):
            find_label_issues(embeddings, labels, metric=metric)


def test_neighbors_by_directions_that_float32_rounds_away() -> None:
    """Beside an offset that all have; the eight nearest in float64 are found."""
    random = np.random.default_rng(0)
    embeddings = 5 + 1e-3 * random.normal(size=(300, 8))
    labels = np.arange(300) % 3
    issues = find_label_issues(embeddings, labels, noise_rate=0.1)
    found = issues.with_neighbors(embeddings, k=8)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distance = ((units[:, None] - units[None]) ** 2).sum(axis=2) + 9 * np.eye(300)
    nearest = distance.argsort(axis=1)[:, :8]
    for row, sample in zip(found.neighbors.tolist(), found.issues.tolist(), strict=True):
        assert set(row) == set(nearest[sample])


def test_the_least_numbers_that_there_are() -> None:
    rows = EmbeddingRows(np.array([[5e-324, 1e-323], [2e-323, 0.0]]), "euclidean")
    assert (rows[:].diff(dim=0) != 0).all()
