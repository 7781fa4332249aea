"""FeatureMemory against a deque, and its centers against a recomputation from the entries."""

from __future__ import annotations

import copy
import io
import warnings
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from noisydml.memory import FeatureMemory
from noisydml.memory.centers import EMPTY
from noisydml.memory.features import last_of_equals

CLASSES, WIDTH = 7, 5


def rows(size: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of very different lengths, labels, ids and a mask."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.logspace(-6, 6, size).unsqueeze(1)[torch.randperm(size, generator=g)]
    return (
        torch.randn(size, WIDTH, generator=g) * lengths,
        torch.randint(classes, (size,), generator=g),
        torch.randint(1000, (size,), generator=g),
        torch.rand(size, generator=g) < 0.6,
    )


def unit(features: Tensor) -> np.ndarray:
    values = features.double().numpy()
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def in_order(memory: FeatureMemory) -> list[tuple[int, int]]:
    """(label, id) from the oldest entry to the newest."""
    start = int(memory.total) % len(memory)
    order = [(start + i) % len(memory) for i in range(len(memory))]
    pairs = [(int(memory.labels[i]), int(memory.sample_ids[i])) for i in order]
    return [pair for pair in pairs if pair[0] != EMPTY]


def assert_exact(memory: FeatureMemory) -> None:
    """Counts and centers are, to the bit, what the entries say."""
    fresh = FeatureMemory(
        len(memory), memory.embedding_size, memory.num_classes, dtype=memory.features.dtype
    )
    fresh.load_state_dict(memory.state_dict())
    assert torch.equal(memory.classes.sums, fresh.classes.sums)
    assert torch.equal(memory.counts, fresh.counts)
    assert torch.equal(memory.centers, fresh.centers)
    filled = memory.labels >= 0
    counts = torch.bincount(memory.labels[filled], minlength=memory.num_classes or 0)
    assert torch.equal(memory.counts, counts)
    assert not memory.centers[memory.counts == 0].any()  # no ghost
    assert not memory.features[~filled].any()
    for k in counts.nonzero().flatten().tolist():
        mean = memory.features[memory.labels == k].double().mean(dim=0)
        torch.testing.assert_close(memory.centers[k].double(), mean, rtol=2e-7, atol=1e-8)


def same(a: FeatureMemory, b: FeatureMemory) -> None:
    for (name, mine), (_, other) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("sizes", [[1] * 30, [3, 4, 5] * 6, [11, 12, 13, 40, 2], [0, 23, 0, 24]])
@pytest.mark.parametrize("masked", [False, True])
def test_first_in_first_out(sizes: list[int], masked: bool) -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES)
    literal: deque[tuple[np.ndarray, int, int]] = deque(maxlen=12)
    enqueued = 0
    for step, size in enumerate(sizes):
        embeddings, labels, ids, keep = rows(size, step)
        memory.enqueue(embeddings, labels, ids, keep if masked else None)
        for i in range(size):
            if not masked or keep[i]:
                literal.append((unit(embeddings)[i], int(labels[i]), int(ids[i])))
                enqueued += 1
        assert int(memory.total) == enqueued
        assert in_order(memory) == [(label, id_) for _, label, id_ in literal]
        assert int(memory.filled.sum()) == len(literal)
        start = max(0, enqueued - len(memory))
        for position, (feature, _, _) in enumerate(literal):
            stored = memory.features[(start + position) % len(memory)]
            np.testing.assert_allclose(stored.numpy(), feature, rtol=0, atol=3e-7)
        assert_exact(memory)


def test_the_wrap_overwrites_the_oldest() -> None:
    memory = FeatureMemory(4, 2, 10)
    ones = torch.ones(3, 2)
    memory.enqueue(ones, torch.tensor([0, 1, 2]))
    memory.enqueue(ones, torch.tensor([3, 4, 5]))
    assert memory.labels.tolist() == [4, 5, 2, 3]
    memory.enqueue(torch.ones(9, 2), torch.arange(9))
    assert sorted(memory.labels.tolist()) == [5, 6, 7, 8]
    assert in_order(memory) == [(5, -1), (6, -1), (7, -1), (8, -1)]


def test_no_method_asks_the_host() -> None:
    with fake_cuda() as device:
        memory = FeatureMemory(12, WIDTH, CLASSES)
        for module in memory.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device))
        for size in (5, 30):
            embeddings = torch.randn(size, WIDTH, device=device)
            labels = torch.zeros(size, dtype=torch.int64, device=device)
            memory.enqueue(embeddings, labels, labels, labels == 0)
            memory.enqueue(embeddings, labels)
            memory.write(embeddings, labels, labels)
        assert memory.filled.device.type == memory.centers.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_writing_in_place(dtype: torch.dtype) -> None:
    memory = FeatureMemory(20, WIDTH, CLASSES, dtype=dtype)
    literal: dict[int, tuple[np.ndarray, int]] = {}
    for step in range(40):
        embeddings, labels, ids, _ = rows(9, step)
        ids = ids % 20  # with repetitions: the last one counts
        memory.write(embeddings, labels, ids)
        for i in range(9):
            literal[int(ids[i])] = (unit(embeddings)[i], int(labels[i]))
        assert memory.filled.nonzero().flatten().tolist() == sorted(literal)
        for entry, (feature, label) in literal.items():
            assert int(memory.labels[entry]) == label
            assert int(memory.sample_ids[entry]) == entry
            np.testing.assert_allclose(
                memory.features[entry].double().numpy(), feature, atol=torch.finfo(dtype).eps
            )
        assert_exact(memory)
    before = copy.deepcopy(memory)
    memory.write(torch.empty(0, WIDTH), torch.empty(0).long(), torch.empty(0).long())
    same(before, memory)


def test_exact_after_twenty_thousand_steps() -> None:
    memory = FeatureMemory(50, WIDTH, CLASSES)
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(4096, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (4096,), generator=generator)
    with torch.no_grad():
        for step in range(20_000):
            start = (step * 2) % 4094
            memory.enqueue(pool[start : start + 2], labels[start : start + 2])
    assert int(memory.total) == 40_000
    assert_exact(memory)
    newest = torch.cat(
        [torch.arange((s * 2) % 4094, (s * 2) % 4094 + 2) for s in range(19_975, 20_000)]
    )
    for k in range(CLASSES):
        members = newest[labels[newest] == k]
        expected = unit(pool[members]).mean(axis=0) if len(members) else np.zeros(WIDTH)
        assert np.abs(memory.centers[k].numpy() - expected).max() < 1e-6


def test_a_class_that_leaves_is_forgotten_and_can_come_back() -> None:
    memory = FeatureMemory(4, 3, 3)
    memory.enqueue(torch.randn(4, 3), torch.tensor([2, 2, 2, 2]))
    for _ in range(2):
        memory.enqueue(torch.randn(2, 3), torch.tensor([0, 1]))
    assert memory.counts.tolist() == [2, 2, 0]
    assert torch.equal(memory.centers[2], torch.zeros(3))
    memory.enqueue(torch.tensor([[0.0, 3.0, 4.0]]), torch.tensor([2]))
    torch.testing.assert_close(memory.centers[2], torch.tensor([0.0, 0.6, 0.8]))


@pytest.mark.parametrize("fill", [0, 1, 5, 12, 17])
@pytest.mark.parametrize("num_classes", [CLASSES, None])
def test_state_dict_at_any_fill(fill: int, num_classes: int | None) -> None:
    memory = FeatureMemory(12, WIDTH, num_classes)
    memory.enqueue(*rows(fill, 0)[:3])
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other = FeatureMemory(12, WIDTH, num_classes)
    other.enqueue(*rows(7, 9)[:3])
    other.load_state_dict(torch.load(file, weights_only=True))
    same(memory, other)
    for each in (memory, other):
        each.enqueue(*rows(8, 2)[:3])
    same(memory, other)
    assert set(memory.state_dict()) == {"_extra_state", "features", "labels", "sample_ids", "total"}


def test_copies_and_pickles() -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES)
    memory.enqueue(*rows(8, 2)[:3])
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    for other in (copy.deepcopy(memory), torch.load(file, weights_only=False)):
        same(memory, other)
        other.load_state_dict(FeatureMemory(12, WIDTH, CLASSES).state_dict())
        assert not other.counts.any()
    assert memory.counts.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_of_centers_stays(dtype: torch.dtype) -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES)
    memory.enqueue(*rows(8, 2)[:3])
    memory.to(dtype)
    assert memory.features.dtype == dtype
    assert (memory.classes.sums.dtype, memory.centers.dtype) == (torch.float64, torch.float32)
    assert_exact(memory)
    memory.enqueue(*rows(9, 3)[:3])
    assert_exact(memory)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float64])
def test_storage_in_any_precision(stored: torch.dtype, given: torch.dtype) -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES, dtype=stored)
    for step in range(20):
        embeddings, labels, ids, keep = rows(6, step)
        embeddings = torch.nn.functional.normalize(embeddings).to(given)
        memory.enqueue(embeddings, labels, ids, keep)
        assert memory.features.dtype == stored
        assert_exact(memory)


def test_lengths_beyond_single_precision() -> None:
    memory = FeatureMemory(2, 2, 1)
    # Single precision has no 3e60, double has; a zero stays a zero.
    embeddings = torch.tensor([[3e60, 4e60], [0.0, 0.0]], dtype=torch.float64)
    memory.enqueue(embeddings, torch.tensor([0, 0]))
    torch.testing.assert_close(memory.features, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_without_classes_or_lengths() -> None:
    memory = FeatureMemory(3, 2, normalize=False)
    embeddings = torch.randn(2, 2, requires_grad=True)
    memory.enqueue(embeddings, torch.tensor([10**9, 4]))
    assert torch.equal(memory.features[:2], embeddings)
    assert not memory.features.requires_grad
    assert memory.labels.tolist() == [10**9, 4, EMPTY]
    assert not hasattr(memory, "centers")


def test_reset_forgets_everything() -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES)
    memory.enqueue(*rows(20, 2)[:3])
    memory.reset()
    same(memory, FeatureMemory(12, WIDTH, CLASSES))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 2), ValueError, "memory_size must be at least 1"),
        ((1.5, 2), TypeError, "memory_size must be an integer, got float"),
        ((3, 0), ValueError, "embedding_size must be at least 1"),
        ((3, 2, 0), ValueError, "num_classes must be at least 1"),
        ((3, 2, True), TypeError, "num_classes must be an integer, got bool"),
    ],
)
def test_impossible_settings(arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        FeatureMemory(*arguments)


def test_impossible_keyword_settings() -> None:
    with pytest.raises(ValueError, match="num_classes needs normalize=True"):
        FeatureMemory(3, 2, 2, normalize=False)
    for dtype in (torch.int64, "float32"):
        with pytest.raises(TypeError, match="dtype must be a floating-point"):
            FeatureMemory(3, 2, dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": torch.ones(3, 4)}, ValueError, "as wide as the memory, 5, got 4"),
        ({"embeddings": torch.ones(3)}, ValueError, "embeddings must have 2 dimensions"),
        ({"embeddings": torch.ones(3, 5).long()}, TypeError, "embeddings must be a floating-point"),
        ({"labels": torch.zeros(2).long()}, ValueError, "labels must have 3 entries"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be an integer tensor"),
        ({"sample_ids": torch.zeros(3)}, TypeError, "sample_ids must be an integer tensor"),
        ({"keep": torch.ones(3)}, ValueError, "keep must be bool of shape"),
        ({"keep": torch.ones(2).bool()}, ValueError, "keep must be bool of shape"),
    ],
)
def test_bad_arguments_change_nothing(change: dict[str, Any], error: type, message: str) -> None:
    memory = FeatureMemory(12, WIDTH, CLASSES)
    memory.enqueue(*rows(4, 1)[:3])
    before = copy.deepcopy(memory)
    good = {"embeddings": torch.ones(3, WIDTH), "labels": torch.zeros(3).long()}
    with pytest.raises(error, match=message):
        memory.enqueue(**{**good, **change})
    same(before, memory)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 50])
def test_the_last_of_equal_ids(size: int) -> None:
    ids = torch.randint(9, (size,))
    rows = ids.tolist()
    expected = [max(j for j, other in enumerate(rows) if other == i) for i in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (ids, torch.stack([ids, ids], dim=1)[:, 1]):  # a column of a table
            assert last_of_equals(given).tolist() == expected


def test_a_whole_data_set_is_written_at_once() -> None:
    memory = FeatureMemory(70_000, 1)
    ids = torch.randperm(70_000)
    memory.write(torch.ones(70_000, 1), ids % 7, ids)
    assert torch.equal(memory.labels, torch.arange(70_000) % 7)


def test_a_width_left_open_is_that_of_the_first_rows_or_of_a_loaded_state() -> None:
    memory = FeatureMemory(4)
    assert memory.features.shape == (4, 0)
    empty = memory.state_dict()
    memory.enqueue(torch.randn(2, 3), torch.tensor([0, 1]))
    assert memory.embedding_size == 3
    with pytest.raises(ValueError, match="as wide as the memory, 3, got 5"):
        memory.enqueue(torch.randn(2, 5), torch.tensor([0, 1]))
    other = FeatureMemory(4)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.features, memory.features)
    other.load_state_dict(empty)  # of a run that had not begun
    assert other.embedding_size is None
    assert (other.labels == -1).all()
    with pytest.raises(ValueError, match="num_classes needs embedding_size"):
        FeatureMemory(4, num_classes=2)


def test_the_version_changes_with_every_entry() -> None:
    memory = FeatureMemory(4, 2)
    seen = [memory.version]
    for change in (
        lambda: memory.enqueue(torch.eye(2), torch.arange(2)),
        lambda: memory.write(torch.eye(2), torch.arange(2), torch.arange(2)),
        lambda: memory.load_state_dict(memory.state_dict()),
        memory.half,
        memory.reset,
    ):
        change()
        seen.append(memory.version)
    assert len(set(seen)) == len(seen)


def test_what_overflows_in_the_dtype_of_the_memory_is_not_stored() -> None:
    memory = FeatureMemory(4, 2, normalize=False, dtype=torch.float16)
    memory.enqueue(torch.tensor([[1e6, 0.0], [1.0, 2.0]]), torch.tensor([0, 1]))
    assert memory.total == 1
    assert memory.labels.tolist() == [1, -1, -1, -1]
