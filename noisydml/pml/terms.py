"""The terms of a loss of pytorch-metric-learning (PML): which it has, and what each adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import DoNothingReducer, MultipleReducers, PerAnchorReducer
from torch import Tensor, nn

from noisydml.functional import selected_interactions
from noisydml.pml.batch import Batch, IndicesTuple, index_groups
from noisydml.pml.kinds import TRIPLETS, Loss, is_regularizer, name_of, unweightable


@dataclass(frozen=True)
class Part:
    """The terms of one sub-loss, K of them; the shares of all parts add up to the loss."""

    kind: str  # PML's reduction type: "element", "pos_pair", "neg_pair", "triplet", ...
    losses: Tensor  # (K,)
    shares: Tensor  # (K,) what each contributes to the value of the loss
    anchors: Tensor | None  # (K,) the row of the batch each belongs to; None for a regulariser


def with_selected_pairs(loss: Loss, batch: Batch) -> Batch:
    """The batch with an ``indices_tuple`` without the positive pairs of its negatives only.

    One host synchronisation on CUDA where nobody is, else those of PML's own search for pairs.
    """
    if batch.negative_only is None or not batch.negative_only.any():
        return replace(batch, negative_only=None)
    trusted = batch.negative_only.logical_not()
    indices: IndicesTuple
    if batch.indices_tuple is not None:
        first, *others = index_groups(batch.indices_tuple)  # with the anchors and the positives
        alive = trusted[first[0]]
        if batch.ref_labels is None:  # the positives are of the batch, too
            alive = alive & trusted[first[1]]
        rows = alive.nonzero().squeeze(1)
        indices = (*(column[rows] for column in first), *(c for group in others for c in group))
    else:
        positive, negative = selected_interactions(batch.labels, trusted, batch.ref_labels)
        anchors, positives = positive.nonzero(as_tuple=True)
        if isinstance(loss, TRIPLETS):
            # As many rows as positive pairs, where PML has a cube of B x B x B.
            pair, negatives = negative.index_select(0, anchors).nonzero(as_tuple=True)
            indices = (anchors[pair], positives[pair], negatives)
        else:
            indices = (anchors, positives, *negative.nonzero(as_tuple=True))
    return replace(batch, indices_tuple=indices, negative_only=None)


def dissected(loss: BaseMetricLossFunction, call: Callable[[], Any]) -> tuple[Any, list[Part]]:
    """What ``call()``, one call of the loss, returns, and the terms that its reducer was given.

    A reducer r is homogeneous of degree one in its terms t, so by Euler's identity
    r(t) = sum_k t_k dr/dt_k: the k-th summand is term k's share, whatever the reducer. The slopes
    dr/dt_k are constants to the gradient. TypeError if the value is not r(t).
    """
    if isinstance(loss.reducer, DoNothingReducer):
        raise TypeError(f"{name_of(loss)} has a DoNothingReducer, so there is no loss to wrap")
    seen: list[tuple[Any, ...]] = []  # args, kwargs and output of the reducer's calls
    thread = get_ident()  # another one may call the same loss

    def note(_: nn.Module, *given: Any) -> None:
        if get_ident() == thread:
            seen.append(given)

    handle = loss.reducer.register_forward_hook(note, with_kwargs=True)
    try:
        value = call()
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][-1] is not value:
        raise unweightable(loss, "its value is not what one call of its reducer returned")
    args, kwargs, _ = seen[0]
    # The sub-losses that have terms; PML says that there are none by the number 0.
    loss_dict = args[0] if args else kwargs["loss_dict"]
    entries = {n: e for n, e in loss_dict.items() if isinstance(e["losses"], Tensor)}
    for name, entry in entries.items():
        if entry["reduction_type"] == "already_reduced" and not is_regularizer(name):
            raise unweightable(
                loss, "it reduces its terms itself, before a sample's part could be told"
            )
    parts = []
    slopes = _slopes(loss.reducer, args, kwargs, list(entries))
    for (name, entry), slope in zip(entries.items(), slopes, strict=True):
        indices = None if is_regularizer(name) else entry["indices"]
        anchors = indices[0] if isinstance(indices, (tuple, list)) else indices
        terms = entry["losses"]
        if _overwrites(loss.reducer, name) and isinstance(indices, (tuple, list)):
            slope = slope / _repeats(*indices)
        parts.append(Part(entry["reduction_type"], terms, terms * slope, anchors))
    return value, parts


def _slopes(
    reducer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> list[Tensor]:
    """What a reducer returns, differentiated by the terms of the sub-losses ``names``."""
    if not names:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        args, kwargs = _constant(args), _constant(kwargs)
        loss_dict = args[0] if args else kwargs["loss_dict"]
        terms = [loss_dict[name]["losses"].requires_grad_() for name in names]
        value = reducer(*args, **kwargs)
        if not value.requires_grad:
            return [torch.zeros_like(losses) for losses in terms]
        return list(torch.autograd.grad(value.sum(), terms, materialize_grads=True))


def _overwrites(reducer: nn.Module, name: str) -> bool:
    """Whether a repeated pair counts once: ``PerAnchorReducer`` puts each in its place."""
    if isinstance(reducer, MultipleReducers):
        named = reducer.reducers
        reducer = dict(named.items()).get(name, reducer.default_reducer)
    return isinstance(reducer, PerAnchorReducer)


def _repeats(anchors: Tensor, others: Tensor) -> Tensor:
    """(K,) how often each pair is among all K; autograd gives each of them the slope of one."""
    pairs = torch.stack([anchors, others])
    _, place, counts = torch.unique(pairs, dim=1, return_inverse=True, return_counts=True)
    number: Tensor = counts.index_select(0, place)
    return number


def _constant(value: Any) -> Any:
    """A tensor, or those in a container, without graph; inference tensors may not enter one."""
    if isinstance(value, dict):
        return {key: _constant(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_constant(item) for item in value)
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()
