"""Mixing: the formula number by number, and the statistics of what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from noisydml.functional import draw_mixture, mix, mix_with_prototypes

MEANS = torch.tensor([[0.0, 10.0], [-4.0, 3.0], [100.0, -7.0]], dtype=torch.float64)
VARIANCES = torch.tensor([[1.0, 0.25], [9.0, 0.0], [1e-4, 4.0]], dtype=torch.float64)
MANY = 60_000


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


def test_keeping_the_length():
    features, draws = torch.randn(20, 3), torch.randn(20, 3)
    share = torch.rand(20)
    plain, kept = mix(features, draws, share), mix(features, draws, share, keep_length=True)
    torch.testing.assert_close(kept.norm(dim=1), features.norm(dim=1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(plain, kept), torch.ones(20))
    zero = mix(torch.zeros(1, 3), torch.zeros(1, 3), share[:1], keep_length=True)
    assert zero.isfinite().all()


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
    assert torch.equal(first.draws, again.draws)
    assert torch.equal(first.share, again.share)


def test_without_a_generator_torchs_seed_counts():
    torch.manual_seed(1)
    first = draw_mixture(torch.tensor([0, 1]), MEANS, VARIANCES)
    torch.manual_seed(1)
    assert torch.equal(draw_mixture(torch.tensor([0, 1]), MEANS, VARIANCES).draws, first.draws)


@pytest.mark.parametrize("seeded", [False, True])
def test_never_asks_the_host(seeded, dataless):
    generator = torch.Generator().manual_seed(0) if seeded else None
    features = torch.empty(5, 4, device=dataless)
    nearest = torch.empty(5, dtype=torch.int64, device=dataless)
    means = torch.empty(3, 4, device=dataless)
    mixed = mix_with_prototypes(features, nearest, means, means, generator=generator)
    assert (mixed.shape, mixed.device) == (features.shape, dataless)
    kept = mix(features, features, features.select(1, 0), keep_length=True)
    assert kept.shape == (5, 4)


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size):
    mixed = mix_with_prototypes(torch.ones(size, 2), torch.zeros(size).long(), MEANS, VARIANCES)
    assert mixed.shape == (size, 2)


ONES, ZEROS = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mix(ONES, ONES[:2], ONES[:, 0]), ValueError, "draws must have the shape of feat"),
        (lambda: mix(ONES, ONES, ONES[0]), ValueError, "share must have 4 entries"),
        (lambda: mix(ZEROS, ONES, ONES[:, 0]), TypeError, "features must be a floating"),
        (lambda: draw_mixture(ONES[0], ONES, ONES), TypeError, "nearest must be an integer"),
        (lambda: draw_mixture(ZEROS, ONES, ONES[:3]), ValueError, "variances must have the shape"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, alpha=0), ValueError, "alpha must be a finite"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, beta=math.inf), ValueError, "beta must be a fin"),
        (lambda: draw_mixture(ZEROS, ONES, ONES, generator=3), TypeError, "generator must be a t"),
        (lambda: mix_with_prototypes(ONES, ZEROS[:3], ONES, ONES), ValueError, "nearest must have"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
