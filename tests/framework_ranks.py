"""What each rank runs in test_frameworks.py; importable by the spawned processes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "frameworks"


def example(name: str) -> Any:
    """A script of the folder as a module; they import one another by name."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def train_ddp(rank: int, world: int, epochs: int) -> dict[str, Any]:
    ddp = example("ddp")
    loss_fn = ddp.wrapped()
    return {"model": ddp.train(loss_fn, epochs).state_dict(), "loss": loss_fn.state_dict()}
