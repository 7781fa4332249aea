"""A decision says for whom there was something to judge by; the others are kept."""

from __future__ import annotations

import pytest
import torch
from contract.cases import CASES, CLASSES, WIDTH, build, chain, class_centers, make_batch

from noisydml import LossWrapper, PRISMFilter, PrototypicalMixer

SIZE = 24
STEPS = 4  # the mixer's second cycle begins in the last
NOBODY = {"gathered", "regularized", "gathered(regularized)"}  # they judge nothing by themselves


def steps(wrapper: LossWrapper, device: str) -> LossWrapper:
    for step in range(STEPS):
        wrapper(**make_batch(seed=step, device=device))
    return wrapper


@pytest.mark.parametrize("case", CASES)
def test_who_is_not_judged_is_kept_as_it_is(case: str, device: str) -> None:
    wrapper = steps(build(case), device)
    for each in chain(wrapper):
        decision = each.decision
        assert decision.judged.dtype == torch.bool
        assert decision.judged.shape == decision.keep.shape
        assert decision.judged.device == decision.keep.device
        trusted = ~decision.judged[:SIZE]  # rows behind them are made up
        assert decision.keep[:SIZE][trusted].all()
        if not isinstance(each, PrototypicalMixer):  # whose weights are no judgement of labels
            assert (decision.weight[:SIZE][trusted] == 1).all()
    assert any(each.decision.judged.any() for each in chain(wrapper)) == (case not in NOBODY)


@pytest.mark.parametrize("case", CASES)
def test_nobody_is_judged_in_warm_up_and_eval_mode(case: str, device: str) -> None:
    wrapper = build(case, trusting=True)
    wrapper(**make_batch(device=device))
    for each in chain(wrapper):
        if getattr(each, "warmup", 0) or getattr(each, "ramp", 0):
            assert not each.decision.judged.any(), type(each)
    wrapper = steps(build(case), device).eval()
    wrapper(**make_batch(device=device))
    assert not any(each.decision.judged.any() for each in chain(wrapper))


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("mixer(")])
def test_rows_that_a_wrapper_has_made_up_are_not_judged(case: str) -> None:
    wrapper = steps(build(case), "cpu")
    made_up = wrapper.loss.decision.judged[SIZE:]
    assert len(made_up) == SIZE
    assert not made_up.any()


@pytest.mark.parametrize("case", ["prism", "estimated_prism", "top_r", "knn", "counting_knn"])
def test_a_class_that_nobody_has_seen_is_not_judged(case: str) -> None:
    wrapper = build(case)
    labels = torch.arange(40) % (CLASSES - 1)
    features = class_centers()[labels] + 0.1 * torch.randn(40, WIDTH)
    if isinstance(wrapper, PRISMFilter):
        wrapper.memory.reset()
        wrapper.memory.enqueue(features, labels)
    else:
        wrapper.refresh(features, labels)
    arguments = make_batch()
    wrapper(**arguments)
    assert torch.equal(wrapper.decision.judged, arguments["labels"] < CLASSES - 1)


def test_a_class_without_a_prototype_is_not_judged() -> None:
    wrapper = build("mixer")
    for step in range(STEPS):
        arguments = make_batch(seed=step)
        arguments["labels"] = arguments["labels"] % (CLASSES - 1)
        wrapper(**arguments)
    arguments = make_batch()
    wrapper(**arguments)
    assert torch.equal(wrapper.decision.judged, arguments["labels"] < CLASSES - 1)


def test_where_no_threshold_could_be_found_nobody_is_judged() -> None:
    """Otsu's method needs four losses, and small-loss selection somebody to drop."""
    for case, size in (("confidence", 3), ("small_loss", 2), ("prism", 2)):
        wrapper = build(case)
        wrapper(**make_batch(size))
        assert not wrapper.decision.judged.any(), case
