"""The state that pytorch-metric-learning (PML) forgets to save, or had better not take up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, DynamicSoftMarginLoss
from torch import Tensor, nn

from noisydml.pml.batch import Batch

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


@contextmanager
def only_samples_remembered(memories: list[CrossBatchMemory], batch: Batch) -> Iterator[None]:
    """``CrossBatchMemory`` enqueues all that it is called with; synthetic rows leave it again.

    In the call itself the batch is compared with them, as it is with its other rows.
    """
    if batch.synthetic is None or not memories:
        yield
        return
    before = [_Tail.of(memory, len(batch)) for memory in memories]
    yield
    rows = batch.synthetic.logical_not().nonzero().squeeze(1)
    embeddings, labels = batch.embeddings.detach()[rows], batch.labels[rows]
    for memory, tail in zip(memories, before, strict=True):
        tail.restore(memory)
        if len(rows):
            memory.add_to_memory(embeddings, labels, len(rows))


class _Tail(NamedTuple):
    """What a memory holds where its next rows will be written."""

    slots: Tensor
    embeddings: Tensor
    labels: Tensor
    queue_idx: int
    has_been_filled: bool

    @classmethod
    def of(cls, memory: CrossBatchMemory, size: int) -> _Tail:
        device = memory.embedding_memory.device
        slots = (torch.arange(size, device=device) + memory.queue_idx) % memory.memory_size
        rows = (memory.embedding_memory[slots], memory.label_memory[slots])
        return cls(slots, *rows, memory.queue_idx, memory.has_been_filled)

    def restore(self, memory: CrossBatchMemory) -> None:
        slots = self.slots.to(memory.embedding_memory.device)
        memory.embedding_memory[slots] = self.embeddings.to(memory.embedding_memory)
        memory.label_memory[slots] = self.labels.to(memory.label_memory)
        memory.queue_idx, memory.has_been_filled = self.queue_idx, self.has_been_filled
