"""PRISM's equations, thresholds and noise rate against loops and exact arithmetic."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

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
    low_rank_counts,
    own_similarity,
    softmax_probability,
    top_r_threshold,
)
from noisydml.functional.prism import smooth_noise_rate, smooth_top_r

# Similarities and probabilities ----------------------------------------------------------------


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
    alone = batch_positive(torch.randn(64, 9), torch.arange(64))
    assert torch.equal(alone, torch.ones(64))  # Eq. 12, to the bit: no rounding drops somebody
    two = batch_positive(torch.randn(64, 9), torch.arange(64) // 2)
    assert torch.equal(two[::2], two[1::2])
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


def test_probabilities_ask_no_host() -> None:
    with fake_cuda() as device:
        x = torch.randn(8, 5, device=device)
        y = torch.zeros(8, dtype=torch.int64, device=device)
        similarities = class_similarity(x, x, y)
        p = softmax_probability(similarities, y)
        pairs = clean_probability_pairs(x, y, x, y, 6)
        assert p.shape == pairs.shape == batch_positive(x, y).shape == (8,)
        assert p.device.type == pairs.device.type == "cuda"


def test_bad_arguments_of_probabilities() -> None:
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


# The threshold -------------------------------------------------------------------------------


def literal_threshold(values: list[float], rate: Fraction) -> float:
    """The floor(R n)-th smallest, by counting; -inf if that is the zeroth."""
    k = math.floor(rate * len(values))
    return sorted(values)[k - 1] if k else -math.inf


@pytest.mark.parametrize("denominator", [2, 3, 7, 10, 100, 1000])
def test_the_floor_is_exact(denominator: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    values = torch.rand(300, dtype=torch.float64)
    for numerator in range(0, denominator + 1, max(1, denominator // 50)):
        rate = Fraction(numerator, denominator)
        for n in (0, 1, 2, 3, 50, 100, 128, 300):
            got = top_r_threshold(values[:n], numerator / denominator)
            assert got.item() == literal_threshold(values[:n].tolist(), rate)
            on_device = torch.tensor(numerator / denominator, dtype=torch.float64)
            assert top_r_threshold(values[:n], on_device) == got
            everybody = torch.ones(n, dtype=torch.bool)
            assert top_r_threshold(values[:n], numerator / denominator, everybody) == got


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_only_the_known_take_part(rate: float) -> None:
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        values = torch.randint(5, (20,), generator=g) / 4  # with ties
        known = torch.rand(20, generator=g) < 0.6
        values[~known] = 1.0
        got = top_r_threshold(values, rate, known)
        assert got.item() == literal_threshold(values[known].tolist(), Fraction(str(rate)))
    nobody = top_r_threshold(values, rate, torch.zeros(20, dtype=torch.bool))
    assert nobody == -math.inf


def test_threshold_of_half_precision_and_nothing() -> None:
    values = torch.tensor([0.5, 0.25], dtype=torch.float16)
    assert top_r_threshold(values, 0.5) == 0.25
    assert top_r_threshold(values[:0], 0.5) == -math.inf
    assert top_r_threshold(values, 0.5).dtype == torch.float64


def test_bad_arguments_of_thresholds() -> None:
    values = torch.rand(4)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"noise_rate must be in \[0, 1\]"):
            top_r_threshold(values, rate)
    with pytest.raises(TypeError, match="noise_rate must be a number, got str"):
        top_r_threshold(values, "0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probabilities must have 1 dimension"):
        top_r_threshold(values.reshape(2, 2), 0.5)
    with pytest.raises(ValueError, match="known must have 4 entries, one per probability, got 3"):
        top_r_threshold(values, 0.5, torch.ones(3).bool())


def test_thresholds_ask_no_host() -> None:
    with fake_cuda() as device:
        p, known = torch.rand(8, device=device), torch.ones(8, device=device).bool()
        rate = torch.rand((), device=device)
        assert top_r_threshold(p, rate, known).shape == ()
        assert top_r_threshold(p, 0.5).device.type == "cuda"


def literal_smooth(values, known, rate, window, size):  # type: ignore[no-untyped-def]
    """Eq. 4 with Python's numbers: the threshold, and the window after it."""
    quantile = literal_threshold([v for v, k in zip(values, known, strict=True) if k], rate)
    if quantile == -math.inf:
        return (sum(window[-(size - 1) :] if size > 1 else []) + quantile), window
    window = [*window, quantile][-size:]
    threshold = sum(window) / len(window)
    best = max(v for v, k in zip(values, known, strict=True) if k) if all(known) else math.inf
    if best <= threshold:
        threshold, window = min(quantile, math.nextafter(best, -math.inf)), [quantile]
    return threshold, window


@pytest.mark.parametrize("size", [1, 2, 30])
@pytest.mark.parametrize("rate", [Fraction(0), Fraction(3, 10), Fraction(1, 2), Fraction(9, 10)])
def test_the_mean_of_the_window(size: int, rate: Fraction) -> None:
    """With ties, samples that do not take part, and a window that starts again."""
    g = torch.Generator().manual_seed(size)
    quantiles, number = torch.zeros(size, dtype=torch.float64), torch.tensor(0)
    window: list[float] = []
    restarts = 0
    for step in range(150):
        n = int(torch.randint(1, 12, (), generator=g))
        values = torch.randint(9, (n,), generator=g) / 8 * (0.1 if step % 7 == 0 else 1)
        known = torch.rand(n, generator=g) < (0.8 if step % 2 else 1.1)
        before = len(window)
        expected, window = literal_smooth(values.tolist(), known.tolist(), rate, window, size)
        threshold, quantiles, number = smooth_top_r(values, float(rate), known, quantiles, number)
        assert threshold.item() == pytest.approx(expected, rel=1e-15)
        assert int(number) == len(window)
        assert quantiles[size - len(window) :].tolist() == window
        restarts += len(window) < before
    assert restarts > 0 or rate == 0 or size == 1


# The noise rate --------------------------------------------------------------------------------


def literal_counts(similarities: Tensor, labels: list[int]) -> tuple[float, float]:
    found = expected = 0.0
    for row, label in zip(similarities.tolist(), labels, strict=True):
        classes = [k for k, s in enumerate(row) if s > -math.inf]
        if label not in classes or len(classes) < 2:
            continue
        ranks = len(classes) - 1  # 1 to K, 0 is the nearest
        rank = sum(row[k] > row[label] for k in classes)
        middle = Fraction(ranks + 1, 2)
        found += 1 if rank > middle else 0.5 if rank == middle else 0
        expected += 0.5
    return found, expected


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_counts_against_a_loop(classes: int, dtype: torch.dtype) -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        similarities = torch.randint(5, (30, classes), generator=g).to(dtype)  # with ties
        similarities[:, torch.rand(classes, generator=g) < 0.3] = -math.inf
        labels = torch.randint(classes, (30,), generator=g)
        got = low_rank_counts(similarities, own_similarity(similarities, labels))
        assert tuple(x.item() for x in got) == literal_counts(similarities, labels.tolist())
        assert all(x.dtype == torch.float64 for x in got)


def test_counts_of_no_rows() -> None:
    none = torch.zeros(0, 5)
    assert [x.item() for x in low_rank_counts(none, none[:, 0])] == [0, 0]


@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_every_wrong_label_counts_half_on_average(classes: int) -> None:
    """All ranks of wrong labels, once each: the expectation is met exactly."""
    row = torch.arange(classes, 0, -1.0)
    similarities = row.repeat(classes - 1, 1)
    labels = torch.arange(1, classes)  # every class but the nearest
    found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
    assert found == expected


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_the_ratio_estimates_the_share_of_wrong_labels(rate: float) -> None:
    n, classes = 20_000, 31
    rng = np.random.default_rng(int(100 * rate))
    true = torch.from_numpy(rng.integers(classes, size=n))
    similarities = torch.from_numpy(rng.normal(size=(n, classes)))
    similarities[torch.arange(n), true] += 6.0
    wrong = torch.from_numpy(rng.random(n) < rate)
    shift = torch.from_numpy(rng.integers(1, classes, size=n))
    labels = torch.where(wrong, (true + shift) % classes, true)
    found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
    # found is a sum of independent numbers in [0, 1]: Hoeffding's bound at one in a million.
    bound = math.sqrt(n * math.log(2e6) / 2) / expected.item() if rate else 1e-9
    assert abs(found.item() / expected.item() - wrong.double().mean().item()) <= bound


def test_bad_arguments_of_ranks() -> None:
    with pytest.raises(ValueError, match="labels must have 4 entries"):
        own_similarity(torch.rand(4, 3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="own must have 4 entries, one per row of similarities"):
        low_rank_counts(torch.rand(4, 3), torch.rand(3))


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 3])
def test_the_rate_is_that_of_the_window(classes: int, window: int) -> None:
    g = torch.Generator().manual_seed(classes)
    counts, literal = torch.zeros(window, 2, dtype=torch.float64), [(0.0, 0.0)] * window
    rates = set()
    for step in range(60):
        size = 0 if step % 20 == 19 else 12
        similarities = torch.randint(5, (size, classes), generator=g).float()
        similarities[:, torch.rand(classes, generator=g) < 0.3] = -math.inf
        labels = torch.randint(classes, (size,), generator=g)
        counted = torch.rand(size, generator=g) < 0.5
        own = own_similarity(similarities, labels)
        rate, counts = smooth_noise_rate(similarities, own, counted, counts)
        rows = counted.nonzero().flatten()
        of_batch = literal_counts(similarities[rows], labels[rows].tolist())
        literal = [*literal[1:], of_batch]
        assert [tuple(row) for row in counts.tolist()] == literal
        found, expected = (sum(column) for column in zip(*literal, strict=True))
        assert rate.item() == pytest.approx(min(found / expected, 1) if expected else 0, abs=1e-15)
        rates.add(rate.item())
    assert rates == {0.0} if classes == 1 else len(rates) > 5


def test_rates_ask_no_host() -> None:
    with fake_cuda() as device:
        similarities, own = torch.randn(8, 5, device=device), torch.rand(8, device=device)
        for part in low_rank_counts(similarities, own):
            assert part.device.type == "cuda"
        counts = torch.zeros(30, 2, dtype=torch.float64, device=device)
        for part in smooth_noise_rate(similarities, own, own > 0, counts):
            assert part.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    features, labels = torch.randn(6, 4), torch.arange(6) % 2
    torch.testing.assert_close(
        class_similarity_pairs(features, features, labels.to(dtype), 2),
        class_similarity_pairs(features, features, labels, 2),
    )


def test_batch_positive_of_equal_rows_is_within_its_range() -> None:
    rows = torch.randn(500, 64).repeat(2, 1)
    assert batch_positive(rows, torch.arange(500).repeat(2)).max() <= 1
