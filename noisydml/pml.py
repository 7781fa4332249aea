"""The inside of pytorch-metric-learning (PML): per-sample terms, and the dtype it computes in.

What PML's classes can take is in pml_kinds.py, what they forget to save in pml_state.py; nothing
else knows PML's inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

from noisydml.batch import Batch
from noisydml.functional import proxy_nca
from noisydml.pml_kinds import Loss, name_of, parts, refuse_unweightable, unweightable
from noisydml.pml_state import only_samples_remembered

LossDict = dict[str, dict[str, Any]]

_PML = (BaseMetricLossFunction, CrossBatchMemory, MultipleLosses)


@dataclass(frozen=True)
class Terms:
    """A loss value taken apart: ``value == per_sample.mean() + unweighted``."""

    value: Tensor  # 0-dim, what the loss itself returned
    per_sample: Tensor  # (B,), B times the contribution of each anchor
    unweighted: Tensor  # 0-dim, regularisers: no sample's own

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
    terms = split(loss, batch)
    weight = batch.sample_weight.to(terms.per_sample.dtype)
    weighted = (weight * terms.per_sample).mean() + terms.unweighted
    # Unit weights give the loss's own value, to the bit and without asking the host.
    return torch.where((weight == 1).all(), terms.value, weighted.to(terms.value.dtype))


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
    batch = _converted(loss, batch)
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
    embeddings = batch.embeddings.to(dtype)
    ref_emb = batch.ref_emb
    if ref_emb is batch.embeddings:  # PML knows by identity that a batch is compared with itself
        ref_emb = embeddings
    elif ref_emb is not None:
        ref_emb = ref_emb.to(dtype)
    return replace(batch, embeddings=embeddings, ref_emb=ref_emb)


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
    """Read the terms that PML hands to its reducer, and let the reducer share its value out.

    A reducer r is homogeneous of degree one in its terms t, so by Euler's identity
    r(t) = sum_k t_k dr/dt_k: the k-th summand is term k's share, whatever the reducer. The slopes
    dr/dt_k are constants to the gradient.
    """
    if isinstance(pml_loss.reducer, DoNothingReducer):
        raise TypeError(f"{name_of(pml_loss)} has a DoNothingReducer, so there is no loss to wrap")
    with _observed(pml_loss.reducer) as calls:
        output = _output(loss, batch)
    if len(calls) != 1 or calls[0].output is not output:
        raise unweightable(pml_loss, "its value is not what one call of its reducer returned")
    for name, entry in _with_terms(calls[0].loss_dict).items():
        if entry["reduction_type"] == "already_reduced" and not _is_regularizer(name):
            raise unweightable(
                pml_loss, "it reduces its terms itself, before a sample's part could be told"
            )

    value = _reduced(loss, output, len(batch))
    # Many half-precision terms would not add up in half precision.
    dtype = torch.promote_types(value.dtype, torch.float32)
    per_sample = torch.zeros(len(batch), dtype=dtype, device=value.device)
    unweighted = torch.zeros((), dtype=dtype, device=value.device)
    for share, anchors in _shares(pml_loss.reducer, calls[0]):
        if anchors is None:
            unweighted = unweighted + share.to(dtype).sum()
        else:
            per_sample = per_sample.index_add(0, anchors, share.flatten().to(dtype))
    return Terms(value, per_sample * len(batch), unweighted)


@dataclass(frozen=True)
class _ReducerCall:
    loss_dict: LossDict
    embeddings: Tensor
    labels: Tensor
    output: Any


@contextmanager
def _observed(reducer: nn.Module) -> Iterator[list[_ReducerCall]]:
    """Note the reducer's calls; the reducer itself is left as it was."""
    calls: list[_ReducerCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = dict(zip(("loss_dict", "embeddings", "labels"), args, strict=False))
        calls.append(_ReducerCall(**{**named, **kwargs}, output=output))

    handle = reducer.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _with_terms(loss_dict: LossDict) -> LossDict:
    """The sub-losses that have terms; PML says that there are none by the number 0."""
    return {n: e for n, e in loss_dict.items() if isinstance(e["losses"], Tensor)}


def _shares(reducer: nn.Module, call: _ReducerCall) -> list[tuple[Tensor, Tensor | None]]:
    """Each sub-loss's terms times the reducer's derivative, with their anchors."""
    entries = _with_terms(call.loss_dict)
    if not entries:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {n: _constant(e["losses"]).requires_grad_() for n, e in entries.items()}
        copy = {
            n: {k: _constant(v) for k, v in e.items()} | {"losses": leaves.get(n, e["losses"])}
            for n, e in call.loss_dict.items()
        }
        value = reducer(copy, _constant(call.embeddings), _constant(call.labels))
        slopes = (
            torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
            if value.requires_grad
            else [torch.zeros_like(leaf) for leaf in leaves.values()]
        )
    return [
        (entry["losses"] * slope, _anchors(name, entry))
        for (name, entry), slope in zip(entries.items(), slopes, strict=True)
    ]


def _constant(value: Any) -> Any:
    """A tensor, or the tensors of a tuple, without graph; inference tensors may not enter one."""
    if isinstance(value, (tuple, list)):
        return type(value)(_constant(item) for item in value)
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _is_regularizer(name: str) -> bool:
    """Embedding, weight and MarginLoss's beta regularisation: no label makes them wrong."""
    return name.endswith("_reg_loss")


def _anchors(name: str, entry: dict[str, Any]) -> Tensor | None:
    """(K,) the row of the batch that each term belongs to; None for a regulariser."""
    if _is_regularizer(name):
        return None
    indices = entry["indices"]
    anchors: Tensor = indices if isinstance(indices, Tensor) else indices[0]
    return anchors


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
