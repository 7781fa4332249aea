"""Language guidance against its definition, written as loops."""

from __future__ import annotations

import itertools
import math

import literal
import numpy as np
import pytest
import torch

from noisydml.functional import language_guidance

SETTINGS = list(
    itertools.product(
        ["backward", "forward"], [1.0, 0.3], [1.0, 0.0, -0.5], ["fill", "diagonal", "keep"]
    )
)


def batch(seed: int, parts: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    return rng.normal(size=(size, 6)), rng.normal(size=(size, parts, 5)), rng.integers(3, size=size)


@pytest.mark.parametrize(("direction", "temperature", "shift", "same_class"), SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loops(seed, direction, temperature, shift, same_class):
    x, language, y = batch(seed)
    got = language_guidance(
        torch.tensor(x),
        torch.tensor(language),
        torch.tensor(y),
        direction=direction,
        temperature=temperature,
        shift=shift,
        same_class=same_class,
    )
    want = literal.language_guidance(x, language, y, direction, temperature, shift, same_class)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_the_defaults_are_the_published_ones():
    x, language, y = batch(3, parts=5)
    got = language_guidance(torch.tensor(x), torch.tensor(language), torch.tensor(y))
    np.testing.assert_allclose(got, literal.language_guidance(x, language, y), rtol=1e-9)


def test_one_embedding_per_sample_needs_no_third_dimension():
    x, language, y = (torch.tensor(part) for part in batch(2, parts=1))
    flat = language_guidance(x, language.squeeze(1), y)
    assert torch.equal(flat, language_guidance(x, language, y))


def test_gradient_of_the_embeddings_and_none_for_language():
    x, language, y = (torch.tensor(part) for part in batch(3))
    x.requires_grad_()
    language.requires_grad_()
    for direction in ("backward", "forward"):
        assert torch.autograd.gradcheck(
            lambda e, d=direction: language_guidance(e, language, y, direction=d), [x]
        )
    language_guidance(x, language, y).sum().backward()
    assert language.grad is None
    assert x.grad.abs().sum() > 0


def test_embeddings_that_agree_with_language_cost_nothing():
    x = torch.randn(6, 8, dtype=torch.float64)
    y = torch.arange(6)
    got = language_guidance(x, 3 * x, y, shift=0.0)
    torch.testing.assert_close(got, torch.zeros(6, dtype=torch.float64))


def test_scale_of_either_does_not_matter():
    x, language, y = (torch.tensor(part) for part in batch(1))
    got = language_guidance(100 * x, 0.01 * language, y)
    torch.testing.assert_close(got, language_guidance(x, language, y))


@pytest.mark.parametrize("same_class", ["diagonal", "keep"])
def test_without_the_fill_no_label_is_read(same_class):
    x, language, y = (torch.tensor(part) for part in batch(3))
    with_labels = language_guidance(x, language, y, same_class=same_class)
    assert torch.equal(with_labels, language_guidance(x, language, same_class=same_class))


@pytest.mark.parametrize("same_class", ["fill", "diagonal", "keep"])
def test_small_batches(same_class):
    for size in (0, 1):
        x = torch.randn(size, 4, requires_grad=True)
        y = torch.zeros(size, dtype=torch.long)
        got = language_guidance(x, torch.randn(size, 2, 3), y, shift=0.0, same_class=same_class)
        assert got.shape == (size,)
        torch.testing.assert_close(got, torch.zeros(size))
        got.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    x, language, y = (torch.tensor(part) for part in batch(3))
    got = language_guidance(x.to(dtype), language.to(dtype), y)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        got.double(), language_guidance(x, language, y), rtol=0.05, atol=0.02
    )


@pytest.mark.parametrize("same_class", ["fill", "diagonal", "keep"])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_never_asks_the_host(direction, same_class, dataless):
    x = torch.empty(7, 4, device=dataless)
    language = torch.empty(7, 2, 3, device=dataless)
    y = torch.empty(7, dtype=torch.int64, device=dataless)
    got = language_guidance(x, language, y, direction=direction, same_class=same_class)
    assert (got.shape, got.device) == ((7,), dataless)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": [[1.0]]}, TypeError, "^embeddings must be a floating-point"),
        ({"embeddings": torch.ones(4)}, ValueError, "^embeddings must have 2 dimensions"),
        ({"language": torch.ones(4, 2).long()}, TypeError, "^language must be a floating"),
        ({"language": torch.ones(4)}, ValueError, r"^language must have 2 or 3 .*got shape \(4,\)"),
        ({"language": torch.ones(3, 2)}, ValueError, "^language must have 4 rows, .* got 3"),
        ({"labels": torch.ones(4)}, TypeError, "^labels must be an integer"),
        ({"labels": None}, ValueError, "^same_class='fill' needs labels"),
        ({"direction": "up"}, ValueError, "^direction must be 'backward' or 'forward', got 'up'"),
        ({"temperature": 0}, ValueError, "^temperature must be a finite number above 0"),
        ({"shift": math.inf}, ValueError, "^shift must be finite, got inf"),
        ({"shift": "1"}, TypeError, "^shift must be a number, got str"),
        ({"same_class": "drop"}, ValueError, "^same_class must be 'fill', 'diagonal' or 'keep'"),
    ],
)
def test_refusals(change, error, message):
    good = {
        "embeddings": torch.ones(4, 3),
        "language": torch.ones(4, 2),
        "labels": torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(error, match=message):
        language_guidance(**{**good, **change})
