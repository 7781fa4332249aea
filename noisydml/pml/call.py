"""Calls of the losses of pytorch-metric-learning (PML), whole and sample by sample."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction, CrossBatchMemory, MultipleLosses
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from noisydml.functional import proxy_nca
from noisydml.functional.products import finite
from noisydml.pml.batch import Batch
from noisydml.pml.kinds import (
    Loss,
    is_regularizer,
    name_of,
    queue_size,
    refuse_unweightable,
    unweightable,
)
from noisydml.pml.state import only_samples_remembered
from noisydml.pml.terms import Part, dissected, with_selected_pairs

_OPTIONAL = ("indices_tuple", "ref_emb", "ref_labels")


class Terms(NamedTuple):
    """A loss value taken apart: ``value == per_sample.mean() + unweighted``."""

    value: Tensor  # 0-dim, what the loss itself returned
    per_sample: Tensor  # (B,), B times the contribution of each anchor
    unweighted: Tensor  # 0-dim, regularisers: no sample's own

    def weighted(self, weight: Tensor) -> Tensor:
        """``(weight * per_sample).mean() + unweighted`` for ``weight`` (B,)."""
        weight = weight.to(self.per_sample.dtype)
        weighted = (weight * self.per_sample).mean() + self.unweighted
        # Unit weights give the loss's own value, to the bit and without asking the host.
        return torch.where((weight == 1).all(), self.value, weighted.to(self.value.dtype))


def call(loss: Loss, batch: Batch) -> Tensor:
    """Value of the user's loss on a batch of at least one row, weighted where the batch is."""
    if batch.sample_weight is None:
        return _reduced(loss, _output(loss, batch), batch)
    return split(loss, batch).weighted(batch.sample_weight)


def split(loss: Loss, batch: Batch) -> Terms:
    """The value of a loss, taken apart by samples; TypeError, which says why, if it cannot be."""
    refuse_unweightable(loss)
    if isinstance(loss, MultipleLosses):
        return _split_multiple(loss, batch)
    if isinstance(_out_of_memory(loss), BaseMetricLossFunction):
        return _split_pml(loss, batch)
    output = _output(loss, batch)
    value = _reduced(loss, output, batch)
    if output.shape != (len(batch),):
        raise unweightable(
            loss,
            "it returns one number for the whole batch. Make it return one loss per sample, "
            "for instance with reduction='none'",
        )
    return Terms(value, output, torch.zeros_like(value))


def unregularized(loss: Loss, batch: Batch) -> Tensor:
    """:func:`call` of a PML loss, without the regularisers that another call has added already."""
    if not any(is_regularizer(name) for name in loss.sub_loss_names()):  # type: ignore[attr-defined]
        return call(loss, batch)
    weight, terms = batch.sample_weight, split(loss, batch)
    weight = torch.ones_like(terms.per_sample) if weight is None else weight
    value = (terms.value - terms.unweighted).to(terms.value.dtype)
    return terms._replace(value=value, unweighted=torch.zeros_like(value)).weighted(weight)


def split_pairs(loss: Loss, batch: Batch) -> tuple[Tensor, list[Part]]:
    """The value of a loss, and its positive and negative pairs; TypeError if it has others."""
    pml_loss = _out_of_memory(loss)
    if isinstance(pml_loss, BaseMetricLossFunction):
        value, found = _dissected(loss, batch)
        if all(part.anchors is None or part.kind.endswith("_pair") for part in found):
            return value, found
    raise TypeError(
        f"{name_of(pml_loss)} has no loss for every pair, as ContrastiveLoss has; use "
        "level='sample'"
    )


def sample_losses(loss: Loss, batch: Batch) -> Tensor:
    """(B,) loss of every sample, for scoring; Proxy-NCA without any host synchronisation."""
    if _is_plain_proxy_nca(loss):
        proxies, scale = loss.proxies, loss.softmax_scale  # type: ignore[attr-defined]
        return proxy_nca(batch.embeddings, batch.labels, proxies, scale)
    terms = split(loss, batch)
    return terms.per_sample + terms.unweighted


def supervised_contrastive() -> nn.Module:
    """TITAN's similarity loss (Eq. 7)."""
    loss: nn.Module = losses.SupConLoss(temperature=0.5)
    return loss


def _output(loss: Loss, batch: Batch) -> Any:
    queue = queue_size(loss)
    if queue is not None and len(batch) > queue:  # PML says so by a bare AssertionError
        raise ValueError(f"CrossBatchMemory must be as large as a batch, {len(batch)}, got {queue}")
    batch = _converted(loss, batch)
    if batch.negative_only is not None:
        batch = with_selected_pairs(loss, batch)
    if batch.of_itself:
        batch = replace(batch, ref_emb=None)
    elif batch.ref_emb is not None and batch.ref_labels is None:  # not all losses fill them in
        batch = replace(batch, ref_labels=batch.labels)
    given = {name: v for name in _OPTIONAL if (v := getattr(batch, name)) is not None}
    with nullcontext() if batch.synthetic is None else only_samples_remembered(loss, batch):
        return loss(batch.embeddings, batch.labels, **given)


def _converted(loss: Loss, batch: Batch) -> Batch:
    """The batch in the dtype of a PML loss's own proxies and memories, where it has any."""
    if not isinstance(loss, (BaseMetricLossFunction, CrossBatchMemory, MultipleLosses)):
        return batch
    own = dtype = batch.embeddings.dtype
    state = [t.dtype for t in (*loss.parameters(), *loss.buffers()) if t.is_floating_point()]
    if state:  # PML would cast it in place: after one bfloat16 batch it is bfloat16 for ever
        dtype = reduce(torch.promote_types, state)
    if dtype == torch.bfloat16 and any(isinstance(each, LpDistance) for each in loss.modules()):
        if state:  # torch.cdist, on which LpDistance stands, has no bfloat16
            raise TypeError(
                f"{name_of(loss)} with LpDistance must have parameters in float32, got bfloat16"
            )
        dtype = torch.float32
    return batch if dtype == own else batch.to(dtype)


def _reduced(loss: Loss, output: Any, batch: Batch) -> Tensor:
    batch_size = len(batch)
    if isinstance(output, Tensor):
        if output.ndim == 0:
            if isinstance(loss, losses.NCALoss):  # the mean of none, where nobody has a positive
                none = output.isnan() & finite(batch.embeddings.detach())
                return torch.where(none, torch.zeros_like(output), output)
            return output
        if output.shape == (batch_size,):
            return output.mean()
        if output.numel() == 1:  # PML returns (1,) for some losses that are already reduced
            return output.reshape(())
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise TypeError(
        f"{name_of(loss)} must return one loss per sample, shape ({batch_size},), or a 0-dim loss, "
        f"got {got}"
    )


def _split_multiple(loss: MultipleLosses, batch: Batch) -> Terms:
    if batch.ref_emb is not None:
        raise TypeError("MultipleLosses takes no ref_emb")
    batch = _converted(loss, batch)
    found = []
    for name in loss.losses.keys() if loss.is_dict else range(len(loss.losses)):
        indices = loss.get_indices_tuple(name, batch.embeddings, batch.labels, batch.indices_tuple)
        terms = split(loss.losses[name], replace(batch, indices_tuple=indices))
        found.append([part * loss.weights[name] for part in terms])
    return Terms(*(reduce(torch.add, summands) for summands in zip(*found, strict=True)))


def _split_pml(loss: Loss, batch: Batch) -> Terms:
    value, found = _dissected(loss, batch)
    # Many half-precision terms would not add up in half precision.
    dtype = torch.promote_types(value.dtype, torch.float32)
    per_sample = torch.zeros(len(batch), dtype=dtype, device=value.device)
    unweighted = torch.zeros((), dtype=dtype, device=value.device)
    for part in found:
        if part.anchors is None:
            unweighted = unweighted + part.shares.to(dtype).sum()
        else:
            per_sample = per_sample.index_add(0, part.anchors, part.shares.flatten().to(dtype))
    if value.requires_grad and not per_sample.requires_grad:  # no terms: a zero with a graph
        per_sample = per_sample + batch.embeddings.narrow(0, 0, 0).sum().to(dtype)
    return Terms(value, per_sample * len(batch), unweighted)


def _dissected(loss: Loss, batch: Batch) -> tuple[Tensor, list[Part]]:
    """The loss's own value, and the terms behind it."""
    output, found = dissected(_out_of_memory(loss), lambda: _output(loss, batch))
    return _reduced(loss, output, batch), found


def _out_of_memory(loss: Loss) -> Loss:
    """The loss that compares: in a ``CrossBatchMemory`` the one inside."""
    return loss.loss if isinstance(loss, CrossBatchMemory) else loss


def _is_plain_proxy_nca(loss: Any) -> bool:
    """Whether the loss is PML's ProxyNCALoss with the settings that functional.proxy_nca has."""
    return (
        type(loss) is losses.ProxyNCALoss
        and type(loss.reducer) is MeanReducer
        and type(loss.distance) is LpDistance
        and loss.distance.normalize_embeddings
        and (loss.distance.p, loss.distance.power) == (2, 2)
    )
