"""State: counters that the host knows, and writing into a buffer in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Counters(nn.Module):
    """Integers that are saved like all state, and known to the host at every step.

    What a wrapper decides on the host, such as whether an epoch is over, must not wait for the
    device. Each counter is a buffer, and a number on the host that is read from the buffer only
    after a state was loaded.

    Args:
        values: the counters' names and what they begin with.

    Example:
        >>> from noisydml.memory.state import Counters
        >>> counters = Counters(step=0, cycle=0)
        >>> counters.set(step=counters["step"] + 1)
        >>> counters["step"], counters.state_dict()["step"]
        (1, tensor(1))
    """

    def __init__(self, **values: int) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.full((), value, dtype=torch.int64))
        self._on_host: dict[str, int] | None = dict(values)
        self.register_load_state_dict_post_hook(Counters._forget)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> int:
        """The value of a counter; waits for the device only after a state was loaded."""
        if self._on_host is None:
            names, buffers = zip(*self.named_buffers(), strict=True)
            self._on_host = dict(zip(names, torch.stack(buffers).tolist(), strict=True))
        return self._on_host[name]

    def set(self, **values: int) -> None:
        """Give counters new values."""
        for name, value in values.items():
            self[name]  # all of them are read before one is written
            assert self._on_host is not None
            self._on_host[name] = value
            getattr(self, name).fill_(value)

    def _forget(self, _: Any) -> None:
        self._on_host = None


def overwrite(buffer: Tensor, value: Tensor) -> None:
    """Write a value of the same shape into a buffer of numbers, in place.

    In inference mode, too, the buffer then remains one that training can go on with. Fake tensors
    on a device that torch was built without have no ``copy_``.
    """
    buffer.zero_().add_(value)
