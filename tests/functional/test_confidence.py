"""The confidence against SciPy, and the conditions (i) to (v) that ProcSim's Claim 1 proves.

The running mean against a plain Python loop.
"""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisydml.functional import confidence, otsu_threshold, running_mean

SUPERLOSS = -2 / math.e
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HYPOTHESIS = settings(derandomize=True, deadline=None, max_examples=200)


def eq_3(losses: np.ndarray, tau: float, lam: float) -> np.ndarray:
    """ProcSim, Eq. 3."""
    positive_part = np.maximum(0, (losses - tau) / (2 * lam))
    return np.exp(-scipy.special.lambertw(positive_part).real)


def eq_12(losses: np.ndarray, tau: float, lam: float, beta_0: float) -> np.ndarray:
    """ProcSim, Eq. 12, to 50 digits: SciPy is NaN at the branch point of beta_0 = -2/e."""
    arguments = np.maximum(beta_0, (losses - tau) / lam) / 2
    with mpmath.workdps(50):
        return np.array([float(mpmath.exp(-mpmath.lambertw(a).real)) for a in arguments])


# Sixteenths, so that differences and the midpoint of two are exact.
GRID = st.integers(-2000, 2000).map(lambda i: i / 16)
BATCH = st.lists(GRID, min_size=1, max_size=40)
ANY_LOSS = st.floats(-1e300, 1e300)
LAM = st.floats(1e-6, 1e6)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("lam", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-13),
        (torch.float32, 1e-6),
        (torch.bfloat16, 2**-8),
        (torch.float16, 2**-11),
    ],
)
def test_agrees_with_eq_3(dtype, tolerance, lam):
    losses = (torch.rand(500, dtype=torch.float64) * 20).to(dtype)
    got = confidence(losses, 3.5, lam)
    want = torch.from_numpy(eq_3(losses.double().numpy(), 3.5, lam))

    assert got.dtype == dtype
    # Confidences under 1e-3 are subnormal in float16 before long, hence the absolute part.
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("lower", [SUPERLOSS, -0.7, -0.3, -1e-9, 0.0])
@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_agrees_with_eq_12(lam, lower):
    losses = torch.rand(300, dtype=torch.float64) * 4
    got = confidence(losses, 2.0, lam, lower)
    want = torch.from_numpy(eq_12(losses.numpy(), 2.0, lam, lower))

    # Next to the branch point W itself is only known to the square root of the rounding.
    torch.testing.assert_close(got, want, rtol=1e-7 if lower == SUPERLOSS else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_superloss_gives_the_easiest_samples_weight_e(dtype):
    losses = torch.tensor([-100.0, -1.0, 0.0, 1.0], dtype=dtype)
    got = confidence(losses, 0.5, 0.1, lower=SUPERLOSS)

    torch.testing.assert_close(got[:2].double(), tensor([math.e] * 2), rtol=2**-8, atol=0)
    assert (got.diff() <= 0).all()
    if dtype == torch.float64:
        assert got[0].item() == pytest.approx(math.e, rel=1e-15)


@pytest.mark.parametrize("losses", [tensor([1.0]), torch.tensor([1.0])])
def test_superloss_gives_weight_1_at_the_threshold(losses):
    assert confidence(losses, 1.0, 0.3, lower=SUPERLOSS).item() == 1


@HYPOTHESIS
@given(BATCH, GRID, LAM)
def test_condition_i_a_common_shift_of_the_losses_changes_nothing(batch, shift, lam):
    losses = tensor(batch)
    want = confidence(losses, otsu_threshold(losses), lam)
    got = confidence(losses + shift, otsu_threshold(losses + shift), lam)

    assert torch.equal(got, want)


@HYPOTHESIS
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), LAM, st.sampled_from([0, SUPERLOSS])
)
def test_condition_ii_a_higher_loss_never_has_a_higher_confidence(batch, lam, lower):
    losses = tensor(batch).sort().values
    sigma = confidence(losses, otsu_threshold(losses), lam, lower)

    # Losses that are all but equal may swap in the last digits.
    assert (sigma.diff() <= 4e-16 * sigma[:-1]).all()


@HYPOTHESIS
@given(BATCH, st.floats(1e-3, 1e3))
def test_condition_ii_above_the_threshold_a_higher_loss_has_a_lower_confidence(batch, lam):
    losses = tensor(batch).unique()
    threshold = otsu_threshold(losses)
    sigma = confidence(losses, threshold, lam)

    assert (sigma[losses >= threshold].diff() < 0).all()
    assert (sigma[losses > threshold] < 1).all()


@HYPOTHESIS
@given(st.lists(ANY_LOSS, max_size=20), ANY_LOSS, st.floats(1e-300, 1e300))
def test_condition_iii_the_confidence_lies_in_0_1(batch, threshold, lam):
    sigma = confidence(tensor(batch), threshold, lam)

    assert ((sigma >= 0) & (sigma <= 1)).all()


@HYPOTHESIS
@given(st.lists(ANY_LOSS, max_size=20), ANY_LOSS, st.floats(1e-300, 1e300))
def test_with_superloss_bound_the_confidence_lies_in_0_e(batch, threshold, lam):
    sigma = confidence(tensor(batch), threshold, lam, lower=SUPERLOSS)

    assert ((sigma >= 0) & (sigma <= math.e * (1 + 1e-15))).all()


@HYPOTHESIS
@given(BATCH)
def test_condition_iv_a_small_lam_trusts_fully_or_not_at_all(batch):
    losses = tensor(batch)
    threshold = otsu_threshold(losses)
    sigma = confidence(losses, threshold, lam=1e-300)

    assert (sigma[losses <= threshold] == 1).all()
    assert (sigma[losses > threshold] < 1e-200).all()


@HYPOTHESIS
@given(BATCH)
def test_condition_v_a_large_lam_trusts_everyone(batch):
    losses = tensor(batch)

    assert (confidence(losses, otsu_threshold(losses), lam=1e300) == 1).all()


@HYPOTHESIS
@given(BATCH, st.floats(1e-3, 1e3), st.floats(1.01, 1e3))
def test_a_larger_lam_is_milder(batch, lam, factor):
    # The paper's appendix A.4 says the reverse in words; its Eq. 3 and its limits say this.
    losses = tensor(batch)
    threshold = otsu_threshold(losses)

    assert (confidence(losses, threshold, lam * factor) >= confidence(losses, threshold, lam)).all()


@HYPOTHESIS
@given(st.lists(ANY_LOSS, max_size=20), ANY_LOSS, st.floats(1e-300, 1e300))
def test_samples_up_to_the_threshold_have_confidence_1(batch, threshold, lam):
    losses = tensor(batch)
    sigma = confidence(losses, threshold, lam)

    assert (sigma[losses <= threshold] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [math.inf, torch.tensor(math.inf, dtype=torch.float64)])
@pytest.mark.parametrize("lam", [1e-300, 1.0, 1e300])
def test_an_infinite_threshold_trusts_every_sample(dtype, threshold, lam):
    losses = torch.tensor([-5.0, 0.0, 3.0, 6e4], dtype=dtype)

    assert torch.equal(confidence(losses, threshold, lam), torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("lam", [1e-300, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_lam_leaves_no_nan(dtype, lam):
    info = torch.finfo(dtype)
    losses = torch.tensor([info.min, -1.0, 0.0, info.tiny, 1.0, info.max], dtype=dtype)
    for lower in (0.0, SUPERLOSS):
        sigma = confidence(losses, 0.5, lam, lower)
        assert sigma.dtype == dtype
        assert sigma.isfinite().all()


@pytest.mark.parametrize("lam", [1, 2.0, np.float64(0.5), np.float32(0.5)])
def test_takes_any_number_as_lam(lam):
    losses = tensor([0.0, 1.0, 2.0])
    want = torch.from_numpy(eq_3(losses.numpy(), 0.5, float(lam)))

    torch.testing.assert_close(confidence(losses, 0.5, lam), want)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 0, 3)])
@pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5), torch.tensor(0.5).double()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_shape_and_dtype_whatever_the_threshold_is(shape, threshold, dtype):
    sigma = confidence(torch.rand(shape).to(dtype), threshold, 0.1)

    assert (sigma.shape, sigma.dtype) == (shape, dtype)


def test_a_double_threshold_is_not_rounded_to_half_precision():
    # One float16 step above 1, and a threshold in between.
    losses = torch.tensor([1.0, 1.0009765625], dtype=torch.float16)
    sigma = confidence(losses, otsu_threshold(losses.repeat(2)), lam=1e-9)

    assert sigma[0] == 1
    assert sigma[1] < 1e-3


def test_leaves_its_input_alone():
    losses = torch.rand(9)
    before = losses.clone()
    confidence(losses, 0.5, 0.1)

    assert torch.equal(losses, before)


@pytest.mark.parametrize("lower", [0.0, -0.5])
def test_is_differentiable(lower):
    # Away from the kink at the clamp.
    losses = tensor([0.1, 0.95, 1.2, 3.0]).requires_grad_()
    threshold = tensor(1.0).requires_grad_()

    assert torch.autograd.gradcheck(
        lambda x, tau: confidence(x, tau, 0.5, lower), (losses, threshold)
    )


@pytest.mark.parametrize("lower", [0.0, SUPERLOSS])
def test_never_asks_the_host(lower, dataless):
    losses = torch.empty(9, device=dataless)
    for threshold in (0.5, otsu_threshold(losses)):
        assert confidence(losses, threshold, 0.1, lower).device == dataless


@pytest.mark.parametrize("losses", [torch.arange(3), torch.tensor([True]), [0.1, 0.2], None])
def test_refuses_losses_that_are_not_floating_point(losses):
    with pytest.raises(TypeError, match=r"^losses must be a floating-point"):
        confidence(losses, 0.5, 0.1)


@pytest.mark.parametrize("lam", [0, 0.0, -1.0, math.inf, math.nan])
def test_refuses_a_lam_out_of_range(lam):
    with pytest.raises(ValueError, match=r"^lam must be a finite number above 0, got"):
        confidence(torch.rand(3), 0.5, lam)


@pytest.mark.parametrize("lam", [True, "0.1", None, torch.tensor(0.1)])
def test_refuses_a_lam_that_is_no_number(lam):
    with pytest.raises(TypeError, match=r"^lam must be a number, got"):
        confidence(torch.rand(3), 0.5, lam)


@pytest.mark.parametrize("lower", [-1.0, -0.736, 1e-9, 0.5, math.inf, -math.inf, math.nan])
def test_refuses_a_lower_bound_out_of_range(lower):
    with pytest.raises(ValueError, match=r"^lower must be between -2/e = -0.735759 and 0, got"):
        confidence(torch.rand(3), 0.5, 0.1, lower)


@pytest.mark.parametrize("lower", [True, "0", None, torch.tensor(0.0)])
def test_refuses_a_lower_bound_that_is_no_number(lower):
    with pytest.raises(TypeError, match=r"^lower must be a number, got"):
        confidence(torch.rand(3), 0.5, 0.1, lower)


def test_a_threshold_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold .* \(3,\), got \(3, 1\)"):
        confidence(torch.rand(3), torch.rand(3, 1), lam=1.0)


def test_a_threshold_per_loss() -> None:
    losses, thresholds = torch.rand(5).double(), torch.rand(5).double()
    each = [confidence(x, t, 0.3) for x, t in zip(losses, thresholds, strict=True)]
    assert torch.equal(confidence(losses, thresholds, 0.3), torch.stack(each))


def test_a_lam_beyond_every_float_is_refused() -> None:
    with pytest.raises(ValueError, match="lam"):
        confidence(torch.rand(3), 0.5, lam=10**400)


def literal_means(batches: list[list[float]], decay: float | None) -> list[float]:
    """The mean after each batch, with an explicit "unset" and the whole history for the mean."""
    history: list[float] = []
    seen: list[float] = []
    means: list[float] = []
    for batch in batches:
        history.append(math.fsum(batch) / len(batch))
        seen += batch
        if decay is None:
            means.append(math.fsum(seen) / len(seen))
        elif not means:
            means.append(history[0])
        else:
            means.append(decay * means[-1] + (1 - decay) * history[-1])
    return means


def run_means(batches: list[list[float]], decay: float | None, dtype: torch.dtype) -> list[float]:
    mean, count = torch.zeros((), dtype=dtype), torch.tensor(0)
    means = []
    for batch in batches:
        mean = running_mean(mean, count, torch.tensor(batch, dtype=dtype), decay)
        count = count + len(batch)
        means.append(mean.item())
    return means


@pytest.mark.parametrize("decay", [0.9, 0.0, 0.999, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_running_mean_agrees_with_a_plain_loop_over_200_batches(decay, dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 40, (200,), generator=generator).tolist()
    batches = [(torch.randn(size, generator=generator) + 3).tolist() for size in sizes]

    assert run_means(batches, decay, dtype) == pytest.approx(
        literal_means(batches, decay), rel=tolerance
    )


def test_default_decay_gives_nine_tenths_to_the_past():
    got = running_mean(torch.tensor(10.0), torch.tensor(5), torch.tensor([0.0, 2.0]))

    assert got.item() == pytest.approx(9.1)


@pytest.mark.parametrize("decay", [0.9, None])
def test_a_mean_of_exactly_zero_is_not_unset(decay):
    means = run_means([[1.0, -1.0], [4.0, 6.0]], decay, torch.float64)

    assert means == pytest.approx(literal_means([[1.0, -1.0], [4.0, 6.0]], decay), rel=1e-14)
    assert means[0] == 0
    assert means[1] < 5


@pytest.mark.parametrize("decay", [0.9, 0.0, None])
@pytest.mark.parametrize("start", [math.nan, math.inf, -7.0])
def test_whatever_stands_in_the_mean_before_the_first_batch_does_not_count(decay, start):
    got = running_mean(torch.tensor(start), torch.tensor(0), torch.tensor([1.0, 3.0]), decay)

    assert got.item() == 2


def test_decay_zero_forgets_the_past():
    got = running_mean(torch.tensor(100.0), torch.tensor(3), torch.tensor([1.0, 3.0]), decay=0.0)

    assert got.item() == 2


def test_in_the_plain_mean_every_value_counts_once():
    means = run_means([[0.0], [1.0, 1.0, 1.0]], None, torch.float64)

    assert means[-1] == 0.75


@pytest.mark.parametrize("decay", [0.9, None])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [0, 3])
def test_no_value_that_is_not_finite_enters_the_running_mean(decay, bad, count):
    mean, count = torch.tensor(5.0), torch.tensor(count)
    without = running_mean(mean, count, torch.tensor([1.0, 3.0]), decay)

    assert running_mean(mean, count, torch.tensor([1.0, bad, 3.0]), decay) == without
    assert running_mean(mean, count, torch.tensor([bad, bad]), decay) == mean


@pytest.mark.parametrize("decay", [0.9, 0, None])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_dtype_of_the_mean(dtype, count, decay):
    mean = torch.tensor(1.0, dtype=dtype)
    for values in (torch.tensor([2.0, 4.0]), torch.tensor([2.0, 4.0], dtype=torch.float64)):
        got = running_mean(mean, torch.tensor(count), values, decay)
        assert got.dtype == dtype
        assert got.shape == ()


def test_the_running_mean_does_not_depend_on_the_default_dtype():
    mean, count = torch.tensor(1.0, dtype=torch.float64), torch.tensor(6)
    values = torch.tensor([0.1, 0.2], dtype=torch.float64)
    want = [running_mean(mean, count, values, decay) for decay in (0.9, None)]
    torch.set_default_dtype(torch.float64)
    try:
        got = [running_mean(mean, count, values, decay) for decay in (0.9, None)]
    finally:
        torch.set_default_dtype(torch.float32)

    assert torch.equal(torch.stack(got), torch.stack(want))


def test_half_precision_losses_enter_a_wider_mean_unrounded():
    neighbours = torch.tensor([1.0, 1.0009765625], dtype=torch.float16)
    many = torch.full((2000,), 6e4, dtype=torch.float16)  # their sum is beyond float16
    mean, count = torch.tensor(0.0), torch.tensor(0)

    assert running_mean(mean, count, neighbours).item() == 1.00048828125
    assert running_mean(mean, count, many).item() == many[0].item()


def test_the_running_mean_changes_nothing_in_place():
    mean, count, values = torch.tensor(1.0), torch.tensor(3), torch.tensor([2.0, 4.0])
    running_mean(mean, count, values)

    assert (mean.item(), count.item(), values.tolist()) == (1.0, 3, [2.0, 4.0])


@pytest.mark.parametrize("decay", [0.9, None])
def test_the_running_mean_never_asks_the_host(decay, dataless):
    mean = torch.empty((), device=dataless, dtype=torch.float64)
    count = torch.empty((), device=dataless, dtype=torch.int64)
    got = running_mean(mean, count, torch.empty(5, device=dataless), decay)

    assert (got.dtype, got.device) == (torch.float64, dataless)


def test_the_running_mean_refuses_integers_and_what_is_no_tensor():
    mean, count = torch.tensor(0.0), torch.tensor(0)
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        running_mean(mean, count, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        running_mean(mean, count, [1.0, 2.0])


def test_the_running_mean_refuses_an_empty_batch_and_wrong_shapes():
    mean, count = torch.tensor(0.0), torch.tensor(0)
    with pytest.raises(ValueError, match=r"^values must have at least one entry"):
        running_mean(mean, count, torch.empty(0))
    with pytest.raises(ValueError, match=r"^values must have 1 dimension, got shape \(2, 2\)"):
        running_mean(mean, count, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"^values must have 1 dimension, got shape \(\)"):
        running_mean(mean, count, torch.tensor(1.0))


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, math.nan, math.inf])
def test_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=r"^decay must be None or in \[0, 1\), got"):
        running_mean(torch.tensor(0.0), torch.tensor(0), torch.ones(2), decay)


@pytest.mark.parametrize("decay", [True, "0.9", torch.tensor(0.9)])
def test_refuses_a_decay_that_is_no_number(decay):
    with pytest.raises(TypeError, match=r"^decay must be a number, got"):
        running_mean(torch.tensor(0.0), torch.tensor(0), torch.ones(2), decay)
