"""State: counters that the host knows, and writing into a buffer in place."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisydml.functional.checks import require_tensor, require_values

_Self = TypeVar("_Self", bound="KeepsPrecision")


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


def refuse_state(module: nn.Module, state: dict[str, Any], prefix: str, strict: bool) -> None:
    """Raise unless all of a state can be loaded: torch finds out when it has loaded a part.

    Modules that keep state may have two methods: ``any_shape()`` names what may have another shape,
    and ``refuse_values(state, prefix)`` is called once all names and shapes are known to be right.

    Raises:
        RuntimeError: for missing and unexpected names, as torch does.
        ValueError: for tensors of another shape, and values that cannot be.
    """
    own = module.state_dict(prefix=prefix)
    given = {name: value for name, value in state.items() if name.startswith(prefix)}
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    if strict and (missing or unexpected):
        named = (("Missing", sorted(missing)), ("Unexpected", sorted(unexpected)))
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(module).__name__}, nothing was loaded:"
            + "".join(f"\n\t{kind} key(s) in state_dict: {names}" for kind, names in named if names)
        )
    parts = [(f"{n}." if n else "", m) for n, m in module.named_modules(prefix=prefix[:-1])]
    free = {
        f"{at}{n}" for at, part in parts if hasattr(part, "any_shape") for n in part.any_shape()
    }
    for name in own.keys() & given.keys():
        wanted, got = own[name], given[name]
        if isinstance(wanted, Tensor):
            require_tensor(name, got)
            require_values(**{name: got})
            if got.shape != wanted.shape and name not in free:
                raise ValueError(
                    f"{name} must have the shape {tuple(wanted.shape)}, got {tuple(got.shape)}"
                )
    for at, part in parts:
        if hasattr(part, "refuse_values"):
            part.refuse_values(given, at)


class AllOrNothing(nn.Module):
    """A module that refuses a state which does not fit before any of it is loaded."""

    def prepare_for(self, state: dict[str, Any], prefix: str) -> None:
        """Called with a state that fits before it is loaded: makes room for it, or changes it."""

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing: list[str],
        *lists: Any,
    ) -> None:
        if not any(name.startswith(prefix) for name in state_dict):
            own: dict[str, Any] = {}
            self._save_to_state_dict(own, prefix, True)  # without what is inside it
            missing.extend(own)
            return  # of a checkpoint from before it: torch refuses that, unless strict=False
        refuse_state(self, state_dict, prefix, strict)
        self.prepare_for(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *lists)


class KeepsPrecision(AllOrNothing):
    """A module whose buffers are statistics: ``.half()`` and the like move them, no more."""

    def _apply(self: _Self, fn: Any, recurse: bool = True) -> _Self:
        before = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


def require_state_in_range(
    name: str, value: Tensor | None, least: float = -math.inf, stop: float = math.inf
) -> None:
    """Raise ValueError unless all values are finite and in ``[least, stop)``; None is not there."""
    if value is not None and not (value.isfinite() & (value >= least) & (value < stop)).all():
        raise ValueError(f"{name} must be finite and in [{least}, {stop}), got other values")


def overwrite(buffer: Tensor, value: Tensor) -> None:
    """Write a value of the same shape into a buffer of numbers, in place.

    In inference mode, too, the buffer then remains one that training can go on with. Fake tensors
    on a device that torch was built without have no ``copy_``.
    """
    torch.add(value, 0, out=buffer)
