"""Counters that the host knows without asking the device."""

from __future__ import annotations

import copy

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.memory.state import Counters


def test_what_is_set_is_known_and_saved() -> None:
    counters = Counters(step=3, cycle=0)
    counters.set(step=4, cycle=7)
    assert (counters["step"], counters["cycle"]) == (4, 7)
    assert {name: value.item() for name, value in counters.state_dict().items()} == {
        "step": 4,
        "cycle": 7,
    }


def test_a_loaded_state_counts() -> None:
    counters, fresh = Counters(step=5, cycle=2**62), Counters(step=0, cycle=0)
    fresh.load_state_dict(counters.state_dict())
    assert (fresh["cycle"], fresh["step"]) == (2**62, 5)


def test_a_counter_set_before_the_others_are_read_changes_no_other() -> None:
    counters = Counters(step=0, cycle=0)
    counters.load_state_dict({"step": torch.tensor(9), "cycle": torch.tensor(8)})
    counters.set(step=10)
    assert (counters["step"], counters["cycle"]) == (10, 8)


def test_buffers_that_were_overwritten_are_read_again() -> None:
    counters = Counters(step=1)
    counters.step.fill_(6)  # as a broadcast does
    counters._forget(None)
    assert counters["step"] == 6


def test_copies_are_independent() -> None:
    counters = Counters(step=1)
    twin = copy.deepcopy(counters)
    twin.set(step=2)
    assert (counters["step"], counters.step.item()) == (1, 1)


def test_an_unknown_name() -> None:
    with pytest.raises(KeyError):
        Counters(step=1)["cycle"]


def test_counting_never_asks_the_device() -> None:
    with fake_cuda() as device:
        counters = Counters(step=0)
        counters.step = counters.step.to(device)
        counters.set(step=counters["step"] + 1)
        assert counters["step"] == 1
        assert counters.step.device == device
