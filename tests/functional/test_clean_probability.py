"""The similarities and probabilities of PRISM against its equations, written as loops."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from literal import clean_probability as literal_probability
from torch import Tensor

from noisydml.functional import (
    batch_positive,
    class_similarity,
    class_similarity_pairs,
    clean_probability,
    clean_probability_pairs,
    own_similarity,
    softmax_probability,
)


def memory(
    seed: int, size: int = 40, classes: int = 6, width: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels in float64, class means and counts; class 2 is not there."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(size, width, generator=g, dtype=torch.float64)
    features *= torch.logspace(-3, 3, size).unsqueeze(1)
    labels = torch.randint(classes, (size,), generator=g)
    labels[labels == min(2, classes - 1)] = 0
    unit = features / features.norm(dim=1, keepdim=True)
    centers = torch.zeros(classes, width, dtype=torch.float64)
    counts = torch.bincount(labels, minlength=classes)
    for k in range(classes):
        if counts[k]:
            centers[k] = unit[labels == k].mean(dim=0)
    return features, labels, centers, counts


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_equations_2_3_6_and_7(seed: int, temperature: float) -> None:
    features, feature_labels, centers, counts = memory(seed)
    embeddings = torch.randn(12, 5, dtype=torch.float64) * 100
    labels = torch.randint(6, (12,))
    labels[0] = 2  # a class that the memory does not hold
    expected = literal_probability(
        embeddings.numpy(), labels.tolist(), features.numpy(), feature_labels.tolist(), temperature
    )
    by_centers = clean_probability(embeddings, labels, centers, counts, temperature)
    by_pairs = clean_probability_pairs(embeddings, labels, features, feature_labels, 6, temperature)
    assert by_centers[0] == by_pairs[0] == 1
    for mine in (by_centers, by_pairs):
        assert mine.dtype == torch.float64
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-10, atol=1e-30)
    single = clean_probability(embeddings.float(), labels, centers.float(), counts, temperature)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-3 if temperature < 0.1 else 1e-5)


def test_equation_13_is_the_own_similarity() -> None:
    features, feature_labels, centers, counts = memory(1)
    embeddings, labels = torch.randn(9, 5, dtype=torch.float64), torch.randint(6, (9,))
    labels[3] = 2
    got = own_similarity(class_similarity(embeddings, centers, counts), labels)
    for i in range(9):
        x = embeddings[i] / embeddings[i].norm()
        members = [
            v / v.norm() for v, y in zip(features, feature_labels, strict=True) if y == labels[i]
        ]
        expected = sum(float(v @ x) for v in members) / len(members) if members else -math.inf
        assert got[i].item() == pytest.approx(expected, abs=1e-12)


def test_equation_12() -> None:
    embeddings, labels = torch.randn(15, 4, dtype=torch.float64), torch.randint(4, (15,))
    labels[7] = 9  # alone in its class: it is the only one to compare with
    got = batch_positive(embeddings, labels)
    for i in range(15):
        cosines = [
            float(embeddings[i] @ embeddings[j] / embeddings[i].norm() / embeddings[j].norm())
            for j in range(15)
            if labels[j] == labels[i]
        ]
        assert got[i].item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    assert got[7].item() == pytest.approx(1)


def test_pairs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, feature_labels, _, _ = memory(3)
    feature_labels[5] = -1  # to be ignored
    embeddings = torch.randn(7, 5, dtype=torch.float64)
    whole = class_similarity_pairs(embeddings, features, feature_labels, 6)
    without = torch.cat([features[:5], features[6:]])
    labels = torch.cat([feature_labels[:5], feature_labels[6:]])
    torch.testing.assert_close(class_similarity_pairs(embeddings, without, labels, 6), whole)
    module = sys.modules["noisydml.functional.prism"]  # not the function of that name
    for block in (1, 7, 50):
        monkeypatch.setattr(module, "_BLOCK", block)
        blocks = class_similarity_pairs(embeddings, features, feature_labels, 6)
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    _, _, centers, counts = memory(0)
    embeddings, labels = torch.randn(50, 5), torch.arange(50) % 6
    p = clean_probability(embeddings, labels, centers.float(), counts, temperature)
    assert ((p >= 0) & (p <= 1)).all()
    if temperature > 1:
        torch.testing.assert_close(p[labels != 2], torch.full_like(p[labels != 2], 1 / 5))
    else:
        similarity = class_similarity(embeddings, centers.float(), counts)
        first = similarity.argmax(dim=1) == labels
        assert (p[(labels != 2) & first] > 0.99).float().mean() > 0.9
        assert (p[(labels != 2) & ~first] < 0.01).float().mean() > 0.9


def test_classes_that_are_not_there_count_for_nothing() -> None:
    """The trap: a center of zeros would add exp(0) for every class never seen."""
    centers, counts = torch.zeros(1000, 2), torch.zeros(1000, dtype=torch.int64)
    centers[:2], counts[:2] = torch.eye(2), 1
    p = clean_probability(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), centers, counts)
    assert p.item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_nothing_in_memory_and_one_class() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    empty = clean_probability(x, y, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert empty.tolist() == [1, 1, 1, 1]
    pairs = clean_probability_pairs(x, y, torch.zeros(0, 3), torch.zeros(0).long(), 2)
    assert pairs.tolist() == [1, 1, 1, 1]
    one = clean_probability(x, y * 0, torch.ones(1, 3), torch.tensor([4]), 0.01)
    assert one.tolist() == [1, 1, 1, 1]


def test_no_rows_and_zero_embeddings() -> None:
    _, _, centers, counts = memory(0)
    none = torch.zeros(0, 5)
    assert clean_probability(none, torch.zeros(0).long(), centers, counts).shape == (0,)
    assert batch_positive(none, torch.zeros(0).long()).shape == (0,)
    assert class_similarity_pairs(none, centers, torch.zeros(6).long(), 6).shape == (0, 6)
    p = clean_probability(torch.zeros(2, 5), torch.tensor([0, 1]), centers, counts)
    torch.testing.assert_close(p, torch.full_like(p, 1 / 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    _, _, centers, counts = memory(0)
    x, y = torch.randn(20, 5).to(dtype), torch.arange(20) % 6
    mine = clean_probability(x, y, centers.float(), counts, 0.05)
    assert mine.dtype == torch.float32
    assert torch.equal(mine, clean_probability(x.float(), y, centers.float(), counts, 0.05))
    assert batch_positive(x, y).dtype == torch.float32
    # The squares of 300 do not fit into half precision.
    assert clean_probability(x * 300, y, centers.float(), counts, 0.05).isfinite().all()


def test_no_host_is_asked() -> None:
    with fake_cuda() as device:
        x = torch.randn(8, 5, device=device)
        y = torch.zeros(8, dtype=torch.int64, device=device)
        similarities = class_similarity(x, x, y)
        p = softmax_probability(similarities, y)
        pairs = clean_probability_pairs(x, y, x, y, 6)
        assert p.shape == pairs.shape == batch_positive(x, y).shape == (8,)
        assert p.device.type == pairs.device.type == "cuda"


def test_bad_arguments() -> None:
    x, y, w, m = torch.randn(3, 4), torch.zeros(3).long(), torch.randn(2, 4), torch.ones(2).long()
    with pytest.raises(ValueError, match="centers must be as wide as the embeddings, 4, got 3"):
        clean_probability(x, y, w[:, :3], m)
    with pytest.raises(ValueError, match="counts must have 2 entries, one per center, got 1"):
        clean_probability(x, y, w, m[:1])
    with pytest.raises(ValueError, match="labels must have 3 entries, one per row of similarities"):
        clean_probability(x, y[:2], w, m)
    with pytest.raises(TypeError, match="embeddings must be a floating-point tensor"):
        clean_probability(x.long(), y, w, m)
    with pytest.raises(ValueError, match="feature_labels must have 2 entries, one per feature"):
        clean_probability_pairs(x, y, w, m[:1], 2)
    with pytest.raises(ValueError, match="features must be as wide as the embeddings, 4, got 3"):
        clean_probability_pairs(x, y, w[:, :3], m, 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        clean_probability_pairs(x, y, w, m, 0)
    for temperature in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            clean_probability(x, y, w, m, temperature)
