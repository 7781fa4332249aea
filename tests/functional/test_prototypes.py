"""Class Gaussians, densities, weights and the clustering loss against the printed formulas."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.utils._python_dispatch import TorchDispatchMode

from noisydml.functional import (
    class_gaussians,
    clustering_loss,
    density_weights,
    floor_variances,
    gaussian_log_density,
    titan,
)
from noisydml.functional.titan import prepare_gaussians, prepared_log_density


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
        want = multivariate_normal.logpdf(features, means[c], np.diag(variances[c]))
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
    assert largest.size == 2 * classes * width
    prepared = prepare_gaussians(means, variances)
    with LargestTensor() as largest:
        prepared_log_density(features, prepared)
    assert largest.size == 2 * classes * width  # a view of what was prepared


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


ONES = torch.ones(4, 2)
ZEROS = torch.zeros(4, dtype=torch.long)


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
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
