"""Otsu's threshold against two literal loops of ProcSim's Algorithm 1.

One works in floating point, as the paper writes it; the other in exact rational arithmetic. Two
splits may cost the same but for rounding, and then only the exact loop can say which are best.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisydml.functional import otsu_threshold

HYPOTHESIS = settings(derandomize=True, deadline=None, max_examples=200)

# Costs that differ by less than this share of the total variance are equal but for rounding.
ROUNDING = 2e-12
INPUTS_PER_FAMILY = 500  # times 20 families: 10,000 inputs
LARGE_INPUTS = 240


def exact_costs(losses: np.ndarray) -> list[tuple[float, Fraction]]:
    """Algorithm 1 with exact arithmetic: every candidate with its cost, in order.

    Costs are shares of the total variance; only the candidates are rounded, to float64.
    """
    ordered = np.sort(losses).tolist()
    exact = [Fraction(loss) for loss in ordered]
    # Floats are whole multiples of a power of two, so whole numbers can stand for them.
    denominator = max(loss.denominator for loss in exact)
    whole = [int(loss * denominator) for loss in exact]
    total = squared_deviations(whole)
    costs = []
    for i in range(2, len(ordered) - 1):
        candidate = float((exact[i - 1] + exact[i]) / 2)
        low = [w for w, loss in zip(whole, ordered, strict=True) if loss < candidate]
        high = whole[len(low) :]
        costs.append((candidate, (squared_deviations(low) + squared_deviations(high)) / total))
    return costs


def squared_deviations(group: list[int]) -> Fraction:
    """|C| Var[C], as the sum of squares less the square of the sum over |C|."""
    if not group:
        return Fraction(0)
    return sum(x * x for x in group) - Fraction(sum(group) ** 2, len(group))


def check(losses: torch.Tensor, in_floats: bool = False) -> None:
    """The threshold must be Algorithm 1's; ``in_floats``: that of the float loop, too."""
    got = otsu_threshold(losses)
    assert (got.dtype, got.shape) == (torch.float64, ())
    threshold = got.item()
    values = losses.double().numpy()
    if len(values) < 4 or (values == values[0]).all():
        assert threshold == math.inf
        return

    costs = exact_costs(values)
    least = min(cost for _, cost in costs)
    first = next(candidate for candidate, cost in costs if cost == least)
    contested = any(0 < cost - least <= ROUNDING for _, cost in costs)
    if not contested:
        # Of exactly equal costs the first wins, as in the loop.
        assert threshold == first, losses.tolist()
    else:
        excess = min(cost for candidate, cost in costs if candidate == threshold) - least
        assert excess <= 1e-12, losses.tolist()

    # The float loop picks any of the splits that cost the same, by the luck of its rounding.
    alone = all(cost - least > ROUNDING for candidate, cost in costs if candidate != first)
    if in_floats and alone:
        assert threshold == literal.otsu_threshold(values), losses.tolist()


def sizes(rng: np.random.Generator) -> int:
    """0 to 64, half of them at most 16."""
    return int(rng.integers(0, 17 if rng.random() < 0.5 else 65))


def normal(rng, n):
    return rng.normal(size=n)


def skewed(rng, n):
    return rng.lognormal(sigma=rng.uniform(0.1, 3), size=n)


def two_modes(rng, n):
    return rng.normal(size=n) + np.where(rng.random(n) < rng.random(), 0, rng.uniform(1, 20))


def few_distinct(rng, n):
    return rng.integers(-3, 4, size=n).astype(float)


def two_values(rng, n):
    low, high = np.sort(rng.normal(size=2))
    return np.where(rng.random(n) < rng.random(), low, high)


def rounded(rng, n):
    return np.round(rng.normal(size=n), 1)


def constant_but_few(rng, n):
    values = np.full(n, rng.normal())
    changed = rng.integers(0, n, size=min(n, int(rng.integers(0, 4))))
    values[changed] += rng.normal(size=len(changed))
    return values


def outliers(rng, n):
    return rng.normal(size=n) * np.where(rng.random(n) < 0.1, 10.0 ** rng.integers(1, 16), 1)


def offset(rng, n):
    return rng.normal(size=n) + rng.choice([-1, 1]) * 10.0 ** rng.integers(4, 17)


def any_scale(rng, n):
    return rng.normal(size=n) * 10.0 ** rng.uniform(-300, 300)


def mixed_scales(rng, n):
    return rng.choice([-1, 1], size=n) * 10.0 ** rng.uniform(-300, 300, size=n)


def symmetric(rng, n):
    half = rng.integers(0, 50, size=n // 2).astype(float)
    return np.concatenate([half, -half, np.zeros(n % 2)]) + rng.integers(-3, 4)


def almost_symmetric(rng, n):
    values = symmetric(rng, n)
    if n:
        values[rng.integers(n)] += rng.choice([-1, 1]) * 10.0 ** rng.integers(-15, -8)
    return values


def equal_steps(rng, n):
    return rng.permutation(n) * rng.choice([1.0, 0.1, 1e-9]) + rng.integers(-5, 6)


def adjacent(rng, n):
    """Floats so close that a midpoint is one of them."""
    start = rng.normal()
    return start + rng.integers(0, 6, size=n) * np.spacing(start)


def subnormal(rng, n):
    return rng.integers(-9, 10, size=n) * 5e-324


def around_the_smallest_normal(rng, n):
    return rng.integers(-9, 10, size=n) * 5e-324 + rng.choice([0, 1, -1, 2], size=n) * 2.0**-1022


def huge(rng, n):
    """Sums, spans and squares all beyond the largest float64."""
    return rng.uniform(-1, 1, size=n) * np.finfo(float).max


def signed_powers(rng, n):
    return rng.choice([-1, 1], size=n) * 2.0 ** rng.integers(-40, 41, size=n)


def losses_of_a_network(rng, n):
    return -np.log(rng.beta(0.3, 0.3, size=n) + 1e-9)


ORDINARY = [normal, skewed, two_modes, few_distinct, two_values, rounded, symmetric, equal_steps]
ADVERSARIAL = [
    constant_but_few,
    outliers,
    offset,
    any_scale,
    mixed_scales,
    almost_symmetric,
    adjacent,
    subnormal,
    around_the_smallest_normal,
    huge,
    signed_powers,
    losses_of_a_network,
]


def name(family: Callable[..., np.ndarray]) -> str:
    return family.__name__


@pytest.mark.parametrize("family", ORDINARY, ids=name)
def test_is_the_threshold_of_the_literal_loops(family):
    rng = np.random.default_rng(1)
    for _ in range(INPUTS_PER_FAMILY):
        check(torch.from_numpy(family(rng, sizes(rng))), in_floats=True)


@pytest.mark.parametrize("family", ADVERSARIAL, ids=name)
def test_is_the_threshold_of_the_exact_loop_on_adversarial_inputs(family):
    rng = np.random.default_rng(2)
    for _ in range(INPUTS_PER_FAMILY):
        check(torch.from_numpy(family(rng, sizes(rng))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_the_threshold_of_the_exact_loop_in_lower_precision(dtype):
    rng = np.random.default_rng(3)
    info = torch.finfo(dtype)
    for i in range(300):
        family = [normal, skewed, few_distinct][i % 3]
        values = torch.from_numpy(family(rng, sizes(rng)))
        scale = float(rng.choice([1, 1000, info.tiny, info.max / 100]))
        check((values * scale).clamp(info.min, info.max).to(dtype))


def test_is_the_threshold_of_the_exact_loop_on_larger_inputs():
    rng = np.random.default_rng(4)
    families = [*ORDINARY, *ADVERSARIAL]
    for i in range(LARGE_INPUTS):
        check(torch.from_numpy(families[i % len(families)](rng, int(rng.integers(65, 129)))))


@pytest.mark.parametrize("size", [4, 5])
def test_is_the_threshold_of_the_literal_loops_for_all_small_inputs_of_few_values(size):
    # Every tie pattern there can be, in one order each: order does not matter.
    for code in range(4**size):
        digits = [code // 4**place % 4 for place in range(size)]
        if digits == sorted(digits):
            check(torch.tensor(digits, dtype=torch.float64), in_floats=True)


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ([0.0, 0.0, 1.0, 1.0], 0.5),
        ([0.0, 1.0, 10.0, 11.0, 12.0], 5.5),
        # The gap is above the fourth value, but two have to stay on each side.
        ([0.0, 1.0, 2.0, 3.0, 90.0], 2.5),
        # The only midpoint equals three of the values, and so all three lie above it.
        ([0.0, 1.0, 1.0, 1.0], 1.0),
        ([0.0, 0.0, 0.0, 1.0], 0.0),
        # Both splits cost the same: the first wins.
        ([-1.0, -1.0, 0.0, 1.0, 1.0], -0.5),
    ],
)
def test_small_cases_by_hand(values, threshold):
    assert otsu_threshold(torch.tensor(values)).item() == threshold


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_fewer_than_four_values_have_no_threshold(size):
    assert otsu_threshold(torch.arange(float(size))).item() == math.inf


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-300, 5e-324, -7.1, 1.7e308])
@pytest.mark.parametrize("size", [4, 5, 1000])
def test_equal_values_have_no_threshold(size, value):
    assert otsu_threshold(torch.full((size,), value, dtype=torch.float64)).item() == math.inf


def test_zeros_of_either_sign_are_equal():
    assert otsu_threshold(torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0])).item() == math.inf


WHOLE_NUMBERS = st.lists(st.integers(-1000, 1000), min_size=4, max_size=40)


@HYPOTHESIS
@given(WHOLE_NUMBERS, st.integers(1, 1000), st.integers(-(2**20), 2**20))
def test_moves_and_stretches_with_the_values(values, scale, shift):
    # Whole numbers, so that the moved and stretched values are exact.
    values = torch.tensor(values, dtype=torch.float64)
    want = scale * otsu_threshold(values) + shift

    assert torch.equal(otsu_threshold(scale * values + shift), want)


@HYPOTHESIS
@given(st.lists(st.floats(-1e6, 1e6), max_size=40), st.randoms(use_true_random=False))
def test_does_not_depend_on_the_order(values, random):
    shuffled = random.sample(values, len(values))
    got, want = (otsu_threshold(torch.tensor(v, dtype=torch.float64)) for v in (shuffled, values))

    assert torch.equal(got, want)


@HYPOTHESIS
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=40))
def test_lies_between_the_second_lowest_and_the_second_highest_value(values):
    threshold = otsu_threshold(torch.tensor(values, dtype=torch.float64)).item()
    ordered = sorted(values)

    assert threshold == math.inf or ordered[1] <= threshold <= ordered[-2]


def test_finds_the_gap_between_two_well_separated_groups():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(3000, generator=generator)
    high = torch.rand(1000, generator=generator) + 5
    threshold = otsu_threshold(torch.cat([high, low])).item()

    assert threshold == pytest.approx((low.max().item() + high.min().item()) / 2, rel=1e-15)


def test_leaves_its_input_alone_and_reads_strided_tensors():
    values = torch.rand(30)
    before = values.clone()
    strided = otsu_threshold(values[::2])

    assert torch.equal(values, before)
    assert torch.equal(strided, otsu_threshold(values[::2].clone()))


@pytest.mark.parametrize("size", [0, 3, 4, 50])
def test_never_asks_the_host(size, dataless):
    threshold = otsu_threshold(torch.empty(size, device=dataless))

    assert (threshold.shape, threshold.dtype) == ((), torch.float64)
    assert threshold.device == dataless


@pytest.mark.parametrize(
    "question",
    [
        lambda values: values.sum().item(),
        lambda values: 1 if values.max() > 0 else 0,
        lambda values: values[values > 0],
        # Looks harmless, and is an .item().
        lambda values: values[values.argmax()],
        lambda values: values + torch.ones(50),
    ],
    ids=["item", "branch", "mask", "index by a tensor", "other device"],
)
def test_a_question_to_the_host_would_be_noticed(question, dataless):
    values = torch.empty(50, device=dataless)
    with pytest.raises((RuntimeError, NotImplementedError)):
        question(values)


@pytest.mark.parametrize("shape", [(), (2, 3), (4, 1)])
def test_refuses_other_than_one_dimension(shape):
    with pytest.raises(ValueError, match=r"^values must have 1 dimension, got shape"):
        otsu_threshold(torch.zeros(shape))


@pytest.mark.parametrize("values", [torch.arange(9), torch.ones(9, dtype=torch.bool), [1.0, 2.0]])
def test_refuses_what_is_not_a_floating_point_tensor(values):
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        otsu_threshold(values)
