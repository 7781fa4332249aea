"""The refusals: which values pass, and that the message says what was wrong."""

import math

import numpy as np
import pytest
import torch

from noisydml.functional.checks import (
    require_choice,
    require_decay,
    require_floating,
    require_integer,
    require_not_negative,
    require_number,
    require_positive,
    require_vector,
)

NO_NUMBERS = [True, "1", [1.0], 1j, torch.tensor(1.0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_accepts_every_floating_dtype_and_shape(dtype):
    require_floating("x", torch.ones((), dtype=dtype))
    require_floating("x", torch.ones(2, 0, dtype=dtype))
    require_floating("x", torch.ones(2, 3, dtype=dtype), ndim=2)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.tensor([1]), "torch.int64"),
        (torch.tensor([True]), "torch.bool"),
        (torch.tensor([1j]), "torch.complex64"),
        ([1.0], "list"),
        (1.0, "float"),
        (np.ones(2), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_floating_refuses_other_types_by_name(value, got):
    with pytest.raises(TypeError, match=rf"^losses must be .*floating-point.*, got .*{got}"):
        require_floating("losses", value)


def test_floating_refuses_the_wrong_number_of_dimensions():
    with pytest.raises(ValueError, match=r"^x must have 2 dimensions, got shape \(3,\)$"):
        require_floating("x", torch.ones(3), ndim=2)
    with pytest.raises(ValueError, match=r"^x must have 1 dimension, got shape \(3, 1\)$"):
        require_floating("x", torch.ones(3, 1), ndim=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_accepts_every_integer_dtype(dtype):
    require_integer("labels", torch.zeros(3, dtype=dtype))
    require_integer("labels", torch.zeros(3, dtype=dtype), length=3)
    require_integer("labels", torch.zeros(0, dtype=dtype), length=0)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.tensor([1.0]), "torch.float32"),
        (torch.tensor([True]), "torch.bool"),
        (torch.tensor([1j]), "torch.complex64"),
        ([1], "list"),
        (np.ones(2, dtype=np.int64), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_integer_refuses_other_types_by_name(value, got):
    with pytest.raises(TypeError, match=rf"^labels must be an integer .*, got .*{got}"):
        require_integer("labels", value)


def test_integer_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"^labels must have 1 dimension, got shape \(2, 2\)$"):
        require_integer("labels", torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^labels must have 3 entries.*got 2$"):
        require_integer("labels", torch.zeros(2, dtype=torch.int64), length=3)


def test_vector_looks_at_the_shape_only():
    require_vector("v", torch.ones(2), length=2)
    require_vector("v", torch.tensor([True]))
    with pytest.raises(ValueError, match=r"^v must have 1 dimension, got shape \(\)$"):
        require_vector("v", torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"^v must have 0 entries.*got 1$"):
        require_vector("v", torch.ones(1), length=0)


def test_a_wrong_length_is_told_with_what_the_entries_belong_to():
    two = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^v must have 3 entries, one per embedding, got 2$"):
        require_vector("v", two, length=3)
    with pytest.raises(ValueError, match=r"^v must have 3 entries, one per row, got 2$"):
        require_vector("v", two, length=3, per="row")
    with pytest.raises(ValueError, match=r"^v must have 3 entries, one per row, got 2$"):
        require_integer("v", two, length=3, per="row")


@pytest.mark.parametrize(
    "value", [0, -1, 0.5, math.nan, math.inf, np.float32(1), np.float64(1), np.int64(1)]
)
def test_number_accepts_every_real_number(value):
    require_number("lam", value)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    "require", [require_number, require_positive, lambda name, value: require_decay(value)]
)
def test_number_positive_and_decay_refuse_what_is_no_number(require, value):
    message = rf"^decay must be a number, got {type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        require("decay", value)


@pytest.mark.parametrize("value", [None, 0, 0.0, 0.9, 1 - 1e-16, np.float32(0.5)])
def test_decay_accepts_none_and_numbers_from_0_to_below_1(value):
    require_decay(value)


@pytest.mark.parametrize("value", [1, 1.0, -1e-9, math.nan, math.inf])
def test_decay_refuses_other_numbers(value):
    with pytest.raises(ValueError, match=rf"^decay must be None or in \[0, 1\), got {value}$"):
        require_decay(value)


@pytest.mark.parametrize("value", [1, 0.1, 1e-300, 1e300, 5e-324, np.float64(2), np.float32(2)])
def test_positive_accepts_finite_numbers_above_zero(value):
    require_positive("lam", value)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, math.inf, -math.inf, math.nan])
def test_positive_refuses_other_numbers(value):
    with pytest.raises(ValueError, match=rf"^lam must be a finite number above 0, got {value}$"):
        require_positive("lam", value)


def test_require_not_negative():
    for value in (0, 0.0, 3, 1e300):
        require_not_negative("weight", value)
    for value in (-1, -1e-9, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^weight must be a finite number of 0 or more, got"):
            require_not_negative("weight", value)
    for value in (True, "1", torch.ones(())):
        with pytest.raises(TypeError, match=r"^weight must be a number, got"):
            require_not_negative("weight", value)


def test_choice():
    for value in ("tempered", None):
        require_choice("weights", value, ("tempered", None))
    for value in ("density", 3, torch.ones(2)):
        with pytest.raises(ValueError, match=r"^weights must be one of \('tempered', None\), got"):
            require_choice("weights", value, ("tempered", None))
