"""Settings of the whole suite."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The suite runs in as many processes as there are cores; threads would only get in the way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
