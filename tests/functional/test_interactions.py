"""The selected interactions against two loops over all elements of the distance matrix."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import selected_interactions

Pairs = set[tuple[int, int]]


def literal(labels: list[int], trusted: list[bool]) -> tuple[Pairs, Pairs]:
    positive, negative = set(), set()
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] != labels[j]:
                negative.add((i, j))
            elif i != j and trusted[i] and trusted[j]:
                positive.add((i, j))
    return positive, negative


def pairs(mask: torch.Tensor) -> Pairs:
    return {(i, j) for i, j in mask.nonzero().tolist()}


@pytest.mark.parametrize("size", [0, 1, 2, 5, 20])
def test_within_a_batch(size: int) -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        labels = torch.randint(4, (size,), generator=g)
        trusted = torch.rand(size, generator=g) < 0.6
        positive, negative = selected_interactions(labels, trusted)
        assert positive.shape == negative.shape == (size, size)
        expected = literal(labels.tolist(), trusted.tolist())
        assert (pairs(positive), pairs(negative)) == expected


def test_with_others() -> None:
    """Which are trusted, and of which none is the sample itself."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        labels, others = torch.randint(3, (6,), generator=g), torch.randint(3, (9,), generator=g)
        trusted = torch.rand(6, generator=g) < 0.6
        positive, negative = selected_interactions(labels, trusted, others)
        for i in range(6):
            for j in range(9):
                same = bool(labels[i] == others[j])
                assert positive[i, j] == (same and bool(trusted[i]))
                assert negative[i, j] == (not same)


def test_nothing_asks_the_host() -> None:
    with fake_cuda() as device:
        labels = torch.zeros(8, dtype=torch.int64, device=device)
        positive, _ = selected_interactions(labels, torch.ones(8, dtype=bool, device=device))
        assert positive.device.type == "cuda"


def test_bad_arguments() -> None:
    labels = torch.zeros(4).long()
    with pytest.raises(ValueError, match="trusted must have 4 entries, one per label, got 3"):
        selected_interactions(labels, torch.ones(3).bool())
    with pytest.raises(TypeError, match=r"trusted must be a bool tensor, got dtype torch.float32"):
        selected_interactions(labels, torch.ones(4))
    with pytest.raises(TypeError, match="ref_labels must be an integer tensor"):
        selected_interactions(labels, torch.ones(4).bool(), labels.float())
