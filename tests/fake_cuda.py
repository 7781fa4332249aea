"""Tensors on a CUDA device that need no GPU: they have a shape and a device, but no data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, an ``.item()``, a boolean mask or a tensor left on the CPU raises.

    Without graphs: under autograd such tensors abort the process where torch was built without
    CUDA. The device has a number, as naming "cuda" alone asks the driver for one.
    """
    step = mock.patch("noisydml.wrappers.base.is_training_step", return_value=True)
    with FakeTensorMode(), torch.no_grad(), mock.patch.object(Tensor, "copy_", _copy), step:
        yield torch.device("cuda", 0)


def _copy(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``copy_``, which asks for a driver, by what does not."""
    return self.zero_().add_(source.to(self.dtype))
