"""Promise 8 for load_state_dict: what does not fit is refused before any of it is loaded."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from contract.cases import (
    CASES,
    REFUSED,
    assert_same_state,
    build,
    leaf_for,
    make_batch,
    naming,
    state_of,
)
from torch import Tensor, nn

from noisydml import LossWrapper


def trained(case: str) -> LossWrapper:
    wrapper = build(case, leaf_for(case, "cross_batch_memory"))
    for step in range(4):
        wrapper(**make_batch(seed=step))
    return wrapper


def spoilt(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The state with that entry in every way that it cannot be."""
    value = state[name]
    found: dict[str, Any] = {"missing": None, "another type": "text"}
    if isinstance(value, Tensor):
        found["another shape"] = torch.zeros(3, *value.shape[1:], 2, dtype=value.dtype)
        found["sparse"] = torch.ones(2, 2).to_sparse()
        found["meta"] = value.to("meta")
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_refused_state_leaves_everything(case: str) -> None:
    wrapper = trained(case)
    nested = nn.ModuleDict({"model": nn.Linear(2, 2), "loss_fn": wrapper})
    state = copy.deepcopy(wrapper.state_dict())
    before, extra = state_of(wrapper), copy.deepcopy(extra_of(wrapper))
    for name in state:
        for kind, value in spoilt(state, name).items():
            bad = {key: each for key, each in state.items() if key != name}
            bad |= {} if kind == "missing" else {name: value}
            with naming(f"{name}: {kind}"):
                with pytest.raises((RuntimeError, TypeError, ValueError), match=name):
                    wrapper.load_state_dict(bad)
                with pytest.raises((RuntimeError, TypeError, ValueError), match=name):
                    nested.load_state_dict(
                        {
                            **{f"model.{k}": v for k, v in nested["model"].state_dict().items()},
                            **{f"loss_fn.{k}": v for k, v in bad.items()},
                        }
                    )
                assert_same_state(before, wrapper)
                assert extra_of(wrapper) == extra
                REFUSED["states"] += 2
    wrapper.load_state_dict(state)
    assert_same_state(before, wrapper)


def extra_of(wrapper: nn.Module) -> list[Any]:
    return [value for value in wrapper.state_dict().values() if not isinstance(value, Tensor)]


IMPOSSIBLE = {
    "prism": {"memory.labels": 99, "memory.features": math.nan, "quantiles": math.inf},
    "knn": {"reference.features": math.nan, "memory.labels": -2, "reference.sample_ids": -7},
    "unsized_knn": {"reference.features": math.inf},
    "judged": {
        "reference.labels": -2,
        "suggested": -2,
        "judged_labels": -2,
        "noise_rate": math.inf,
        "counters.phase": 7,
    },
    "running_mean": {"mean": math.inf},
    "super_loss": {"mean": math.nan},
    "mixer": {
        "prototypes.means": math.nan,
        "prototypes.refined": 99,
        "prototypes.memory.labels": 99,
        "prototypes.variances": -1.0,
    },
    "relabeler(knn)": {"memory.features": math.nan, "loss.reference.features": math.nan},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_values_that_cannot_be(case: str) -> None:
    wrapper = trained(case)
    before = state_of(wrapper)
    for name, value in IMPOSSIBLE[case].items():
        bad = copy.deepcopy(wrapper.state_dict())
        bad[name].view(-1)[0] = value
        with naming(name), pytest.raises(ValueError, match=name):
            wrapper.load_state_dict(bad)
        assert_same_state(before, wrapper)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_from_before_the_wrapper(case: str) -> None:
    """``strict=False`` says what is missing, as torch does; a part of a state stays refused."""
    wrapper = trained(case)
    nested = nn.ModuleDict({"model": nn.Linear(2, 2), "loss_fn": wrapper})
    state = {f"model.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}
    before = state_of(wrapper)
    if wrapper.state_dict():
        with pytest.raises(RuntimeError, match="loss_fn"):
            nested.load_state_dict(state)
    missing, unexpected = nested.load_state_dict(state, strict=False)
    assert sorted(missing) == sorted(f"loss_fn.{name}" for name in wrapper.state_dict())
    assert unexpected == []
    assert torch.equal(nested["model"].weight, state["model.weight"])
    assert_same_state(before, wrapper)


@pytest.mark.parametrize(("saved", "other"), [("cosine", "euclidean"), ("euclidean", "cosine")])
def test_features_of_another_metric(saved: str, other: str) -> None:
    source, target = build("knn", metric=saved), build("knn", metric=other)
    before = state_of(target)
    with pytest.raises(ValueError, match=r"memory._extra_state must be that of .* normalize"):
        target.load_state_dict(source.state_dict())
    assert_same_state(before, target)


def test_what_is_saved_of_a_cross_batch_memory() -> None:
    wrapper = build("ground_truth", "cross_batch_memory")
    wrapper(**make_batch())
    good = {"queue_idx": 3, "has_been_filled": False}
    end = wrapper.loss.queue_idx
    for bad in (
        {**good, "forward": 3},
        {**good, "queue_idx": 48},
        {**good, "queue_idx": "3"},
        {"queue_idx": 3},
        [good],
    ):
        state = {**wrapper.state_dict(), "unsaved_state._extra_state": [bad]}
        with naming(bad), pytest.raises(ValueError, match=r"unsaved_state._extra_state must"):
            wrapper.load_state_dict(state)
    assert (wrapper.loss.queue_idx, wrapper.loss.has_been_filled) == (end, False)
