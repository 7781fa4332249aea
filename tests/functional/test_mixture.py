"""The mixture of two Gaussians against scikit-learn's, and its threshold against a search."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from noisydml.functional import (
    gaussian_mixture,
    gaussian_mixture_threshold,
    otsu_threshold,
)


def skewed(seed: int, shift: float | None = None) -> np.ndarray:
    """Losses of two skewed groups, as in ProcSim's Fig. 2; far apart or not."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(8, 400))
    low = rng.random(size) < rng.uniform(0.2, 0.8)
    shift = 4 * rng.random() if shift is None else shift
    return np.where(low, rng.gamma(2, 0.5, size), shift + rng.gamma(4, 0.3, size))


def by_sklearn(values: np.ndarray) -> GaussianMixture:
    """From Otsu's split as well, with as many steps, on standardised values."""
    z = (values - values.mean()) / values.std()
    upper = values >= otsu_threshold(torch.tensor(values)).item()
    groups = [z[~upper], z[upper]]
    fit = GaussianMixture(
        2,
        tol=0,
        max_iter=100,
        weights_init=[len(g) / len(z) for g in groups],
        means_init=[[g.mean()] for g in groups],
        precisions_init=[[[1 / (g.var() + 1e-6)]] for g in groups],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit.fit(z[:, None])


def parameters(values: np.ndarray) -> list[np.ndarray]:
    return [part.numpy() for part in gaussian_mixture(torch.tensor(values))]


def log_likelihood(values: np.ndarray, weight, mean, variance) -> float:
    densities = [
        w * scipy.stats.norm.pdf(values, m, math.sqrt(v))
        for w, m, v in zip(weight, mean, variance, strict=True)
    ]
    return float(np.log(sum(densities)).mean())


@pytest.mark.parametrize("seed", range(30))
def test_equals_scikit_learn_from_the_same_start(seed):
    values = skewed(seed)
    got = gaussian_mixture(torch.tensor(values))
    want = by_sklearn(values)
    order = want.means_.ravel().argsort()
    np.testing.assert_allclose(got.weight, want.weights_[order], rtol=1e-6)
    np.testing.assert_allclose(
        (got.mean - values.mean()) / values.std(), want.means_.ravel()[order], rtol=1e-6, atol=1e-6
    )
    variance = want.covariances_.ravel()[order] * values.var()
    np.testing.assert_allclose(got.variance, variance, rtol=1e-6)


def test_fits_as_well_as_scikit_learn_from_its_own_start():
    ours, theirs = [], []
    for seed in range(30):
        values = skewed(seed)
        ours.append(log_likelihood(values, *parameters(values)))
        fit = GaussianMixture(2, random_state=0).fit(values[:, None])
        theirs.append(fit.score(values[:, None]))
    assert np.mean(ours) > np.mean(theirs) - 1e-3


@pytest.mark.parametrize("seed", range(30))
def test_the_threshold_is_where_the_components_are_equally_likely(seed):
    values = torch.tensor(skewed(seed))
    weight, mean, variance = parameters(values.numpy())

    def odds(x: float) -> float:
        low, high = (
            math.log(w) + scipy.stats.norm.logpdf(x, m, math.sqrt(v))
            for w, m, v in zip(weight, mean, variance, strict=True)
        )
        return low - high

    low, high = mean.tolist()
    got = gaussian_mixture_threshold(values).item()
    if odds(low) <= 0:
        assert got == pytest.approx(low)
    elif odds(high) >= 0:
        assert got == pytest.approx(high)
    else:
        assert got == pytest.approx(scipy.optimize.brentq(odds, low, high), rel=1e-6)


def after_many_steps(samples: list[np.ndarray], steps: int) -> list[float]:
    """The thresholds after so many steps of expectation maximisation, of all samples at once."""
    there = np.arange(400) < np.array([[len(values)] for values in samples])
    padded = np.zeros((len(samples), 400))
    padded[there] = np.concatenate([(v - v.mean()) / v.std() for v in samples])
    upper = np.zeros_like(there)
    upper[there] = np.concatenate([v >= otsu_threshold(torch.tensor(v)).item() for v in samples])

    def maximised(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = share.sum(1)
        mean = (share * padded).sum(1) / total
        variance = (share * (padded - mean[:, None]) ** 2).sum(1) / total + 1e-6
        return total / there.sum(1), mean, variance

    def odds(fits: Any, z: np.ndarray) -> np.ndarray:
        """The logarithm of the upper one's."""
        terms = [np.log(w) - np.log(v) / 2 - (z - m) ** 2 / (2 * v) for w, m, v in fits]
        return terms[1] - terms[0]

    fits = [maximised(there & ~upper), maximised(there & upper)]
    for _ in range(steps):
        share = scipy.special.expit(odds([np.array(fit)[..., None] for fit in fits], padded))
        fits = [maximised(there * (1 - share)), maximised(there * share)]
    thresholds = []
    for i, values in enumerate(samples):
        pair = sorted(([part[i] for part in fit] for fit in fits), key=lambda fit: fit[1])
        low, high = pair[0][1], pair[1][1]
        ends = odds(pair, np.array([low, high]))
        z = high if ends[1] <= 0 else low
        if ends[0] < 0 < ends[1]:
            z = scipy.optimize.brentq(lambda x, pair=pair: odds(pair, x), low, high)
        thresholds.append(values.mean() + values.std() * z)
    return thresholds


@pytest.mark.parametrize(("shift", "share", "tolerance"), [(2, 40, 1e-3), (0, 20, 1e-2)])
def test_how_far_100_steps_go(shift, share, tolerance):
    """Against 5000: all the way if the groups are apart, and half of the time if they are not."""
    samples = [skewed(seed, shift) for seed in range(40)]
    errors = sorted(
        abs(gaussian_mixture_threshold(torch.tensor(values)).item() - limit) / values.std()
        for values, limit in zip(samples, after_many_steps(samples, 5000), strict=True)
    )
    assert errors[share - 1] < tolerance


def test_finds_two_groups_that_are_far_apart():
    values = torch.cat([torch.randn(200), 20 + torch.randn(100)]).double()
    mixture = gaussian_mixture(values)
    torch.testing.assert_close(mixture.weight, torch.tensor([2 / 3, 1 / 3]).double())
    assert ((values >= gaussian_mixture_threshold(values)) == (torch.arange(300) >= 200)).all()


def test_shift_and_scale_of_the_values_are_those_of_the_threshold():
    values = torch.tensor(skewed(1))
    got = gaussian_mixture_threshold(10 + 1e-3 * values)
    want = 10 + 1e-3 * gaussian_mixture_threshold(values)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0], [2.0] * 7])
def test_nothing_to_split(values):
    assert gaussian_mixture_threshold(torch.tensor(values)) == math.inf


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0, 1.0],
        [0.0, 0.0, 1.0, 1.0],
        [0.0] * 50 + [1e-9],
        [0.0] * 50 + [1e9],
        [1e300, -1e300, 0.0, 1.0, 2.0],
        [1.0, 1.0, 1.0, 1.0, 1.0 + 1e-15],
    ],
)
def test_extreme_values_give_a_threshold(values):
    values = torch.tensor(values, dtype=torch.float64)
    got = gaussian_mixture_threshold(values)
    assert values.min() <= got <= values.max() or got == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_computed_in_double(dtype):
    values = torch.tensor(skewed(2)).to(dtype)
    got = gaussian_mixture_threshold(values)
    assert got.dtype == torch.float64
    assert torch.equal(got, gaussian_mixture_threshold(values.double()))


def test_never_asks_the_host(dataless):
    values = torch.empty(9, device=dataless)
    got = gaussian_mixture_threshold(values)
    assert (got.shape, got.device) == ((), dataless)
    assert gaussian_mixture(values).mean.device == dataless


@pytest.mark.parametrize("function", [gaussian_mixture, gaussian_mixture_threshold])
def test_refusals(function):
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        function(torch.arange(5))
    with pytest.raises(ValueError, match=r"^values must have 1 dimension"):
        function(torch.ones(5, 1))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_too_few_values_have_no_mixture(number: int) -> None:
    assert all(part.isnan().all() for part in gaussian_mixture(torch.arange(number).float()))
