"""The inside of pytorch-metric-learning (PML): per-sample terms, and the dtype it computes in.

What PML's classes can take is in kinds.py, what they hand to their reducers in pml_terms.py,
what they forget to save in pml_state.py; nothing else knows PML's inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import (
    BaseMetricLossFunction,
    CrossBatchMemory,
    MultipleLosses,
    ProxyNCALoss,
    SupConLoss,
)
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer
from torch import Tensor, nn

from noisydml.functional import proxy_nca
from noisydml.pml.batch import Batch
from noisydml.pml.kinds import Loss, name_of, parts, refuse_unweightable, unweightable
from noisydml.pml.pairs import with_selected_pairs
from noisydml.pml.state import only_samples_remembered
from noisydml.pml.terms import Part, is_reduced, observed, shared_out

_PML = (BaseMetricLossFunction, CrossBatchMemory, MultipleLosses)


@dataclass(frozen=True)
class Terms:
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

    def scaled(self, factor: float) -> Terms:
        return Terms(self.value * factor, self.per_sample * factor, self.unweighted * factor)

    def plus(self, other: Terms) -> Terms:
        return Terms(
            self.value + other.value,
            self.per_sample + other.per_sample,
            self.unweighted + other.unweighted,
        )


def call(loss: Loss, batch: Batch) -> Tensor:
    """Value of the user's loss on a batch of at least one row, weighted where the batch is.

    ``(sample_weight * per_sample).mean()`` plus the loss's own regularisers; without weights, or
    with weights of 1, exactly what the loss returns.
    """
    if batch.sample_weight is None:
        return _reduced(loss, _output(loss, batch), len(batch))
    return split(loss, batch).weighted(batch.sample_weight)


def split(loss: Loss, batch: Batch) -> Terms:
    """Take the value of a loss apart into one contribution per sample.

    Raises:
        TypeError: if the loss has no such contributions; the message says why.
    """
    refuse_unweightable(loss)
    if isinstance(loss, MultipleLosses):
        return _split_multiple(loss, batch)
    pml_loss = loss.loss if isinstance(loss, CrossBatchMemory) else loss
    if isinstance(pml_loss, BaseMetricLossFunction):
        return _split_pml(loss, pml_loss, batch)
    return _split_callable(loss, batch)


def split_pairs(loss: Loss, batch: Batch) -> tuple[Tensor, list[Part]]:
    """The value of a loss on pairs, and its positive and negative pairs.

    Raises:
        TypeError: if its terms are no pairs.
    """
    pml_loss = loss.loss if isinstance(loss, CrossBatchMemory) else loss
    if not isinstance(pml_loss, BaseMetricLossFunction):
        raise _pairless(loss)
    value, found = _dissect(loss, pml_loss, batch)
    if any(part.anchors is not None and not part.kind.endswith("_pair") for part in found):
        raise _pairless(pml_loss)
    return value, found


def sample_losses(loss: Loss, batch: Batch) -> Tensor:
    """(B,) loss of every sample, for scoring; Proxy-NCA without any host synchronisation."""
    if _is_plain_proxy_nca(loss):
        proxies, scale = loss.proxies, loss.softmax_scale  # type: ignore[attr-defined]
        return proxy_nca(batch.embeddings, batch.labels, proxies, scale)
    terms = split(loss, batch)
    return terms.per_sample + terms.unweighted


def supervised_contrastive() -> nn.Module:
    """TITAN's similarity loss (Eq. 7)."""
    loss: nn.Module = SupConLoss(temperature=0.5)
    return loss


def _output(loss: Loss, batch: Batch) -> Any:
    batch = with_selected_pairs(loss, _converted(loss, batch))
    memories = [part for part in parts(loss) if isinstance(part, CrossBatchMemory)]
    with only_samples_remembered(memories, batch):
        return loss(batch.embeddings, batch.labels, **batch.optional_arguments())


def _converted(loss: Loss, batch: Batch) -> Batch:
    """The batch in the dtype of a PML loss's own proxies and memories, where it has any.

    PML does the reverse: it casts its proxies and memories to the dtype of the embeddings, in
    place, so that after one bfloat16 batch float32 proxies are bfloat16 for ever.
    """
    if not isinstance(loss, _PML):
        return batch
    memories = [p.embedding_memory for p in parts(loss) if isinstance(p, CrossBatchMemory)]
    state = [t.dtype for t in (*loss.parameters(), *memories)]
    dtype = reduce(torch.promote_types, state) if state else batch.embeddings.dtype
    # torch.cdist, on which LpDistance stands, has no bfloat16.
    if not state and dtype == torch.bfloat16 and _has_lp_distance(loss):
        dtype = torch.float32
    return batch.to(dtype)


def _has_lp_distance(loss: nn.Module) -> bool:
    return any(isinstance(module, LpDistance) for module in loss.modules())


def _reduced(loss: Loss, output: Any, batch_size: int) -> Tensor:
    if isinstance(output, Tensor):
        if output.ndim == 0:
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


def _split_callable(loss: Loss, batch: Batch) -> Terms:
    output = _output(loss, batch)
    value = _reduced(loss, output, len(batch))
    if output.shape != (len(batch),):
        raise unweightable(
            loss,
            "it returns one number for the whole batch. Make it return one loss per sample, "
            "for instance with reduction='none'",
        )
    return Terms(value, output, torch.zeros_like(value))


def _split_multiple(loss: MultipleLosses, batch: Batch) -> Terms:
    if batch.ref_emb is not None:
        raise TypeError("MultipleLosses takes no ref_emb")
    batch = _converted(loss, batch)
    found = []
    for name in loss.losses.keys() if loss.is_dict else range(len(loss.losses)):
        indices = loss.get_indices_tuple(name, batch.embeddings, batch.labels, batch.indices_tuple)
        terms = split(loss.losses[name], replace(batch, indices_tuple=indices))
        found.append(terms.scaled(loss.weights[name]))
    return reduce(Terms.plus, found)


def _split_pml(loss: Loss, pml_loss: BaseMetricLossFunction, batch: Batch) -> Terms:
    value, found = _dissect(loss, pml_loss, batch)
    # Many half-precision terms would not add up in half precision.
    dtype = torch.promote_types(value.dtype, torch.float32)
    per_sample = torch.zeros(len(batch), dtype=dtype, device=value.device)
    unweighted = torch.zeros((), dtype=dtype, device=value.device)
    for part in found:
        if part.anchors is None:
            unweighted = unweighted + part.shares.to(dtype).sum()
        else:
            per_sample = per_sample.index_add(0, part.anchors, part.shares.flatten().to(dtype))
    return Terms(value, per_sample * len(batch), unweighted)


def _dissect(
    loss: Loss, pml_loss: BaseMetricLossFunction, batch: Batch
) -> tuple[Tensor, list[Part]]:
    """The loss's own value, and the terms behind it."""
    if isinstance(pml_loss.reducer, DoNothingReducer):
        raise TypeError(f"{name_of(pml_loss)} has a DoNothingReducer, so there is no loss to wrap")
    with observed(pml_loss.reducer) as calls:
        output = _output(loss, batch)
    if len(calls) != 1 or calls[0].output is not output:
        raise unweightable(pml_loss, "its value is not what one call of its reducer returned")
    if is_reduced(calls[0]):
        raise unweightable(
            pml_loss, "it reduces its terms itself, before a sample's part could be told"
        )
    return _reduced(loss, output, len(batch)), shared_out(pml_loss.reducer, calls[0])


def _is_plain_proxy_nca(loss: Any) -> bool:
    """Whether the loss is PML's ProxyNCALoss with the settings that functional.proxy_nca has."""
    if type(loss) is not ProxyNCALoss or type(loss.reducer) is not MeanReducer:
        return False
    distance = loss.distance
    return (
        type(distance) is LpDistance
        and distance.normalize_embeddings
        and (distance.p, distance.power) == (2, 2)
        and not loss.all_regularization_loss_names()
    )


def _pairless(loss: Loss) -> TypeError:
    return TypeError(
        f"{name_of(loss)} has no loss for every pair, as ContrastiveLoss has; use level='sample'"
    )
