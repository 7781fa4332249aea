"""Refinement and its curriculum against the words of the paper."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from noisydml.functional import refine_labels, retrieval_number, titan


def literal(features, labels, means, k, counts):
    """Each class sorts all samples by distance and claims the first k; the nearer class wins."""
    claims = {}
    for c, mean in enumerate(means.tolist()):
        if counts[c] == 0:
            continue
        distances = []
        for i, z in enumerate(features.tolist()):
            if labels[i] >= 0:
                distances.append((math.dist(z, mean), i))
        for distance, i in sorted(distances)[:k]:
            if i not in claims or (distance, c) < claims[i]:
                claims[i] = (distance, c)
    return [claims[i][1] if i in claims else int(labels[i]) for i in range(len(labels))]


@pytest.mark.parametrize("block", [1, 150, 10**6])
@pytest.mark.parametrize("k", [0, 1, 3, 10, 40, 100])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_sorting_and_claiming(seed, k, block, monkeypatch):
    monkeypatch.setattr(titan, "_DISTANCES", block)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 6, (40,), generator=generator)
    means = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    counts = torch.tensor([3, 0, 1, 4, 0, 2])
    got = refine_labels(features, labels, means, k, counts)

    assert got.tolist() == literal(features, labels, means, k, counts)
    assert got.dtype == torch.int64
    everyone = refine_labels(features, labels, means, k)
    assert everyone.tolist() == literal(features, labels, means, k, torch.ones(6))


def test_claimed_twice_goes_to_the_nearer_prototype():
    features, means = torch.tensor([[0.4], [9.0]]), torch.tensor([[1.0], [0.0]])
    assert refine_labels(features, torch.tensor([0, 0]), means, 1).tolist() == [1, 0]


def test_the_same_distance_goes_to_the_lower_class():
    features, means = torch.tensor([[0.5]]), torch.tensor([[1.0], [0.0]])
    assert refine_labels(features, torch.tensor([1]), means, 1).tolist() == [0]


def test_a_common_offset_costs_no_digits():
    features = torch.tensor([[0.0], [0.1], [1.0], [0.9], [0.6]]) + 4096
    means = torch.tensor([[0.0], [1.0]]) + 4096
    assert refine_labels(features, torch.tensor([0, 1, 1, 0, 0]), means, k=2).tolist() == [
        0, 0, 1, 1, 0,
    ]  # fmt: skip


def test_nothing_to_refine():
    empty = torch.empty(0, 3), torch.empty(0, dtype=torch.long)
    assert refine_labels(*empty, torch.ones(2, 3), 5).shape == (0,)
    labels = torch.tensor([-1, -1])
    assert refine_labels(torch.ones(2, 3), labels, torch.ones(2, 3), 5).tolist() == [-1, -1]
    assert refine_labels(torch.ones(2, 3), labels, torch.ones(0, 3), 5).tolist() == [-1, -1]


def test_the_labels_themselves_are_not_changed():
    labels = torch.tensor([1, 1])
    new = refine_labels(torch.ones(2, 3), labels, torch.ones(2, 3), 0)
    new.fill_(5)
    refine_labels(torch.ones(2, 3), labels, torch.ones(2, 3), 2)
    assert labels.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    features, means = torch.randn(30, 8).to(dtype), torch.randn(4, 8).to(dtype)
    labels = torch.zeros(30).long()
    want = refine_labels(features.float(), labels, means.float(), 5)
    assert torch.equal(refine_labels(features, labels, means, 5), want)


@pytest.mark.parametrize("most", [0, 1, 20, 33])
@pytest.mark.parametrize("cycles", [1, 7, 20, 33])
def test_curriculum(cycles, most):
    for cycle in range(2 * cycles):
        share = min(Fraction(cycle, cycles), Fraction(1))
        assert retrieval_number(cycle, cycles, most) == math.floor(share * most)


def test_never_asks_the_host(dataless):
    features = torch.empty(9, 4, device=dataless)
    labels = torch.empty(9, dtype=torch.int64, device=dataless)
    means, counts = torch.empty(3, 4, device=dataless), labels.narrow(0, 0, 3)
    assert refine_labels(features, labels, means, 2, counts).device == dataless


ONES, ZEROS = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: refine_labels(ONES, ZEROS[:3], ONES, 1), ValueError, "labels must have 4 entries"),
        (lambda: refine_labels(ONES, ZEROS, ONES[:, :1], 1), ValueError, "means must be as wide"),
        (lambda: refine_labels(ONES, ZEROS, ONES, -1), ValueError, "k must be at least 0"),
        (lambda: refine_labels(ONES, ZEROS, ONES, 1.5), TypeError, "k must be an integer"),
        (lambda: refine_labels(ONES, ZEROS, ONES, 1, ZEROS[:2]), ValueError, "counts must have 4"),
        (lambda: retrieval_number(-1, 3, 20), ValueError, "cycle must be at least 0"),
        (lambda: retrieval_number(1, 0, 20), ValueError, "cycles must be at least 1"),
        (lambda: retrieval_number(1, 3, 0.5), TypeError, "most must be an integer"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
