"""Settings of the whole suite."""

import os
from collections import Counter
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start, too; as for themselves below

import pytest
import torch

from noisydml.memory import judge


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The suite runs in as many processes as there are cores; threads would only get in the way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge holds out a fifth of the labels or two, where it would all five of so few.

    It is done three times as soon, for tests that compare what it says with what it says.
    """
    monkeypatch.setattr(judge, "ASKED", 24)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many bad inputs were tried, all of which were refused by name and left no trace."""
    tried: Counter[str] = Counter()
    for report in terminalreporter.stats.get("", []):  # setups and teardowns
        for name, number in report.user_properties if report.when == "teardown" else ():
            tried[name] += number
    for name, number in sorted(tried.items()):
        terminalreporter.write_line(f"{name}: {number:,}")
