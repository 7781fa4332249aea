"""The product with a matrix against the plain one, in any mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from noisydml import functional
from noisydml.functional.products import affine, scaled

LARGE = (2100, 64)


@pytest.mark.parametrize("rows", [0, 1, 3, 40])
@pytest.mark.parametrize("shape", [(30, 64), LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_plain_product(rows: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, shape[1], generator=g, dtype=dtype)
    matrix = torch.randn(shape, generator=g, dtype=dtype)
    offsets = torch.randn(shape[0], generator=g, dtype=dtype)
    offsets[::3] = -math.inf
    expected = (x.double() @ matrix.double().T).to(dtype)
    torch.testing.assert_close(affine(x, matrix), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(affine(x, matrix, offsets), expected + offsets, rtol=1e-5, atol=2e-5)
    # Halves of a wider matrix and every other row: not contiguous.
    wide, twice = torch.cat([matrix, matrix], dim=1), x.repeat_interleave(2, dim=0)
    got = affine(twice[::2], wide[:, shape[1] :])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)


def test_gradients_and_second_derivatives() -> None:
    x, matrix = torch.randn(4, 64, requires_grad=True), torch.randn(LARGE)
    (first,) = torch.autograd.grad(affine(x, matrix).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(first, 2 * x @ matrix.T @ matrix, rtol=1e-4, atol=1e-2)
    assert second.isfinite().all()


@pytest.mark.parametrize("shape", [(30, 64), LARGE])
def test_autocast_takes_no_precision(shape: tuple[int, int]) -> None:
    x, matrix = torch.randn(4, 64), torch.randn(shape)
    with torch.autocast("cpu"):
        got = affine(x, matrix)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, affine(x, matrix), rtol=0, atol=0)


def test_inference_mode() -> None:
    x, matrix = torch.randn(4, 64), torch.randn(LARGE)
    with torch.inference_mode():
        got = affine(x, matrix)
    torch.testing.assert_close(got.clone(), affine(x, matrix), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-40, 1e-14, 0.3, 1.0, 7.0, 1e20, 3e38])
def test_scaled_rows_have_their_direction_and_gradient(size: float) -> None:
    rows = torch.randn(4, 5, dtype=torch.float64)
    small = scaled((rows / rows.abs().amax(dim=1, keepdim=True) * size).float())
    assert ((small.abs().amax(dim=1) >= 0.5) & (small.abs().amax(dim=1) <= 4)).all() or size < 1e-38
    assert small.isfinite().all()
    x = (rows * min(size, 1e3)).requires_grad_() if size > 1e-3 else rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: torch.nn.functional.normalize(scaled(z)), (x,))
    assert not scaled(torch.zeros(2, 3)).any()
    assert scaled(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize("name", ["proxy_nca", "guidance", "whitening", "components", "cosines"])
def test_autocast_changes_no_result(name: str) -> None:
    rows, labels = torch.randn(200, 32), torch.arange(200) % 5
    calls: dict[str, Callable[[], Any]] = {
        "proxy_nca": lambda: functional.proxy_nca(rows, labels, rows[:5], 32.0),
        "guidance": lambda: functional.language_guidance(rows, rows.flip(1), labels),
        "whitening": lambda: functional.within_class_whitening(rows, labels, torch.ones(200), 5),
        "components": lambda: functional.principal_components(rows, 4),
        "cosines": lambda: functional.leave_one_out_similarity(
            rows, rows[:5], labels, torch.ones(200)
        )[1],
    }
    expected = calls[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = calls[name]()
    assert torch.equal(found, expected)


def test_arguments_by_name() -> None:
    rows, labels, ones = torch.randn(20, 4), torch.arange(20) % 5, torch.ones(20)
    found = functional.within_class_whitening(
        weights=ones, features=rows, labels=labels, num_classes=5
    )
    assert torch.equal(found, functional.within_class_whitening(rows, labels, ones, 5))
    found = functional.principal_components(number=2, features=rows)
    assert torch.equal(found, functional.principal_components(rows, 2))
    found, own = functional.leave_one_out_similarity(
        sums=rows[:5], features=rows, own_classes=labels, own_weights=ones
    )
    expected = functional.leave_one_out_similarity(rows, rows[:5], labels, ones)
    assert torch.equal(found, expected[0])
    assert torch.equal(own, expected[1])
    for features in ([[1.0, 2.0]], None, "rows"):
        with pytest.raises(TypeError, match="features must be a"):
            functional.principal_components(features, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["proxy_nca", "guidance", "centers", "pairs", "positive"])
def test_the_gradient_of_a_row_of_zeros_is_finite(name: str) -> None:
    labels, counts, others = torch.tensor([0, 0, 1]), torch.tensor([2, 0]), torch.randn(2, 4)
    calls: dict[str, Callable[[Any], Any]] = {
        "proxy_nca": lambda x: functional.proxy_nca(x, labels, others),
        "guidance": lambda x: functional.language_guidance(x, torch.randn(3, 3), labels),
        "centers": lambda x: functional.class_similarity(x, others, counts)[:, 0],
        "pairs": lambda x: functional.class_similarity_pairs(x, others, labels[:2], 2)[:, 0],
        "positive": lambda x: functional.batch_positive(x, labels),
    }
    rows = torch.randn(3, 4)
    rows[1] = 0
    rows.requires_grad_()
    calls[name](rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_classes_that_are_none_are_not_looked_up() -> None:
    rows, labels, ones = torch.randn(8, 6), torch.arange(8) % 4, torch.ones(8)
    for bad in (-1, 4, 2**40):
        chosen = torch.tensor([[0, bad]] * 8)
        with pytest.raises(ValueError, match=r"classes must be in \[0, 4\), got others"):
            functional.leave_one_out_similarity(rows, rows[:4], labels, ones, classes=chosen)
    for arguments in ((None, rows[:4], labels, ones), (rows, rows[:4], [0] * 8, ones)):
        with pytest.raises(TypeError, match="must be"):
            functional.leave_one_out_similarity(*arguments)  # type: ignore[arg-type]
    array: Any = rows.numpy()
    with pytest.raises(TypeError, match="features must be a floating-point torch"):
        functional.principal_components(array, 2)
    with pytest.raises(TypeError, match="features must be a floating-point torch"):
        functional.within_class_whitening(array, labels, ones, 4)
