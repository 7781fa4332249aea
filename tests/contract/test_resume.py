"""Promise 4: n steps, or k, save, load into a fresh object, and n - k: the same numbers."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from contract.cases import CASES, LEAVES, WIDTH, assert_same_state, build, make_batch, state_of
from torch import nn

from noisydml import LossWrapper

STEPS = 8


class Run:
    """A model, a wrapper and an optimiser that train on the batches 0, 1, 2, ..."""

    def __init__(self, case: str, leaf: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(WIDTH, WIDTH)
        self.loss_fn: LossWrapper = build(case, leaf, seed=seed)
        groups = [{"params": self.model.parameters()}, *self.loss_fn.parameter_groups(1e-2, 1e-1)]
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)

    def steps(self, start: int, stop: int) -> list[torch.Tensor]:
        values = []
        for step in range(start, stop):
            arguments = make_batch(seed=step)
            arguments["embeddings"] = self.model(arguments["embeddings"].detach())
            value = self.loss_fn(**arguments)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            values.append(value.detach())
        return values

    def save(self, path: Path) -> None:
        parts = (self.model, self.loss_fn, self.optimizer)
        torch.save([part.state_dict() for part in parts], path)

    def load(self, path: Path) -> None:
        parts = (self.model, self.loss_fn, self.optimizer)
        for part, state in zip(parts, torch.load(path, weights_only=True), strict=True):
            part.load_state_dict(state)


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("leaf", ["multi_similarity", "soft_triple", "cross_batch_memory"])
@pytest.mark.parametrize("case", CASES)
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
    run = Run(case, "cross_batch_memory", seed=1)
    run.steps(0, 2)
    file = io.BytesIO()
    torch.save(run.loss_fn, file)
    file.seek(0)
    arguments = make_batch(seed=5)
    expected = copy.deepcopy(run.loss_fn)(**arguments)
    assert torch.equal(torch.load(file, weights_only=False)(**arguments), expected)
    assert torch.equal(run.loss_fn(**arguments), expected)


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
