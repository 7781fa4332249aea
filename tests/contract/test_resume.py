"""Promise 4: n steps, or k, save, load into a fresh object, and n - k: the same numbers."""

from __future__ import annotations

import copy
import io
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from contract.cases import (
    CASES,
    LEAVES,
    assert_same_state,
    build,
    leaf_for,
    make_batch,
    state_of,
    with_leaves,
)
from contract.runs import Run, train_until_killed

STEPS = 8


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize(
    ("case", "leaf"), with_leaves("multi_similarity", "soft_triple", "cross_batch_memory")
)
def test_a_resumed_run_is_the_run(case: str, leaf: str, stop: int, tmp_path: Path) -> None:
    whole = Run(case, leaf, seed=1)
    expected = whole.steps(0, STEPS)

    first = Run(case, leaf, seed=1)
    got = first.steps(0, stop)
    first.save(tmp_path / "checkpoint.pt")
    second = Run(case, leaf, seed=2)  # other proxies, other weights: all must come from the file
    second.load(tmp_path / "checkpoint.pt")
    got += second.steps(stop, STEPS)

    assert torch.equal(torch.stack(got), torch.stack(expected))
    assert_same_state(state_of(whole.loss_fn), second.loss_fn)


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
    process = mp.get_context("spawn").Process(
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
        assert wrapped <= set(build("ground_truth", leaf).state_dict())
