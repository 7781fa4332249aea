"""Settings of the whole suite."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start, too; as for themselves below

import pytest
import torch
from held_out import few_held_out


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The suite runs in as many processes as there are cores; threads would only get in the way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    # For GPUs that there are not torch would note from where it was called, three times.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture(scope="module", name="few_held_out")
def _few_held_out() -> Iterator[None]:
    """In all tests of a file."""
    with few_held_out():
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many bad inputs were tried, all of which were refused by name and left no trace."""
    tried: Counter[str] = Counter()
    for report in terminalreporter.stats.get("", []):  # setups and teardowns
        for name, number in report.user_properties if report.when == "teardown" else ():
            tried[name] += number
    for name, number in sorted(tried.items()):
        terminalreporter.write_line(f"{name}: {number:,}")
