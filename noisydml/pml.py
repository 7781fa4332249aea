"""The only file that knows the inside of pytorch-metric-learning (PML).

Per-sample terms, the state PML forgets to save, and the dtype its losses compute in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import (
    BaseMetricLossFunction,
    CrossBatchMemory,
    DynamicSoftMarginLoss,
    ManifoldLoss,
    MultipleLosses,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SelfSupervisedLoss,
    VICRegLoss,
)
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer
from torch import Tensor, nn

from noisydml.batch import Batch
from noisydml.functional import proxy_nca

Loss = Callable[..., Any]
LossDict = dict[str, dict[str, Any]]

_TAKES_NO_LABELS = (ManifoldLoss, SelfSupervisedLoss, VICRegLoss)
_UNSAVED: dict[type, tuple[str, ...]] = {
    CrossBatchMemory: ("queue_idx", "has_been_filled"),
    DynamicSoftMarginLoss: ("hist_",),
}


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


def refuse_unlabelled(loss: Loss) -> None:
    """Raise TypeError for the losses that are called without labels."""
    if isinstance(loss, _TAKES_NO_LABELS):
        raise TypeError(
            f"{_name(loss)} takes no labels, so none of them can be wrong: it cannot be wrapped"
        )


def refuse_unweightable(loss: Loss) -> None:
    """Raise TypeError for the losses known to have no per-sample contributions."""
    refuse_unlabelled(loss)
    if isinstance(loss, ProxyAnchorLoss):
        raise _unweightable(
            loss,
            "its terms belong to proxies, each a logarithm over all samples of the batch. "
            "Use ProxyNCALoss or SoftTripleLoss",
        )


def refuse_memory(confidence_loss: Loss) -> None:
    """Raise TypeError for a loss that would remember the batch it only judges."""
    if isinstance(confidence_loss, CrossBatchMemory):
        raise TypeError(
            "confidence_loss must not be a CrossBatchMemory: judging would enqueue the batch"
        )


def embedding_shape(loss: Loss) -> tuple[int | None, int | None]:
    """(number of classes, embedding size) that a proxy loss is made for; None where unknown."""
    if isinstance(loss, ProxyNCALoss):
        return loss.proxies.shape[0], loss.proxies.shape[1]
    if isinstance(loss, NormalizedSoftmaxLoss):
        return loss.W.shape[1], loss.W.shape[0]
    # PML's recording sets num_classes to 0 in losses that never set it themselves.
    num_classes = getattr(loss, "num_classes", None)
    return (num_classes if isinstance(num_classes, int) and num_classes > 0 else None), None


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
                setattr(owner, name, value)


def _attributes(owner: nn.Module) -> tuple[str, ...]:
    return next(names for kind, names in _UNSAVED.items() if isinstance(owner, kind))


def _output(loss: Loss, batch: Batch) -> Any:
    return loss(_converted(loss, batch.embeddings), batch.labels, **batch.optional_arguments())


def _converted(loss: Loss, embeddings: Tensor) -> Tensor:
    """The embeddings in the dtype of the loss's own proxies and memories, where it has any.

    PML does the reverse: it casts its proxies and memories to the dtype of the embeddings, in
    place, so that after one bfloat16 batch float32 proxies are bfloat16 for ever.
    """
    if not isinstance(loss, nn.Module):
        return embeddings
    state = [t.dtype for t in (*loss.parameters(), *loss.buffers()) if t.is_floating_point()]
    if state:
        return embeddings.to(reduce(torch.promote_types, state))
    # torch.cdist, on which LpDistance stands, has no bfloat16.
    no_bfloat16 = any(isinstance(module, LpDistance) for module in loss.modules())
    return embeddings.float() if no_bfloat16 and embeddings.dtype == torch.bfloat16 else embeddings


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
        f"{_name(loss)} must return one loss per sample, shape ({batch_size},), or a 0-dim loss, "
        f"got {got}"
    )


def _split_callable(loss: Loss, batch: Batch) -> Terms:
    refuse_unweightable(loss)
    output = _output(loss, batch)
    value = _reduced(loss, output, len(batch))
    if output.shape != (len(batch),):
        raise _unweightable(
            loss,
            "it returns one number for the whole batch. Make it return one loss per sample, "
            "for instance with reduction='none'",
        )
    return Terms(value, output, torch.zeros_like(value))


def _split_multiple(loss: MultipleLosses, batch: Batch) -> Terms:
    if batch.ref_emb is not None:
        raise TypeError("MultipleLosses takes no ref_emb")
    batch = replace(batch, embeddings=_converted(loss, batch.embeddings))
    parts = []
    for name in loss.losses.keys() if loss.is_dict else range(len(loss.losses)):
        indices = loss.get_indices_tuple(name, batch.embeddings, batch.labels, batch.indices_tuple)
        terms = split(loss.losses[name], replace(batch, indices_tuple=indices))
        parts.append(terms.scaled(loss.weights[name]))
    return reduce(Terms.plus, parts)


def _split_pml(loss: Loss, pml_loss: BaseMetricLossFunction, batch: Batch) -> Terms:
    """Read the terms that PML hands to its reducer, and let the reducer share its value out.

    A reducer r is homogeneous of degree one in its terms t, so by Euler's identity
    r(t) = sum_k t_k dr/dt_k: the k-th summand is term k's share, whatever the reducer.
    """
    refuse_unweightable(pml_loss)
    if isinstance(pml_loss.reducer, DoNothingReducer):
        raise TypeError(f"{_name(pml_loss)} has a DoNothingReducer, so there is no loss to wrap")
    with _reducer_input(pml_loss.reducer) as seen:
        value = _reduced(loss, _output(loss, batch), len(batch))
    if not seen:
        raise _unweightable(pml_loss, "it never calls its reducer")
    loss_dict, embeddings, labels = seen[-1]
    shares = _shares(pml_loss.reducer, loss_dict, embeddings, labels)
    main = [anchors for name, (_, anchors) in shares.items() if not _is_regularizer(name)]
    if main and all(anchors is None for anchors in main):
        raise _unweightable(
            pml_loss, "it reduces its terms itself, before a sample's part could be told"
        )

    # Many half-precision terms would not add up in half precision.
    dtype = torch.promote_types(value.dtype, torch.float32)
    per_sample = torch.zeros(len(batch), dtype=dtype, device=value.device)
    unweighted = torch.zeros((), dtype=dtype, device=value.device)
    for name, (share, anchors) in shares.items():
        if anchors is None or _is_regularizer(name):
            unweighted = unweighted + share.to(dtype).sum()
        else:
            per_sample = per_sample.index_add(0, anchors, share.flatten().to(dtype))
    return Terms(value, per_sample * len(batch), unweighted)


@contextmanager
def _reducer_input(reducer: nn.Module) -> Iterator[list[tuple[LossDict, Tensor, Tensor]]]:
    """Note what the reducer is called with; the reducer itself is left as it was."""
    seen: list[tuple[LossDict, Tensor, Tensor]] = []
    handle = reducer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        yield seen
    finally:
        handle.remove()


def _shares(
    reducer: nn.Module, loss_dict: LossDict, embeddings: Tensor, labels: Tensor
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Each sub-loss's terms times the reducer's derivative, with the anchors (None: no anchor)."""
    # A sub-loss that is the number 0 is PML's way to say that it has no terms.
    terms = {n: d["losses"] for n, d in loss_dict.items() if isinstance(d["losses"], Tensor)}
    if not terms:
        return {}
    with torch.enable_grad():
        leaves = {name: t.detach().requires_grad_() for name, t in terms.items()}
        copy = {
            name: {**entry, "losses": leaves.get(name, entry["losses"])}
            for name, entry in loss_dict.items()
        }
        value = reducer(copy, embeddings.detach(), labels)
        slopes = (
            torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
            if value.requires_grad
            else [torch.zeros_like(leaf) for leaf in leaves.values()]
        )
    return {
        name: (terms[name] * slope, _anchors(loss_dict[name]))
        for name, slope in zip(leaves, slopes, strict=True)
    }


def _is_regularizer(name: str) -> bool:
    """Embedding, weight and MarginLoss's beta regularisation: no label makes them wrong."""
    return name.endswith("_reg_loss")


def _anchors(entry: dict[str, Any]) -> Tensor | None:
    if entry["reduction_type"] == "already_reduced":
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


def _name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def _unweightable(loss: Loss, reason: str) -> TypeError:
    return TypeError(
        f"{_name(loss)} cannot be weighted sample by sample: {reason}. "
        "A wrapper that drops samples, such as GroundTruthFilter, works with it."
    )
