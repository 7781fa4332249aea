"""Devices without data, for the tests that no function asks the host for a value."""

from collections.abc import Iterator

import pytest
import torch
from fake_cuda import fake_cuda


@pytest.fixture(params=["meta", "pretended cuda"])
def dataless(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device whose tensors have no data.

    There ``.item()``, a branch on a value, a boolean mask, and a second tensor on another device
    raise. Pretended CUDA tensors take the paths meant for CUDA; gradients are for "meta" only.
    """
    if request.param == "meta":
        yield torch.device("meta")
    else:
        with fake_cuda() as device:
            yield device
