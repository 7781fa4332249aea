"""The running mean against a plain Python loop."""

import math

import pytest
import torch

from noisydml.functional import running_mean

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def literal(batches: list[list[float]], decay: float | None) -> list[float]:
    """The mean after each batch, with an explicit "unset" and the whole history for the mean."""
    history: list[float] = []
    means: list[float] = []
    for batch in batches:
        history.append(math.fsum(batch) / len(batch))
        if decay is None:
            means.append(math.fsum(history) / len(history))
        elif not means:
            means.append(history[0])
        else:
            means.append(decay * means[-1] + (1 - decay) * history[-1])
    return means


def run(batches: list[list[float]], decay: float | None, dtype: torch.dtype) -> list[float]:
    mean, count = torch.zeros((), dtype=dtype), torch.tensor(0)
    means = []
    for batch in batches:
        mean = running_mean(mean, count, torch.tensor(batch, dtype=dtype), decay)
        count = count + 1
        means.append(mean.item())
    return means


@pytest.mark.parametrize("decay", [0.9, 0.0, 0.999, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_agrees_with_a_plain_loop_over_200_batches(decay, dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 40, (200,), generator=generator).tolist()
    batches = [(torch.randn(size, generator=generator) + 3).tolist() for size in sizes]

    assert run(batches, decay, dtype) == pytest.approx(literal(batches, decay), rel=tolerance)


def test_default_decay_gives_nine_tenths_to_the_past():
    got = running_mean(torch.tensor(10.0), torch.tensor(5), torch.tensor([0.0, 2.0]))

    assert got.item() == pytest.approx(9.1)


@pytest.mark.parametrize("decay", [0.9, None])
def test_a_mean_of_exactly_zero_is_not_unset(decay):
    means = run([[1.0, -1.0], [4.0, 6.0]], decay, torch.float64)

    assert means == pytest.approx(literal([[1.0, -1.0], [4.0, 6.0]], decay), rel=1e-14)
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


def test_the_plain_mean_is_over_batches_not_over_samples():
    means = run([[0.0], [1.0, 1.0, 1.0]], None, torch.float64)

    assert means[-1] == 0.5


@pytest.mark.parametrize("decay", [0.9, 0, None])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_dtype_of_the_mean(dtype, count, decay):
    mean = torch.tensor(1.0, dtype=dtype)
    for values in (torch.tensor([2.0, 4.0]), torch.tensor([2.0, 4.0], dtype=torch.float64)):
        got = running_mean(mean, torch.tensor(count), values, decay)
        assert got.dtype == dtype
        assert got.shape == ()


def test_does_not_depend_on_the_default_dtype():
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


def test_changes_nothing_in_place():
    mean, count, values = torch.tensor(1.0), torch.tensor(3), torch.tensor([2.0, 4.0])
    running_mean(mean, count, values)

    assert (mean.item(), count.item(), values.tolist()) == (1.0, 3, [2.0, 4.0])


@pytest.mark.parametrize("decay", [0.9, None])
def test_never_asks_the_host(decay, dataless):
    mean = torch.empty((), device=dataless, dtype=torch.float64)
    count = torch.empty((), device=dataless, dtype=torch.int64)
    got = running_mean(mean, count, torch.empty(5, device=dataless), decay)

    assert (got.dtype, got.device) == (torch.float64, dataless)


def test_refuses_integers_and_what_is_no_tensor():
    mean, count = torch.tensor(0.0), torch.tensor(0)
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        running_mean(mean, count, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"^values must be a floating-point"):
        running_mean(mean, count, [1.0, 2.0])


def test_refuses_an_empty_batch_and_wrong_shapes():
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
