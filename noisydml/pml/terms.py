"""The terms that a loss of pytorch-metric-learning (PML) hands to its reducer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LossDict = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ReducerCall:
    """What a reducer was called with, and what it returned."""

    loss_dict: LossDict
    embeddings: Tensor
    labels: Tensor
    output: Any


@dataclass(frozen=True)
class Part:
    """The terms of one sub-loss, K of them; the shares of all parts add up to the loss."""

    kind: str  # PML's reduction type: "element", "pos_pair", "neg_pair", "triplet", ...
    losses: Tensor  # (K,)
    shares: Tensor  # (K,) what each contributes to the value of the loss
    anchors: Tensor | None  # (K,) the row of the batch each belongs to; None for a regulariser


@contextmanager
def observed(reducer: nn.Module) -> Iterator[list[ReducerCall]]:
    """Note the reducer's calls; the reducer itself is left as it was."""
    calls: list[ReducerCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = dict(zip(("loss_dict", "embeddings", "labels"), args, strict=False))
        calls.append(ReducerCall(**{**named, **kwargs}, output=output))

    handle = reducer.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def is_reduced(call: ReducerCall) -> bool:
    """Whether a sub-loss came as one number already, so that no sample's part can be told."""
    return any(
        entry["reduction_type"] == "already_reduced" and not _is_regularizer(name)
        for name, entry in _with_terms(call.loss_dict).items()
    )


def shared_out(reducer: nn.Module, call: ReducerCall) -> list[Part]:
    """Every sub-loss's terms, with the share that each has in what the reducer returned.

    A reducer r is homogeneous of degree one in its terms t, so by Euler's identity
    r(t) = sum_k t_k dr/dt_k: the k-th summand is term k's share, whatever the reducer. The slopes
    dr/dt_k are constants to the gradient.
    """
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
        Part(entry["reduction_type"], entry["losses"], entry["losses"] * slope, _anchors(n, entry))
        for (n, entry), slope in zip(entries.items(), slopes, strict=True)
    ]


def _with_terms(loss_dict: LossDict) -> LossDict:
    """The sub-losses that have terms; PML says that there are none by the number 0."""
    return {n: e for n, e in loss_dict.items() if isinstance(e["losses"], Tensor)}


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
    if _is_regularizer(name):
        return None
    indices = entry["indices"]
    anchors: Tensor = indices if isinstance(indices, Tensor) else indices[0]
    return anchors
