"""The state that pytorch-metric-learning (PML) forgets to save, or had better not take up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, DynamicSoftMarginLoss
from torch import Tensor, nn

from noisydml.pml.batch import Batch
from noisydml.pml.kinds import Loss, parts

_OWNERS = (CrossBatchMemory, DynamicSoftMarginLoss)
# Where the queue ends, and whether it is full; the histogram.
_UNSAVED = ("queue_idx", "has_been_filled", "hist_")


class UnsavedState(nn.Module):
    """Carries into ``state_dict`` what PML's losses keep outside: else resumed runs differ."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that it is not registered as a submodule a second time.
        self._owners = tuple(m for m in loss.modules() if isinstance(m, _OWNERS))

    def __bool__(self) -> bool:
        return bool(self._owners)

    def get_extra_state(self) -> list[dict[str, Any]]:
        return [
            {name: getattr(owner, name) for name in _UNSAVED if hasattr(owner, name)}
            for owner in self._owners
        ]

    def refuse_values(self, state: dict[str, Any], prefix: str) -> None:
        """Raise ValueError for anything but what :meth:`get_extra_state` gives."""
        name = f"{prefix}_extra_state"
        if name not in state:
            return
        given, own = state[name], self.get_extra_state()
        if not isinstance(given, list) or len(given) != len(own):
            raise ValueError(f"{name} must be a list of the states of {len(own)} losses")
        for owner, wanted, got in zip(self._owners, own, given, strict=True):
            if not isinstance(got, dict) or got.keys() - set(_UNSAVED):
                raise ValueError(f"{name} must have no other names than {_UNSAVED}")
            if isinstance(owner, CrossBatchMemory):
                end, full = got.get("queue_idx"), got.get("has_been_filled")
                known = type(end) is int and 0 <= end < owner.memory_size and type(full) is bool
                if got.keys() != wanted.keys() or not known:
                    raise ValueError(
                        f"{name} must have a queue_idx in [0, {owner.memory_size}) and a bool "
                        f"has_been_filled, got {got}"
                    )
            elif not all(isinstance(each, Tensor) for each in got.values()):
                raise ValueError(f"{name} must have a tensor for hist_")

    def set_extra_state(self, state: list[dict[str, Any]]) -> None:
        for owner, values in zip(self._owners, state, strict=True):
            for name, value in values.items():
                setattr(owner, name, value.clone() if isinstance(value, Tensor) else value)


@contextmanager
def only_samples_remembered(loss: Loss, batch: Batch) -> Iterator[None]:
    """``CrossBatchMemory`` enqueues all that it is called with; synthetic rows leave it again.

    In the call itself the batch is compared with them, as it is with its other rows.
    """
    memories = [part for part in parts(loss) if isinstance(part, CrossBatchMemory)]
    before = []  # of each memory, where its next rows will be written, and what is there now
    for memory in memories:
        queue, labels = memory.embedding_memory, memory.label_memory
        slots = torch.arange(len(batch), device=queue.device) + memory.queue_idx
        slots = slots % memory.memory_size
        end = memory.queue_idx, memory.has_been_filled
        before.append((slots, queue[slots], labels[slots], end))
    yield
    rows: Any = batch.real.nonzero().squeeze(1) if memories else ()
    for memory, (slots, old_embeddings, old_labels, end) in zip(memories, before, strict=True):
        queue, labels = memory.embedding_memory, memory.label_memory  # the call may move them
        slots = slots.to(queue.device)
        queue[slots], labels[slots] = old_embeddings.to(queue), old_labels.to(labels)
        memory.queue_idx, memory.has_been_filled = end
        if len(rows):
            memory.add_to_memory(batch.embeddings.detach()[rows], batch.labels[rows], len(rows))
