"""Losses that a wrapper computes beside that of the batch: against a memory, and to judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noisydml import distributed, pml
from noisydml.functional.checks import require_loss
from noisydml.memory.features import FeatureMemory
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import LossWrapper, zero_with_graph
from noisydml.wrappers.checks import require_finite_losses


def loss_against_memory(
    loss: Callable[..., Any], batch: Batch, memory: FeatureMemory
) -> Tensor | None:
    """The loss of a batch compared with a memory (PRISM, Eq. 8); None if either has no row.

    The regularisers of the loss are those of the call without a memory.
    One host synchronisation on CUDA. Copies are compared with: what autograd keeps for the
    backward pass must not be overwritten by ``commit``.
    """
    remembered = memory.first_filled(batch.embeddings.dtype) if len(batch) else None
    if remembered is None:
        return None
    features, labels = remembered
    batch = replace(batch, indices_tuple=None, ref_emb=features, ref_labels=labels)
    return pml.unregularized(loss, batch)


def require_judge(name: str, judge: Callable[..., Any]) -> None:
    """Raise TypeError unless it is a loss that can judge: of every sample, and leaving no trace."""
    require_loss(name, judge)
    if isinstance(judge, LossWrapper):
        raise TypeError(
            f"{name} must be a loss that gives one value per sample, such as ProxyNCALoss, "
            f"got {type(judge).__name__}"
        )
    pml.refuse_unweightable(judge)
    pml.refuse_memory(name, judge)


def losses_by(
    name: str, judge: Callable[..., Any], batch: Batch, own: list[nn.Parameter]
) -> tuple[Batch, Tensor]:
    """The rows of all ranks, and their (N,) losses by another loss, which train its ``own``.

    Without a row on any rank there is no loss; the empty tensor has a graph all the same.
    ValueError if one is not finite and values are checked.
    """
    everyone = distributed.gather_batch(replace(batch.judged(), sample_ids=None))
    with torch.set_grad_enabled(bool(own) and torch.is_grad_enabled()):
        if len(everyone) == 0:
            return everyone, zero_with_graph(everyone.embeddings, own).expand(0)
        losses = pml.sample_losses(judge, everyone)
    require_finite_losses(batch, losses, name)
    return everyone, losses


def parameters_besides(judge: Any, loss: Any) -> list[nn.Parameter]:
    """The parameters of a judging loss that the wrapped loss does not train already."""
    if not isinstance(judge, nn.Module):
        return []
    trained = {id(p) for p in loss.parameters()} if isinstance(loss, nn.Module) else set()
    return [p for p in judge.parameters() if id(p) not in trained]
