"""The examples for other people's training loops do what they print."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "frameworks"
EPOCHS = 3  # the first only collects; of the second and third half of the labels are dropped


def output_of(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def map_at_r(output: str, name: str) -> float:
    (line,) = (line for line in output.splitlines() if line.startswith(name) and "MAP@R" in line)
    return float(line.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["plain_pytorch.py", "pml_trainer.py"])
def test_the_one_line_helps(script: str) -> None:
    output = output_of(script, "--epochs", "4")
    assert map_at_r(output, "robust:") > map_at_r(output, "plain loss:") + 10
    assert "JudgeFilter: kept" in output


def example(name: str) -> Any:
    """A script of the folder as a module; they import one another by name."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def train_ddp(rank: int, world: int, epochs: int) -> dict[str, Any]:
    ddp = example("ddp")
    loss_fn = ddp.wrapped()
    return {"model": ddp.train(loss_fn, epochs).state_dict(), "loss": loss_fn.state_dict()}


@pytest.mark.slow
def test_ddp_trains_the_model_of_one_process(tmp_path: Path) -> None:
    one: dict[str, Any] = train_ddp(0, 1, EPOCHS)
    for result in run_ranks(train_ddp, 2, tmp_path, EPOCHS):
        assert torch.equal(result["loss"]["reference.labels"], one["loss"]["reference.labels"])
        for part in ("model", "loss"):
            for name, value in one[part].items():
                torch.testing.assert_close(
                    result[part][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m
                )


@pytest.mark.slow
def test_lightning_resumes_exactly(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    arguments = ["--epochs", "4", "--stop-after", "2", "--output", str(tmp_path)]
    output = output_of("lightning_callback.py", *arguments)
    assert "resumed after epoch 2: the same numbers" in output
    assert map_at_r(output, "robust:") > map_at_r(output, "plain loss:") + 10
    (logged,) = (tmp_path / "wrapped").rglob("metrics.csv")
    columns = logged.read_text().splitlines()[0].split(",")
    assert {"decision/kept", "decision/threshold", "audit/suspects"} <= set(columns)
