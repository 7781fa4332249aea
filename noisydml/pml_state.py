"""The state that pytorch-metric-learning (PML) forgets to save."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.losses import CrossBatchMemory, DynamicSoftMarginLoss
from torch import Tensor, nn

_UNSAVED: dict[type, tuple[str, ...]] = {
    CrossBatchMemory: ("queue_idx", "has_been_filled"),
    DynamicSoftMarginLoss: ("hist_",),
}


class UnsavedState(nn.Module):
    """Carries into ``state_dict`` what PML's losses keep outside of it.

    ``CrossBatchMemory`` saves its queue but not where it ends, and ``DynamicSoftMarginLoss`` not
    its histogram: resumed runs would differ.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that it is not registered as a submodule a second time.
        self._owners = tuple(m for m in loss.modules() if isinstance(m, tuple(_UNSAVED)))

    def __bool__(self) -> bool:
        return bool(self._owners)

    def get_extra_state(self) -> list[dict[str, Any]]:
        return [
            {name: getattr(owner, name) for name in _attributes(owner)} for owner in self._owners
        ]

    def set_extra_state(self, state: list[dict[str, Any]]) -> None:
        if len(state) != len(self._owners):
            raise ValueError(
                f"the saved state belongs to {len(state)} losses, this one has {len(self._owners)}"
            )
        for owner, values in zip(self._owners, state, strict=True):
            for name, value in values.items():
                setattr(owner, name, value.clone() if isinstance(value, Tensor) else value)


def _attributes(owner: nn.Module) -> tuple[str, ...]:
    return next(names for kind, names in _UNSAVED.items() if isinstance(owner, kind))
