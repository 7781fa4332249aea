"""Lambert's W against SciPy, and against mpmath where SciPy has no digits left."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisydml.functional import lambertw

BRANCH = -1 / math.e
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HYPOTHESIS = settings(derandomize=True, deadline=None, max_examples=300)


def scipy_w(x: torch.Tensor) -> torch.Tensor:
    """SciPy's principal branch in float64, whatever the dtype of ``x``."""
    return torch.as_tensor(scipy.special.lambertw(x.double().numpy()).real)


def mpmath_w(x: float) -> float:
    """W to 50 digits; -1 for the floats just below the true -1/e."""
    with mpmath.workdps(50):
        return float(mpmath.lambertw(mpmath.mpf(x)).real)


def whole_range(dtype: torch.dtype) -> torch.Tensor:
    """Numbers from -1/e + 1e-4 to the largest of the dtype, subnormals and 0 included."""
    info = torch.finfo(dtype)
    smallest = 5e-324 if dtype == torch.float64 else info.smallest_normal * info.eps
    exponents = np.linspace(math.log10(smallest) + 0.1, math.log10(info.max) - 1e-6, 20_001)
    with np.errstate(under="ignore"):
        magnitudes = torch.from_numpy(10.0**exponents)
    x = torch.cat(
        [
            torch.linspace(BRANCH + 1e-4, 3, 20_001, dtype=torch.float64),
            -magnitudes[magnitudes < 0.36],
            magnitudes,
            torch.tensor([0.0, smallest, -smallest, info.tiny, info.max], dtype=torch.float64),
        ]
    ).to(dtype)
    return x[(x.double() >= BRANCH + 1e-4) & x.isfinite()]


def neighbours(x: float, steps: int, towards: float) -> list[float]:
    result = []
    for _ in range(steps):
        x = math.nextafter(x, towards)
        result.append(x)
    return result


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_agrees_with_scipy_over_the_whole_range(dtype, tolerance):
    x = whole_range(dtype)
    got, want = lambertw(x), scipy_w(x)

    assert got.dtype == dtype
    assert got.isfinite().all()
    error = (got.double() - want).abs()
    assert (error <= tolerance * want.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_the_rounded_exact_value(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite() & (x.double() > BRANCH)]

    assert len(x) > 30_000
    assert torch.equal(lambertw(x), scipy_w(x).to(dtype))


def test_agrees_with_mpmath_next_to_the_branch_point():
    offsets = 10 ** np.linspace(-17, -4, 400)
    points = [BRANCH, *(BRANCH + offsets).tolist(), *neighbours(BRANCH, 50, 0.0)]
    got = lambertw(torch.tensor(points, dtype=torch.float64))
    want = torch.tensor([mpmath_w(x) for x in points], dtype=torch.float64)

    assert (got - want).abs().max() <= 1e-7


def test_the_series_and_the_iteration_meet_without_a_step():
    # The code changes from one to the other at p = sqrt(2 (e x + 1)) = 0.01, where W = p - 1 + ...
    # costs the argument's rounding divided by p.
    p = np.concatenate([np.linspace(1e-3, 0.05, 400), np.linspace(0.01 - 1e-9, 0.01 + 1e-9, 100)])
    points = ((p**2 / 2 - 1) / math.e).tolist()
    got = lambertw(torch.tensor(points, dtype=torch.float64))
    want = torch.tensor([mpmath_w(x) for x in points], dtype=torch.float64)

    assert ((got - want).abs() <= 3e-16 / torch.from_numpy(p)).all()


def test_is_exact_to_a_few_roundings_in_float64():
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [
            np.linspace(BRANCH + 1e-4, 0, 300),
            10 ** rng.uniform(-3, 6, size=600),
            10 ** rng.uniform(-300, 308, size=300),
        ]
    ).tolist()
    got = lambertw(torch.tensor(points, dtype=torch.float64))
    want = torch.tensor([mpmath_w(x) for x in points], dtype=torch.float64)

    # A relative rounding of x changes W, relatively, 1 / (1 + W) times as much.
    condition = (1 / (1 + want)).clamp(min=1)
    assert ((got - want).abs() <= 6e-16 * condition * want.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_is_minus_one_at_the_branch_point(dtype):
    assert lambertw(torch.tensor(BRANCH, dtype=dtype)) == -1


def test_is_minus_one_at_the_bfloat16_below_the_branch_point():
    above, below = torch.tensor([-0.3671875, -0.369140625], dtype=torch.bfloat16)
    assert above.double() > BRANCH > below.double()  # -1/e rounds to the first

    assert lambertw(below) == -1
    assert lambertw(above) == torch.tensor(mpmath_w(-0.3671875), dtype=torch.bfloat16)


def test_is_minus_one_at_half_of_superloss_lower_bound():
    # Its clamp is at -2/e, half of which is the argument: ports of it return NaN here.
    assert lambertw(torch.tensor(-2 / math.e, dtype=torch.float64) / 2) == -1


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_nan_below_the_branch_point_and_for_nan(dtype):
    x = torch.tensor([-0.372, -0.4, -1.0, -1e4, -math.inf, math.nan], dtype=dtype)

    assert lambertw(x).isnan().all()


@pytest.mark.parametrize(
    ("dtype", "below"), [(torch.float16, -0.3682), (torch.float32, -0.36787950)]
)
def test_the_branch_point_ends_one_rounding_below(dtype, below):
    assert lambertw(torch.tensor(below, dtype=dtype)).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_infinity_and_e(dtype):
    x = torch.tensor([0.0, -0.0, math.inf], dtype=dtype)

    assert lambertw(x).tolist() == [0.0, 0.0, math.inf]
    assert lambertw(torch.tensor(math.e, dtype=torch.float64)).item() == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_shape_and_dtype(shape, dtype):
    x = torch.rand(shape).to(dtype)
    got = lambertw(x)

    assert got.shape == shape
    assert got.dtype == dtype
    torch.testing.assert_close(got, scipy_w(x).to(dtype), rtol=1e-15, atol=0)


def test_reads_strided_and_expanded_tensors():
    x = torch.rand(6, 8, dtype=torch.float64)

    torch.testing.assert_close(lambertw(x.T[::2]), scipy_w(x.T[::2].contiguous()))
    torch.testing.assert_close(lambertw(x[:, :1].expand(6, 3))[:, 2], scipy_w(x[:, 0]))


def test_leaves_its_input_alone_and_repeats_itself():
    x = torch.linspace(-0.36, 50, 1000)
    before = x.clone()
    first, second = lambertw(x), lambertw(x)

    assert torch.equal(x, before)
    assert torch.equal(first, second)


@HYPOTHESIS
@given(st.floats(BRANCH + 1e-4, 1e300))
def test_solves_w_exp_w_equals_x(x):
    w = lambertw(torch.tensor(x, dtype=torch.float64)).item()

    assert w >= -1
    # The slope of w e^w costs up to 1 + w roundings, some 700 at the upper end.
    assert w * math.exp(w) == pytest.approx(x, rel=1e-12, abs=5e-324)


@HYPOTHESIS
@given(st.floats(BRANCH, 1e300), st.floats(BRANCH, 1e300))
def test_grows_with_its_argument(a, b):
    lower, upper = lambertw(torch.tensor([min(a, b), max(a, b)], dtype=torch.float64)).tolist()

    # Two arguments that are nearly the same may swap in the last digits.
    assert lower <= upper + 1e-15 * abs(upper)


def test_gradients_of_first_and_second_order():
    x = torch.tensor([-0.3, -0.1, -1e-3, 0.0, 1e-3, 0.5, 1.0, math.e, 20.0], dtype=torch.float64)
    x.requires_grad_()

    assert torch.autograd.gradcheck(lambertw, x)
    assert torch.autograd.gradgradcheck(lambertw, x)


def test_gradient_at_zero_at_the_branch_point_and_at_infinity():
    x = torch.tensor([0.0, BRANCH, math.inf], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(lambertw(x).sum(), x)

    assert slope.tolist() == [1.0, math.inf, 0.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-3)])
def test_gradient_in_lower_precision(dtype, tolerance):
    x = torch.tensor([-0.25, 0.0, 0.5, 3.0, 100.0, 6e4], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(lambertw(x).sum(), x)
    w = scipy_w(x.detach())

    assert slope.dtype == dtype
    want = torch.exp(-w) / (1 + w)
    torch.testing.assert_close(slope.double(), want, rtol=tolerance, atol=1e-6)


def test_works_under_vmap_with_gradients():
    x = torch.rand(4, 5, dtype=torch.float64)

    assert torch.equal(torch.func.vmap(lambertw)(x), lambertw(x))
    assert torch.equal(torch.func.vmap(lambertw, in_dims=1)(x), lambertw(x.T))
    slopes = torch.func.vmap(torch.func.grad(lambda row: lambertw(row).sum()))(x)
    w = lambertw(x)
    torch.testing.assert_close(slopes, torch.exp(-w) / (1 + w))


def test_never_asks_the_host(dataless):
    w = lambertw(torch.empty(5, 3, device=dataless))

    assert (w.shape, w.device) == ((5, 3), dataless)


def test_its_gradient_never_asks_the_host():
    x = torch.empty(5, 3, device="meta", requires_grad=True)
    (slope,) = torch.autograd.grad(lambertw(x).sum(), x)

    assert (slope.shape, slope.device) == ((5, 3), x.device)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([1, 2]),
        torch.tensor([True]),
        torch.tensor([1 + 1j]),
        [1.0],
        1.0,
        np.ones(3),
        None,
    ],
    ids=["integers", "bool", "complex", "list", "float", "numpy", "none"],
)
def test_refuses_what_is_not_a_floating_point_tensor(x):
    with pytest.raises(TypeError, match=r"^x must be a floating-point"):
        lambertw(x)


def test_gradient_in_single_precision_near_the_branch_point() -> None:
    x = torch.tensor([-1 / math.e + 1e-4, -1 / math.e + 1e-6], requires_grad=True)
    (slope,) = torch.autograd.grad(lambertw(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(lambertw(exact).sum(), exact)
    torch.testing.assert_close(slope, wanted.float(), rtol=1e-6, atol=0)
