"""Whatever is done in whatever order: finite numbers, or a refusal that leaves no trace."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    REFUSED,
    WIDTH,
    assert_same_state,
    build,
    chain,
    make_batch,
    state_of,
)
from contract.test_bad_input import KINDS_OF_TENSORS, junk
from contract.test_loading import spoilt
from torch import Tensor

from noisydml import LossWrapper

STEPS = 60


class NothingTried(ValueError):
    """Not a refusal; but there must be no trace, either."""


def bad_call(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    arguments = {**make_batch(seed=seed), "sample_weight": torch.rand(24)}
    name = rng.choice(list(arguments))
    value = arguments[name].detach()
    kind = rng.choice([*KINDS_OF_TENSORS, "junk"])
    arguments[name] = junk(rng) if kind == "junk" else KINDS_OF_TENSORS[kind](value)
    wrapper(**arguments)


def bad_state(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    state = copy.deepcopy(wrapper.state_dict())
    if not state:
        raise NothingTried
    name = rng.choice(list(state))
    kind, value = rng.choice(list(spoilt(state, name).items()))
    if kind == "missing":
        del state[name]
    else:
        state[name] = value
    wrapper.load_state_dict(state)


def bad_refresh(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    for each in chain(wrapper):
        if hasattr(each, "refresh"):
            features = torch.randn(8, WIDTH + rng.choice([0, 3]))
            features[rng.randrange(8), 0] = rng.choice([0.0, float("nan"), float("inf")])
            each.refresh(features, torch.arange(8) - rng.choice([0, 1]))
            return
    raise NothingTried


def without_gradients(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    with rng.choice([torch.no_grad, torch.inference_mode])():
        wrapper(**make_batch(seed=seed))
    raise NothingTried


def end_epoch(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    for each in chain(wrapper):
        if hasattr(each, "end_epoch"):
            each.end_epoch()


def reload(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    wrapper.train(False)(**make_batch(seed=seed))
    wrapper.train()


def good_call(wrapper: LossWrapper, rng: random.Random, seed: int) -> None:
    value: Tensor = wrapper(**make_batch(rng.choice([0, 1, 5, 24]), seed=seed))
    assert value.isfinite()
    value.backward()


ACTIONS: list[Any] = [
    good_call, bad_call, bad_call, bad_state, bad_refresh, without_gradients, end_epoch, reload,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_anything_in_any_order(case: str) -> None:
    rng, wrapper, refused = random.Random(1), build(case), 0
    for step in range(STEPS):
        action = rng.choice(ACTIONS)
        before = state_of(wrapper)
        try:
            action(wrapper, rng, step)
        except NothingTried:
            assert_same_state(before, wrapper)
        except (TypeError, ValueError, RuntimeError):
            refused += 1
            assert_same_state(before, wrapper)
            REFUSED["in any order"] += 1
        for name, value in state_of(wrapper).items():
            assert not value.is_floating_point() or value.isfinite().all(), name
    assert refused > STEPS // 10
