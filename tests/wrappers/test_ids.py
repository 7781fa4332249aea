"""Samples with their positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from noisydml import with_ids

LABELS = torch.arange(10) % 3


def pairs() -> TensorDataset:
    return TensorDataset(torch.arange(10).float(), LABELS)


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_say_which_samples_were_shuffled_together(workers: int) -> None:
    torch.manual_seed(0)
    loader = DataLoader(with_ids(pairs()), 4, shuffle=True, num_workers=workers)
    batches = list(loader)
    ids = torch.cat([ids for _, _, ids in batches])
    assert ids.dtype == torch.int64
    assert ids.tolist() != list(range(10))
    assert sorted(ids.tolist()) == list(range(10))
    assert torch.equal(torch.cat([inputs for inputs, _, _ in batches]), ids.float())
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), LABELS[ids])


def test_a_subset_keeps_the_positions_of_what_it_is_a_subset_of() -> None:
    part = [7, 2]
    assert [ids for _, _, ids in Subset(with_ids(pairs()), part)] == part
    assert [ids for _, _, ids in with_ids(Subset(pairs(), part))] == [0, 1]


def test_any_kind_of_sample() -> None:
    read: list[Any] = [("a", 1), ["b", 2], {"text": "c"}, "d", b"e", 5]
    found = with_ids(read)
    assert len(found) == 6
    expected = [("a", 1, 0), ("b", 2, 1), {"text": "c", "sample_ids": 2}, ("d", 3), (b"e", 4),
                (5, 5)]  # fmt: skip
    assert [found[i] for i in range(6)] == expected
    assert found[-1] == (5, 5)
    assert read[2] == {"text": "c"}  # as it was


def test_what_has_no_positions_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    for nothing in (Stream(), iter([1]), None):
        with pytest.raises(TypeError, match="dataset must have a length"):
            with_ids(nothing)
    with pytest.raises(ValueError, match="'sample_ids' already"):
        with_ids([{"sample_ids": 0}])[0]


def test_a_batch_that_is_fetched_at_once() -> None:
    batches = BatchSampler(RandomSampler(pairs()), 4, drop_last=False)
    for inputs, labels, ids in DataLoader(with_ids(pairs()), sampler=batches, batch_size=None):
        assert torch.equal(inputs, ids.float())
        assert torch.equal(labels, LABELS[ids])
    assert with_ids(pairs())[[-1, 0]][-1].tolist() == [9, 0]


def test_a_slice_and_a_mask_tell_which_samples_they_are() -> None:
    found = with_ids(pairs())
    for index in (slice(2, 9, 3), slice(-2, None), slice(4, 4), LABELS == 1):
        inputs, labels, ids = found[index]
        assert ids.dtype == torch.int64
        assert torch.equal(inputs, ids.float())
        assert torch.equal(labels, LABELS[ids])
    for index in ("labels", None, {}):
        with pytest.raises(TypeError, match="for an index, got"):
            found[index]
