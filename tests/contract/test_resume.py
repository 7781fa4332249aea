"""Promise 4: n steps, or k, save, load into a fresh object, and n - k: the same numbers."""

from __future__ import annotations

import copy
import io
import signal
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.multiprocessing as mp
from contract.cases import (
    CASES,
    LEAVES,
    WIDTH,
    assert_equal,
    build,
    every_case_and_leaf,
    leaf_for,
    make_batch,
    naming,
    state_of,
)
from contract.runs import Run, train_until_killed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from noisydml import LossWrapper

STEPS = 8


@pytest.mark.parametrize(("case", "leaf"), every_case_and_leaf("cross_batch_memory"))
def test_a_resumed_run_is_the_run(case: str, leaf: str, device: str, tmp_path: Path) -> None:
    whole = Run(case, leaf, 1, device)
    expected, state = whole.steps(0, STEPS), state_of(whole.loss_fn)
    for stop in (0, 1, 5):
        first = Run(case, leaf, 1, device)
        got = first.steps(0, stop)
        first.save(tmp_path / "checkpoint.pt")
        # Other proxies, other weights: all must come from the file.
        second = Run(case, leaf, 2, device)
        second.load(tmp_path / "checkpoint.pt")
        got += second.steps(stop, STEPS)
        with naming(f"stopped after {stop} steps"):
            assert_equal(torch.stack(got), torch.stack(expected))
            resumed = state_of(second.loss_fn)
            assert resumed.keys() == state.keys()
        for name, value in state.items():
            with naming(f"stopped after {stop} steps, {name}"):
                assert_equal(resumed[name], value)


@pytest.mark.parametrize("case", CASES)
def test_wrappers_can_be_copied_and_pickled(case: str) -> None:
    run = Run(case, leaf_for(case, "cross_batch_memory"), seed=1)
    run.steps(0, 2)
    file = io.BytesIO()
    torch.save(run.loss_fn, file)
    file.seek(0)
    arguments = make_batch(seed=5)
    expected = copy.deepcopy(run.loss_fn)(**arguments)
    assert torch.equal(torch.load(file, weights_only=False)(**arguments), expected)
    assert torch.equal(run.loss_fn(**arguments), expected)


def trained(case: str, steps: int, seed: int = 5) -> LossWrapper:
    wrapper = build(case, leaf_for(case, "cross_batch_memory"), seed=seed)
    for step in range(steps):
        wrapper(**make_batch(seed=step))
    return wrapper


def layout(state: Any) -> Any:
    """What a state looks like, whatever it holds."""
    if isinstance(state, Tensor):
        return state.shape, state.dtype
    if isinstance(state, dict):
        return {name: layout(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [layout(value) for value in state]
    return type(state)


@pytest.mark.parametrize("case", CASES)
def test_a_state_looks_the_same_from_construction_on(case: str) -> None:
    before = layout(trained(case, 0).state_dict())
    after = layout(trained(case, 10).state_dict())
    assert after.keys() == before.keys()
    for name, value in before.items():
        # What is as wide as the first embeddings is no buffer.
        if not (name.endswith("_extra_state") and case == "unsized_knn"):
            assert after[name] == value, name


@pytest.mark.parametrize("case", CASES)
def test_loading_does_not_depend_on_how_full_a_memory_was(case: str) -> None:
    sources = {steps: trained(case, steps) for steps in (0, 7)}
    states = {steps: copy.deepcopy(source.state_dict()) for steps, source in sources.items()}
    targets = {steps: trained(case, steps, seed=6) for steps in (0, 2, 7)}
    batches = [make_batch(seed=step) for step in (10, 11, 12)]
    expected = {steps: [source(**b) for b in batches] for steps, source in sources.items()}
    for load in (nn.Module.load_state_dict, load_in_place):
        for before, after in ((0, 7), (2, 7), (7, 0)):
            target = copy.deepcopy(targets[before])
            load(target, states[after])
            for arguments, value in zip(batches, expected[after], strict=True):
                with naming(f"{load.__name__} after {after} steps into one after {before}"):
                    assert_equal(target(**arguments), value)


def load_in_place(target: nn.Module, saved: dict[str, Any]) -> None:
    """As torch.distributed.checkpoint does: into the tensors of the object that there is."""
    state = target.state_dict()
    for name, value in saved.items():
        if isinstance(value, Tensor):
            state[name].copy_(value)
        else:
            state[name] = value
    target.load_state_dict(state)


@pytest.mark.parametrize("case", CASES)
def test_weights_can_be_averaged_around_it(case: str) -> None:
    wrapper = trained(case, 0)
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), wrapper])
    averages = {"buffers copied": AveragedModel(model, use_buffers=False)}
    ema = get_ema_multi_avg_fn()
    averages["buffers in a moving average"] = AveragedModel(model, None, None, ema, True)
    if not any(buffer.dtype == torch.bool for buffer in model.buffers()):  # torch's mean has none
        averages["buffers in a mean"] = AveragedModel(model, use_buffers=True)
    for step in range(3):
        arguments = make_batch(seed=step)
        wrapper(**{**arguments, "embeddings": model[0](arguments["embeddings"])})
        for name, averaged in averages.items():
            with naming(f"{name}, step {step}"):
                averaged.update_parameters(model)
    copied = averages["buffers copied"].module
    for name, buffer in copied.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name
    for name, averaged in averages.items():
        with naming(name):
            assert averaged.module[1].eval()(**make_batch()).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "leaf"),
    [
        ("running_mean", "cross_batch_memory"),
        ("ground_truth(confidence(gathered))", "soft_triple"),
    ],
)
def test_a_run_that_was_killed_in_the_middle_of_a_step_resumes(
    case: str, leaf: str, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    process = mp.get_context(processes.START).Process(
        target=train_until_killed, args=(case, leaf, str(checkpoint), 3)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    resumed = Run(case, leaf, seed=2)
    resumed.load(checkpoint)
    expected = Run(case, leaf, seed=1).steps(0, STEPS)[3:]
    assert torch.equal(torch.stack(resumed.steps(3, STEPS)), torch.stack(expected))


def test_a_state_of_another_leaf_is_refused() -> None:
    other = build("ground_truth", "multi_similarity")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(build("ground_truth", "cross_batch_memory").state_dict())


def test_every_leaf_is_reached() -> None:
    """The wrapped loss's own parameters are in the wrapper's state_dict."""
    for leaf, make in LEAVES.items():
        loss = make()
        wrapped = {f"loss.{name}" for name in loss.state_dict()}
        assert wrapped <= set(build("ground_truth", leaf).state_dict()), leaf
