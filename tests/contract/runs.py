"""A small training run that can be saved and loaded; importable by spawned processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from contract.cases import WIDTH, build, make_batch
from torch import nn

from noisydml import LossWrapper


class Run:
    """A model, a wrapper and an optimiser that train on the batches 0, 1, 2, ..."""

    def __init__(self, case: str, leaf: str, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.device = device
        self.model = nn.Linear(WIDTH, WIDTH).to(device)
        self.loss_fn: LossWrapper = build(case, leaf, seed=seed).to(device)
        groups = [{"params": self.model.parameters()}, *self.loss_fn.parameter_groups(1e-2, 1e-1)]
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)

    def steps(self, start: int, stop: int) -> list[torch.Tensor]:
        values = []
        for step in range(start, stop):
            arguments = make_batch(seed=step, device=self.device)
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
        states = torch.load(path, weights_only=True, map_location=self.device)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)


def train_until_killed(case: str, leaf: str, path: str, kill_after: int) -> None:
    """Save after every step; after some steps begin another one and die in it."""
    torch.set_num_threads(1)
    run = Run(case, leaf, seed=1)
    for step in range(kill_after):
        run.steps(step, step + 1)
        run.save(Path(path))
    arguments = make_batch(seed=kill_after)
    arguments["embeddings"] = run.model(arguments["embeddings"].detach())
    run.loss_fn(**arguments)
    os.kill(os.getpid(), signal.SIGKILL)
