"""TITAN's equations, number by number, against the printed formulas and the words of the paper."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from noisydml.functional import (
    class_gaussians,
    clustering_loss,
    density_weights,
    draw_mixture,
    floor_variances,
    gaussian_log_density,
    mix,
    mix_with_prototypes,
    refine_labels,
    retrieval_number,
    titan,
)
from noisydml.functional.neighbors import nearest_of_parts

MEANS = torch.tensor([[0.0, 10.0], [-4.0, 3.0], [100.0, -7.0]], dtype=torch.float64)
VARIANCES = torch.tensor([[1.0, 0.25], [9.0, 0.0], [1e-4, 4.0]], dtype=torch.float64)
MANY = 60_000
ONES, ZEROS = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)


# Gaussians, Eq. 1-3 -----------------------------------------------------------------------------


def literal_gaussians(features, labels, num_classes):
    """Eq. 1 and 2, number by number."""
    means, variances, counts = [], [], []
    for c in range(num_classes):
        rows = [
            row for row, label in zip(features.tolist(), labels.tolist(), strict=True) if label == c
        ]
        columns = list(zip(*rows, strict=True)) if rows else [[]] * features.shape[1]
        mean = [math.fsum(x) / len(x) if len(x) else 0.0 for x in columns]
        means.append(mean)
        variances.append(
            [
                math.fsum((v - m) ** 2 for v in x) / len(x) if len(x) else 0.0
                for x, m in zip(columns, mean, strict=True)
            ]
        )
        counts.append(len(rows))
    return (torch.tensor(t, dtype=torch.float64) for t in (means, variances, counts))


def problem(size=60, width=5, classes=7, seed=0, offset=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (size,), generator=generator)  # the last class is empty
    labels[0] = classes - 2
    features = torch.randn(size, width, generator=generator, dtype=torch.float64)
    return offset + scale * (features + labels.unsqueeze(1)), labels


@pytest.mark.parametrize("block", [1, 17, 10**6])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e3, 1), (1e6, 1), (0, 1e-6), (-1e4, 1e2)])
def test_means_and_variances(offset, scale, block, monkeypatch):
    monkeypatch.setattr(titan, "_BLOCK", block)
    features, labels = problem(offset=offset, scale=scale)
    got = class_gaussians(features, labels, 7)
    means, variances, counts = literal_gaussians(features, labels, 7)

    torch.testing.assert_close(got.means, means, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.variances, variances, rtol=1e-9, atol=0)
    assert got.counts.tolist() == counts.tolist()


def test_single_precision_keeps_its_digits_far_from_zero():
    """The textbook E[x^2] - E[x]^2 in float32 would be off by the variance itself."""
    features, labels = problem(offset=1e4)
    features = features.float()
    got = class_gaussians(features, labels, 7)
    _, variances, _ = literal_gaussians(features.double(), labels, 7)

    assert got.variances.dtype == torch.float32
    torch.testing.assert_close(got.variances.double(), variances, rtol=1e-6, atol=0)


def test_empty_entries_and_single_samples():
    features = torch.tensor([[1.5], [7.0], [9.0], [100.0]])
    means, variances, counts = class_gaussians(features, torch.tensor([2, 0, 0, -1]), 3)

    assert means.flatten().tolist() == [8, 0, 1.5]
    assert variances.flatten().tolist() == [1, 0, 0]
    assert counts.tolist() == [2, 0, 1]


def test_the_sums_of_a_part_may_be_those_of_all_parts():
    """Here of two that are the same."""
    features, labels = problem()
    called = []

    def twice(tensors):
        called.append([tuple(tensor.shape) for tensor in tensors])
        for tensor in tensors:
            tensor.mul_(2)

    got, want = (class_gaussians(features, labels, 7, hook) for hook in (twice, None))
    assert called == [[(7,), (7, 5)], [(7, 5)]]
    assert torch.equal(got.counts, 2 * want.counts)
    assert torch.equal(got.means, want.means)
    assert torch.equal(got.variances, want.variances)


def test_nothing_at_all():
    for rows in (0, 3):
        got = class_gaussians(torch.ones(rows, 2), torch.full((rows,), -1), 4)
        assert got.counts.tolist() == [0] * 4
        assert got.means.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_exactly(dtype):
    features, labels = problem()
    features = features.to(dtype)
    got = class_gaussians(features, labels, 7)
    want = class_gaussians(features.float(), labels, 7)

    assert got.means.dtype == torch.float32
    assert torch.equal(got.means, want.means)
    assert torch.equal(got.variances, want.variances)


def test_floor():
    generator = torch.Generator().manual_seed(3)
    variances = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    variances[:, 2] = 0  # a dimension that never varies
    variances[5] = 0
    counts = torch.tensor([3, 5, 0, 2, 9, 1])
    got = floor_variances(variances, counts, 0.25)
    usual = [
        sum(counts[c].item() * variances[c, d].item() for c in range(6)) / 20 for d in range(4)
    ]
    for c in range(6):
        for d in range(4):
            least = 0.25 * max(usual[d], 1e-6 * sum(usual) / 4)
            assert got[c, d].item() == pytest.approx(max(variances[c, d].item(), least), rel=1e-12)
    assert (floor_variances(torch.zeros(2, 3), torch.tensor([1, 1]), 0.1) > 0).all()


def literal_log_density(features, means, variances):
    result = []
    for z in features.tolist():
        row = []
        for mean, variance in zip(means.tolist(), variances.tolist(), strict=True):
            terms = [
                (x - m) ** 2 / v + math.log(v) + math.log(2 * math.pi)
                for x, m, v in zip(z, mean, variance, strict=True)
            ]
            row.append(-0.5 * math.fsum(terms))
        result.append(row)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 8, 300])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_log_density(width, offset, dtype, tolerance):
    features, labels = problem(40, width, 6, offset=offset)
    means, variances, counts = class_gaussians(features, labels, 6)
    variances = floor_variances(variances, counts, 0.1)
    features, means, variances = (t.to(dtype) for t in (features, means, variances))
    got = gaussian_log_density(features, means, variances, counts)
    want = literal_log_density(*(t.double() for t in (features, means, variances)))
    assert (got.select(1, 5) == -math.inf).all()  # the class without samples

    assert got.dtype == dtype
    # Relative to the largest term of the sum, which is what is rounded.
    scale = want.narrow(1, 0, 5).abs().max()
    error = (got.double() - want).narrow(1, 0, 5).abs().max()
    assert error < tolerance * scale * max(1, offset / 100)


def test_log_density_is_scipys():
    features, labels = problem(20, 4, 3)
    means, variances, counts = class_gaussians(features, labels, 2)
    variances = floor_variances(variances, counts, 0.1)
    got = gaussian_log_density(features, means, variances)
    for c in range(2):
        want = stats.multivariate_normal.logpdf(features, means[c], np.diag(variances[c]))
        np.testing.assert_allclose(got[:, c], want, rtol=1e-10)


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_no_tensor_of_batch_by_classes_by_width():
    classes, width, size = 500, 64, 32
    features, means, variances = (
        torch.randn(size, width),
        torch.randn(classes, width),
        torch.ones(classes, width),
    )
    with LargestTensor() as largest:
        gaussian_log_density(features, means, variances)
    assert largest.size == classes * width


# Mixing, Eq. 4-5 --------------------------------------------------------------------------------


def test_eq_4_number_by_number():
    generator = torch.Generator().manual_seed(0)
    features, draws = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)
    share = torch.rand(9, generator=generator, dtype=torch.float64)
    got = mix(features, draws, share)
    for i in range(9):
        for d in range(4):
            want = (
                share[i].item() * features[i, d].item() + (1 - share[i].item()) * draws[i, d].item()
            )
            assert got[i, d].item() == pytest.approx(want, rel=1e-14, abs=1e-15)


def test_mixing_is_drawing_and_mixing():
    features, nearest = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    got = mix_with_prototypes(
        features, nearest, MEANS, VARIANCES, generator=torch.Generator().manual_seed(3)
    )
    drawn = draw_mixture(nearest, MEANS, VARIANCES, generator=torch.Generator().manual_seed(3))
    assert torch.equal(got, mix(features, *drawn))
    assert got.dtype == features.dtype


def test_the_gradient_is_the_share():
    features = torch.randn(3, 2, requires_grad=True)
    draws, share = torch.randn(3, 2, requires_grad=True), torch.tensor([0.0, 0.3, 1.0])
    mix(features, draws, share).sum().backward()
    torch.testing.assert_close(features.grad, share.unsqueeze(1).expand(3, 2))
    assert draws.grad is None


@pytest.mark.parametrize("keep_length", [False, True])
def test_the_gradient_of_mixing(keep_length):
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    draws, share = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 0.3, 0.7, 1.0])
    assert torch.autograd.gradcheck(
        lambda z: mix(z, draws, share, keep_length=keep_length), features
    )


def test_keeping_the_length():
    features, draws = torch.randn(20, 3), torch.randn(20, 3)
    share = torch.rand(20)
    plain, kept = mix(features, draws, share), mix(features, draws, share, keep_length=True)
    torch.testing.assert_close(kept.norm(dim=1), features.norm(dim=1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(plain, kept), torch.ones(20))
    zero = mix(torch.zeros(1, 3), torch.zeros(1, 3), share[:1], keep_length=True)
    assert zero.isfinite().all()
    nothing = torch.zeros(1, 3, requires_grad=True)
    mix(nothing, draws[:1], share[:1], keep_length=True).sum().backward()
    assert nothing.grad.isfinite().all()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_draws_have_the_mean_and_the_variance_of_their_class(label):
    """Within bounds that a right sampler leaves once in 10^9: the seed is fixed."""
    nearest = torch.full((MANY,), label)
    draws, _ = draw_mixture(
        nearest, MEANS, VARIANCES, generator=torch.Generator().manual_seed(label)
    )
    for d in range(2):
        mean, variance = MEANS[label, d].item(), VARIANCES[label, d].item()
        column = draws[:, d].numpy()
        if variance == 0:
            assert (column == mean).all()
            continue
        assert abs(column.mean() - mean) < 6.1 * math.sqrt(variance / MANY)
        low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], MANY) / MANY
        assert low < ((column - mean) ** 2).mean() / variance < high
        assert stats.kstest((column - mean) / math.sqrt(variance), "norm").pvalue > 1e-6
    # The dimensions, and the samples, are independent: no constant offset for a whole batch.
    if label != 1:
        assert abs(torch.corrcoef(draws.T)[0, 1]) < 6.1 / math.sqrt(MANY)
        neighbours = torch.stack([draws[:-1, 0], draws[1:, 0]])
        assert abs(torch.corrcoef(neighbours)[0, 1]) < 6.1 / math.sqrt(MANY)


@pytest.mark.parametrize(("alpha", "beta"), [(2, 2), (1, 1), (0.4, 0.4), (5, 1.5)])
def test_shares_have_the_moments_of_their_beta_distribution(alpha, beta):
    _, share = draw_mixture(
        torch.zeros(MANY).long(),
        MEANS,
        VARIANCES,
        alpha=alpha,
        beta=beta,
        generator=torch.Generator().manual_seed(1),
    )
    assert ((share >= 0) & (share <= 1)).all()
    exact = stats.beta(alpha, beta)
    for power in (1, 2, 3, 4):  # a mean of powers, whose own spread is known exactly
        spread = math.sqrt((exact.moment(2 * power) - exact.moment(power) ** 2) / MANY)
        assert abs((share**power).mean().item() - exact.moment(power)) < 6.1 * spread
    assert stats.kstest(share.numpy(), exact.cdf).pvalue > 1e-6
    assert len(share.unique()) > 0.9 * MANY  # one for each sample, not one for all


def test_shares_and_draws_are_independent():
    draws, share = draw_mixture(
        torch.zeros(MANY).long(), MEANS, VARIANCES, generator=torch.Generator().manual_seed(2)
    )
    assert abs(torch.corrcoef(torch.stack([draws[:, 0], share]))[0, 1]) < 6.1 / math.sqrt(MANY)


def test_a_generator_is_the_only_source():
    nearest = torch.tensor([0, 1, 2])
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first = draw_mixture(nearest, MEANS, VARIANCES, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.rand(3), untouched)
    again = draw_mixture(nearest, MEANS, VARIANCES, generator=torch.Generator().manual_seed(7))
    for mine, other in zip(first, again, strict=True):
        assert torch.equal(mine, other)


def test_without_a_generator_torchs_seed_counts():
    torch.manual_seed(1)
    first, _ = draw_mixture(torch.tensor([0, 1]), MEANS, VARIANCES)
    torch.manual_seed(1)
    assert torch.equal(draw_mixture(torch.tensor([0, 1]), MEANS, VARIANCES)[0], first)


@pytest.mark.parametrize("size", [0, 1])
def test_mixing_small_batches(size):
    mixed = mix_with_prototypes(torch.ones(size, 2), torch.zeros(size).long(), MEANS, VARIANCES)
    assert mixed.shape == (size, 2)


# Weights, Eq. 8 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [1.0, 432.0])
def test_density_weights(divisor):
    generator = torch.Generator().manual_seed(0)
    log_density = -800 + 60 * torch.randn(50, generator=generator, dtype=torch.float64)
    with mpmath.workdps(50):
        terms = [mpmath.exp(mpmath.mpf(x) / divisor) for x in log_density.tolist()]
        want = [float(50 * t / mpmath.fsum(terms)) for t in terms]
    got = density_weights(log_density, divisor)

    torch.testing.assert_close(
        got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=50 * math.exp(-80)
    )
    assert got.mean().item() == pytest.approx(1)
    assert (got > 0).all()


@pytest.mark.parametrize("shift", [-1e6, 0, 1e6])
def test_densities_beyond_every_float_have_weights(shift):
    weights = density_weights(torch.tensor([-2.0, -1.0]) + shift, 1.0)

    torch.testing.assert_close(weights, torch.tensor([0.5379, 1.4621]), rtol=0, atol=1e-2)
    assert density_weights(torch.empty(0)).shape == (0,)


# Refinement, Eq. 9-10 ---------------------------------------------------------------------------


def literal_refinement(features, labels, means, k, counts):
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

    assert got.tolist() == literal_refinement(features, labels, means, k, counts)
    assert got.dtype == torch.int64
    everyone = refine_labels(features, labels, means, k)
    assert everyone.tolist() == literal_refinement(features, labels, means, k, torch.ones(6))


def test_claimed_twice_goes_to_the_nearer_prototype():
    features, means = torch.tensor([[0.4], [9.0]]), torch.tensor([[1.0], [0.0]])
    assert refine_labels(features, torch.tensor([0, 0]), means, 1).tolist() == [1, 0]


def test_the_same_distance_goes_to_the_lower_class():
    features, means = torch.tensor([[0.5]]), torch.tensor([[1.0], [0.0]])
    assert refine_labels(features, torch.tensor([1]), means, 1).tolist() == [0]


def corners(size, seed):
    """Features of which many are equal, and labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(2, (size, 4), generator=generator).float()
    return features, torch.randint(-1, 6, (size,), generator=generator)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("k", [1, 7, 60, 300])
def test_of_equally_near_samples_the_first_are_claimed(k, block, monkeypatch):
    monkeypatch.setattr(titan, "_DISTANCES", block)
    features, labels = corners(200, k)
    means = corners(8, 99)[0]  # whose mean has no digits beyond 1/8
    counts = torch.tensor([3, 1, 0, 4, 5, 2, 7, 1])
    got = refine_labels(features, labels, means, k, counts)
    assert got.tolist() == literal_refinement(features, labels, means, k, counts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("k", [1, 9, 200])
def test_parts_find_what_the_whole_does(k, parts, ties, monkeypatch):
    """Distances to the bit, and of equal ones the first samples, in blocks of other sizes."""
    features, labels = corners(190, k)
    means = corners(6, 98)[0]
    if not ties:
        generator = torch.Generator().manual_seed(k)
        features = torch.randn(190, 33, generator=generator)
        means = torch.randn(6, 33, generator=generator)
    want_distance, want_rows = titan.nearest_samples(features, labels, means, k)
    monkeypatch.setattr(titan, "_DISTANCES", 1)
    found = [
        titan.nearest_samples(features[part::parts], labels[part::parts], means, k)
        for part in range(parts)
    ]
    missing = [k - distance.shape[1] for distance, _ in found]
    distance = [pad(d, (0, m), value=math.inf) for (d, _), m in zip(found, missing, strict=True)]
    rows = [
        pad(rows * parts + part, (0, missing[part]), value=190)
        for part, (_, rows) in enumerate(found)
    ]
    rows = torch.stack(rows)
    distance, place = nearest_of_parts(torch.stack(distance), rows, min(k, 190))
    assert torch.equal(distance, want_distance)
    rows = rows.transpose(0, 1).flatten(1).gather(1, place)
    there = distance < math.inf
    assert torch.equal(rows[there], want_rows[there])


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
def test_refinement_widens_half_precision(dtype):
    features, means = torch.randn(30, 8).to(dtype), torch.randn(4, 8).to(dtype)
    labels = torch.zeros(30).long()
    want = refine_labels(features.float(), labels, means.float(), 5)
    assert torch.equal(refine_labels(features, labels, means, 5), want)


def test_autocast_costs_no_digits():
    features, means = torch.randn(1000, 8), torch.randn(30, 8)
    labels = torch.zeros(1000).long()
    want = refine_labels(features, labels, means, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(refine_labels(features, labels, means, 9), want)


@pytest.mark.parametrize("most", [0, 1, 20, 33])
@pytest.mark.parametrize("cycles", [1, 7, 20, 33])
def test_curriculum(cycles, most):
    for cycle in range(2 * cycles):
        share = min(Fraction(cycle, cycles), Fraction(1))
        assert retrieval_number(cycle, cycles, most) == math.floor(share * most)


# Clustering, Eq. 11 -----------------------------------------------------------------------------


def literal_clustering(features, labels, means, tau, present):
    """Eq. 11 with the exponentials of mpmath, which do not overflow."""
    losses = []
    with mpmath.workdps(50):
        for z, label in zip(features.tolist(), labels.tolist(), strict=True):
            terms = {
                c: mpmath.exp(mpmath.fdot(z, mean) / tau)
                for c, mean in enumerate(means.tolist())
                if present[c]
            }
            own = terms.get(label)
            losses.append(
                0.0 if own is None else float(-mpmath.log(own / mpmath.fsum(terms.values())))
            )
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("tau", [0.5, 2])
def test_clustering_loss(tau, scale):
    features, labels = problem(30, 5, 6, scale=scale)
    means, _, counts = class_gaussians(features, labels, 6)
    labels[3] = 5  # a class without a mean
    features.requires_grad_()
    got = clustering_loss(features, labels, means, counts, temperature=tau)
    want = literal_clustering(features.detach(), labels, means, tau, counts > 0)

    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    got.sum().backward()
    reference = features.detach().clone().requires_grad_()
    logits = reference @ means[:5].T / tau
    known = labels < 5
    torch.nn.functional.cross_entropy(logits[known], labels[known], reduction="sum").backward()
    torch.testing.assert_close(features.grad, reference.grad)
    assert not features.grad[3].any()


def test_no_means_at_all_cost_nothing():
    features = torch.randn(3, 2, requires_grad=True)
    losses = clustering_loss(
        features, torch.zeros(3).long(), torch.zeros(4, 2), torch.zeros(4).long()
    )
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert not features.grad.any()


def test_means_are_constants():
    means = torch.randn(3, 2, requires_grad=True)
    clustering_loss(
        torch.randn(4, 2, requires_grad=True), torch.zeros(4).long(), means
    ).sum().backward()
    assert means.grad is None


# All of them ------------------------------------------------------------------------------------


def test_never_asks_the_host(dataless):
    features = torch.empty(5, 4, device=dataless)
    labels = torch.empty(5, dtype=torch.int64, device=dataless)
    means, variances, counts = class_gaussians(features, labels, 3)
    variances = floor_variances(variances, counts, 0.1)
    densities = gaussian_log_density(features, means, variances, counts)
    assert densities.shape == (5, 3)
    weights = density_weights(densities.amax(dim=1), 4.0)
    losses = clustering_loss(features, labels, means, counts)
    assert weights.device == losses.device == dataless
    assert weights.shape == losses.shape == (5,)
    assert refine_labels(features, labels, means, 2, counts).device == dataless


@pytest.mark.parametrize("seeded", [False, True])
def test_mixing_never_asks_the_host(seeded, dataless):
    generator = torch.Generator().manual_seed(0) if seeded else None
    features = torch.empty(5, 4, device=dataless)
    nearest = torch.empty(5, dtype=torch.int64, device=dataless)
    means = torch.empty(3, 4, device=dataless)
    mixed = mix_with_prototypes(features, nearest, means, means, generator=generator)
    assert (mixed.shape, mixed.device) == (features.shape, dataless)
    kept = mix(features, features, features.select(1, 0), keep_length=True)
    assert kept.shape == (5, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: class_gaussians(ONES.long(), ZEROS, 2), TypeError, "features must be a floating"),
        (lambda: class_gaussians(ONES, ZEROS[:3], 2), ValueError, "labels must have 4 entries"),
        (lambda: class_gaussians(ONES, ZEROS, 0), ValueError, "num_classes must be at least 1"),
        (lambda: floor_variances(ONES, ZEROS, 0), ValueError, "share must be a finite"),
        (lambda: floor_variances(ONES, ZEROS[:2], 1), ValueError, "counts must have 4 entries"),
        (lambda: gaussian_log_density(ONES, ONES, ONES[:3]), ValueError, "variances must have the"),
        (lambda: gaussian_log_density(ONES[:, :1], ONES, ONES), ValueError, "features must be as"),
        (lambda: gaussian_log_density(ONES, ONES, ONES, ONES), TypeError, "counts must be an int"),
        (lambda: density_weights(ONES), ValueError, "log_density must have 1 dimension"),
        (lambda: density_weights(ONES[0], -1), ValueError, "divisor must be a finite"),
        (lambda: clustering_loss(ONES, ZEROS, ONES[:, :1]), ValueError, "means must be as wide"),
        (
            lambda: clustering_loss(ONES, ZEROS, ONES, temperature=0),
            ValueError,
            "temperature must be a finite",
        ),
        (lambda: mix(ONES, ONES[:2], ONES[:, 0]), ValueError, "draws must have the shape of feat"),
        (lambda: mix(ONES, ONES, ONES[0]), ValueError, "share must have 4 entries"),
        (lambda: mix(ZEROS, ONES, ONES[:, 0]), TypeError, "features must be a floating"),
        (lambda: draw_mixture(ONES[0], ONES, ONES), TypeError, "nearest must be an integer"),
        (lambda: draw_mixture(ZEROS, ONES, ONES[:3]), ValueError, "variances must have the shape"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, alpha=0), ValueError, "alpha must be a finite"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, beta=math.inf), ValueError, "beta must be a fin"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, generator=3), TypeError, "generator must be a t"),
        (lambda: mix_with_prototypes(ONES, ZEROS[:3], ONES, ONES), ValueError, "nearest must have"),
        (lambda: refine_labels(ONES, ZEROS[:3], ONES, 1), ValueError, "labels must have 4 entries"),
        (lambda: refine_labels(ONES, ZEROS, ONES[:, :1], 1), ValueError, "means must be as wide"),
        (lambda: refine_labels(ONES, ZEROS, ONES, -1), ValueError, "k must be at least 0"),
        (lambda: refine_labels(ONES, ZEROS, ONES, 1.5), TypeError, "k must be an integer"),
        (lambda: refine_labels(ONES, ZEROS, ONES, 1, ZEROS[:2]), ValueError, "counts must have 4"),
        (lambda: retrieval_number(-1, 3, 20), ValueError, "cycle must be at least 0"),
        (lambda: retrieval_number(1, 0, 20), ValueError, "cycles must be at least 1"),
        (lambda: retrieval_number(1, 3, 0.5), TypeError, "most must be an integer"),
        (
            lambda: clustering_loss(ONES, ZEROS, ONES, ONES[:, 0]),
            TypeError,
            "counts must be an int",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_absent_classes_cost_no_digits_where_all_have_an_offset() -> None:
    labels = torch.arange(400) % 2
    features = torch.randn(400, 16) + 1000
    features[:, 0] += 3 * labels
    given = torch.where(torch.rand(400) < 0.4, 1 - labels, labels)
    means, _, counts = class_gaussians(features, labels, 50)  # 48 of which have no samples
    found = refine_labels(features, given, means, 150, counts)
    assert torch.equal(found, refine_labels(features, given, means[:2], 150, counts[:2]))


def test_variances_beyond_single_precision_are_finite() -> None:
    gaussians = class_gaussians(torch.tensor([[1e30], [-1e30]]), torch.zeros(2).long(), 1)
    assert gaussians.variances.isfinite().all()


def test_log_density_where_a_class_has_neither_samples_nor_variance() -> None:
    features = torch.randn(6, 3) + 5
    found = gaussian_log_density(features, *class_gaussians(features, torch.zeros(6).long(), 2))
    assert found[:, 0].isfinite().all()
    assert (found[:, 1] == -math.inf).all()


def test_density_weights_of_large_numbers_keep_their_digits() -> None:
    densities = torch.tensor([-100_000.0, -100_001.0])
    wanted = density_weights(densities.double(), divisor=3).float()
    torch.testing.assert_close(density_weights(densities, divisor=3), wanted, rtol=1e-6, atol=0)


def test_no_gradient_is_nan_on_its_way_where_there_are_no_means() -> None:
    features, labels = torch.randn(3, 2, requires_grad=True), torch.zeros(3).long()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        clustering_loss(features, labels, torch.zeros(4, 2), torch.zeros(4).long()).sum().backward()
    assert not features.grad.any()
