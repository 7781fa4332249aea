"""Refuses a bad call before anything has changed, with the host asked once."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from noisydml import distributed, pml
from noisydml.functional.checks import (
    require_floating,
    require_integer,
    require_values,
    require_vector,
)
from noisydml.functional.products import finite
from noisydml.memory.features import FeatureMemory
from noisydml.pml.batch import Batch, index_groups

_UNIT = 0.02  # by which the length of a unit vector may differ from 1, in half precision


@dataclass(frozen=True)
class ValueCheck:
    """A condition on values, which live on the device: ``bad`` is a 0-dim bool tensor."""

    bad: Tensor
    message: str
    name: str = ""  # of what has to lie in [0, stop)
    stop: int | None = None


def make_batch(
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: tuple[Tensor, ...] | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    sample_weight: Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> Batch:
    """Check types and shapes, move everything to the embeddings' device, and pack it.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it wants.
    """
    require_values(
        embeddings=embeddings, labels=labels, ref_emb=ref_emb, ref_labels=ref_labels,
        sample_weight=sample_weight, sample_ids=sample_ids,
    )  # fmt: skip
    require_floating("embeddings", embeddings, ndim=2)
    size, device = len(embeddings), embeddings.device
    require_integer("labels", labels, size)
    if sample_ids is not None:
        require_integer("sample_ids", sample_ids, size)
        sample_ids = sample_ids.to(device, torch.int64)
    if sample_weight is not None:
        require_vector("sample_weight", sample_weight, size)
        if sample_weight.is_complex():
            raise TypeError(f"sample_weight must be real, got dtype {sample_weight.dtype}")
        if not sample_weight.is_floating_point():
            sample_weight = sample_weight.float()
        sample_weight = _for_training(sample_weight.detach().to(device))
    if ref_emb is not None or ref_labels is not None:
        of_batch = ref_labels is labels  # PML knows by identity that nobody is its own pair then
        has_pairs = indices_tuple is not None
        ref_emb, ref_labels = _checked_reference(embeddings, ref_emb, ref_labels, has_pairs)
        ref_labels = None if of_batch else ref_labels
    if indices_tuple is not None:
        indices_tuple = _checked_indices(indices_tuple, device)
    return Batch(
        embeddings,
        _for_training(labels.to(device, torch.int64)),
        indices_tuple,
        ref_emb,
        ref_labels,
        sample_weight,
        sample_ids,
    )


def _for_training(rows: Tensor) -> Tensor:
    """Rows that autograd may save, as it does none that were made in inference mode."""
    return rows.clone() if rows.is_inference() and not torch.is_inference_mode_enabled() else rows


def value_checks(batch: Batch) -> list[ValueCheck]:
    """The conditions on values that hold for every wrapper."""
    checks = []
    for name, values in (("embeddings", batch.embeddings), ("ref_emb", batch.ref_emb)):
        if values is not None:
            bad = finite(values.detach()).logical_not()
            checks.append(ValueCheck(bad, f"{name} must be finite, got NaN or infinity"))
    if batch.sample_weight is not None:
        weight = batch.sample_weight
        bad = ((weight >= 0) & weight.isfinite()).all().logical_not()
        checks.append(ValueCheck(bad, "sample_weight must be finite and not negative"))
    if batch.sample_ids is not None:
        bad = (batch.sample_ids < 0).any()
        checks.append(ValueCheck(bad, "sample_ids must not be negative"))
    if batch.indices_tuple is not None:
        checks.extend(_indices_in_range(batch))
    return checks


def in_range(name: str, values: Tensor, stop: int, what: str) -> ValueCheck:
    """Every value lies in ``[0, stop)``."""
    bad = (values.clamp(0, stop - 1) != values).any()
    return ValueCheck(bad, f"{name} must be in [0, {stop}), {what}", name, stop)


def within_limits(batch: Batch, checks: list[ValueCheck]) -> Batch:
    """The batch with the labels and ids that checks refuse moved into their range.

    To look something up by one out of range is an error on CUDA from which no process recovers.
    """
    for name in ("labels", "sample_ids"):
        stops = [c.stop for c in checks if c.name == name and c.stop is not None]
        if stops:
            batch = replace(batch, **{name: getattr(batch, name).clamp(0, min(stops) - 1)})
    return batch


def proxy_checks(judge: Callable[..., Any], batch: Batch, what: str) -> list[ValueCheck]:
    """The width and the range of labels that a loss which judges a batch has proxies for.

    Raises:
        ValueError: if the embeddings have another width.
    """
    num_classes, width = pml.embedding_shape(judge)
    require_width(batch, width, f"the proxies of {what}")
    if num_classes is None:
        return []
    return [in_range("labels", batch.labels, num_classes, f"the classes of {what}")]


def unit_checks(batch: Batch, loss: Callable[..., Any]) -> list[ValueCheck]:
    """That a loss of lengths, which compares a batch with unit vectors of a memory, gets none."""
    if pml.compares_directions(loss):
        return []
    lengths = torch.linalg.vector_norm(batch.embeddings.detach().float(), dim=1)
    message = (
        "embeddings must have length 1, as in the memory, where the loss compares lengths "
        "(normalize_embeddings=False)"
    )
    return [ValueCheck(((lengths - 1).abs() > _UNIT).any(), message)]


def require_width(batch: Batch, width: int | None, name: str) -> None:
    """Raise ValueError if the embeddings are not as wide as ``name`` says; None is any width."""
    got = batch.embeddings.shape[1]
    if width is not None and got != width:
        raise ValueError(f"embeddings must be as wide as {name}, {width}, got {got}")


def width_given_by(memory: FeatureMemory) -> str:
    """What has said how wide a memory is, in the words of whoever made the wrapper."""
    return "those before" if memory.widens else "embedding_size"


WITHOUT_IDS, WITH_IDS = 1, 2  # whether the batches that a wrapper remembers have sample ids


def remembered_checks(
    batch: Batch, memory: FeatureMemory, mode: int, wrapper: str, size: str
) -> list[ValueCheck]:
    """What a wrapper that remembers every sample asks of a batch.

    Args:
        batch: to be checked.
        memory: that it would enter.
        mode: ``WITH_IDS`` or ``WITHOUT_IDS`` as the batches before, 0 for none before.
        wrapper: its name.
        size: the wrapper's name for the size of the memory.
    """
    require_width(batch, memory.embedding_size, width_given_by(memory))
    ids = batch.sample_ids
    if mode == (WITH_IDS if ids is None else WITHOUT_IDS):
        now = "none" if ids is None else "some"
        raise ValueError(f"sample_ids must be given in every batch or in none, got {now} now")
    message = f"labels must not be negative, {wrapper} has -1 for no label"
    checks = [ValueCheck((batch.labels < 0).any(), message)]
    if ids is not None:
        checks.append(in_range("sample_ids", ids, len(memory), f"{size} of {wrapper}"))
    return checks


def checked_samples(
    features: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    memory: FeatureMemory,
    what: str,
    *,
    width: int | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a ``refresh`` is given, on the device of the memory, once all of it is right.

    Without ids the rows are the samples 0, 1, ..., N - 1; ``what`` limits them. None is any width,
    and any number of classes. Raises TypeError or ValueError, where ranks have parts on all.
    """
    given = None
    with distributed.together() if memory.ranks > 1 else nullcontext():
        given = _checked_samples(features, labels, sample_ids, memory, what, width, num_classes)
    assert given is not None
    return given


def _checked_samples(
    features: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    memory: FeatureMemory,
    what: str,
    width: int | None,
    num_classes: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    require_values(features=features, labels=labels, sample_ids=sample_ids)
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    if sample_ids is None:
        if len(features) > len(memory):
            raise ValueError(
                f"features must have at most {len(memory)} rows, {what}, got {len(features)}"
            )
        sample_ids = torch.arange(len(features))
    require_integer("sample_ids", sample_ids, len(features), "feature")
    device = memory.labels.device
    sample_ids = sample_ids.to(device, torch.int64)
    if features.shape[1] == 0:
        raise ValueError(f"features must have at least one column, got {tuple(features.shape)}")
    features, labels = features.detach().to(device), labels.to(device, torch.int64)
    checks = [
        in_range("sample_ids", sample_ids, len(memory), what),
        ValueCheck(finite(features).logical_not(), "features must be finite, got NaN or infinity"),
        ValueCheck((labels < 0).any(), "labels must not be negative"),
        ValueCheck(_mostly_repeated(sample_ids), "sample_ids must tell the samples apart"),
    ]
    if num_classes is not None:
        checks.append(in_range("labels", labels, num_classes, "num_classes of JudgeFilter"))
    raise_first(checks)
    if width is not None and (got := features.shape[1]) != width:
        raise ValueError(
            f"features must be as wide as {width_given_by(memory)}, {width}, got {got}"
        )
    return features, labels, sample_ids


def _mostly_repeated(ids: Tensor) -> Tensor:
    """Whether they are rather labels: samplers and views may bring some twice, not most of them."""
    ordered = ids.sort().values
    return 2 * (ordered[1:] == ordered[:-1]).sum() > len(ids)


def fingerprint(memory: FeatureMemory, labels: Tensor, sample_ids: Tensor) -> int:
    """A number by which ranks see whether they were given the same samples, as they have to be.

    In whatever order; 0 where they need not. Asks the host.
    """
    if distributed.world_size() == 1 or memory.ranks > 1:
        return 0
    order = sample_ids.argsort(stable=True)
    return zlib.crc32(torch.stack([labels, sample_ids])[:, order].cpu().numpy().tobytes())


def require_finite_losses(batch: Batch, losses: Tensor, name: str) -> None:
    """Raise ValueError if the losses to judge by are not finite; nothing if values are unchecked.

    One more host synchronisation: they are known only after the loss ``name`` was called.
    """
    if batch.check_values:
        bad = finite(losses.detach()).logical_not()
        raise_first([ValueCheck(bad, f"{name} must return finite losses, got NaN or infinity")])


def raise_first(checks: list[ValueCheck]) -> None:
    """Raise ValueError for the first check that fails; one host synchronisation for all."""
    failed = torch.stack([check.bad for check in checks]).tolist() if checks else []
    for check, bad in zip(checks, failed, strict=True):
        if bad:
            raise ValueError(check.message)


def _checked_reference(
    embeddings: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None, has_pairs: bool
) -> tuple[Tensor, Tensor | None]:
    if ref_emb is None:
        raise ValueError("ref_labels was given without ref_emb; give both or neither")
    require_floating("ref_emb", ref_emb, ndim=2)
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb must be as wide as the embeddings, {embeddings.shape[1]}, "
            f"got {ref_emb.shape[1]}"
        )
    if ref_labels is not None:
        require_integer("ref_labels", ref_labels, len(ref_emb), "row of ref_emb")
        ref_labels = ref_labels.to(embeddings.device, torch.int64)
    elif len(ref_emb) != len(embeddings):  # pairs say what is compared, and no label does
        if not has_pairs:
            raise ValueError(
                f"ref_labels must be given with a ref_emb of {len(ref_emb)} rows beside "
                f"{len(embeddings)} embeddings"
            )
        ref_labels = torch.full((len(ref_emb),), -1, device=embeddings.device)
    return ref_emb.to(embeddings.device), ref_labels


def _checked_indices(indices_tuple: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        raise ValueError(
            "indices_tuple must be a tuple of 3 tensors (triplets) or 4 (pairs), "
            f"got {type(indices_tuple).__name__}"
            + (f" of {len(indices_tuple)}" if isinstance(indices_tuple, (tuple, list)) else "")
        )
    for i, column in enumerate(indices_tuple):
        require_integer(f"indices_tuple[{i}]", column)
        require_values(**{f"indices_tuple[{i}]": column})
    for group in index_groups(tuple(indices_tuple)):
        if len({len(column) for column in group}) > 1:
            raise ValueError(
                "the columns of a pair or triplet in indices_tuple must be equally long, "
                f"got lengths {[len(column) for column in group]}"
            )
    return tuple(column.to(device, torch.int64) for column in indices_tuple)


def _indices_in_range(batch: Batch) -> list[ValueCheck]:
    checks, name = [], "indices_tuple"
    for in_batch, in_ref in batch.index_columns():
        checks += [in_range(name, c, len(batch), "the rows of the batch") for c in in_batch]
        checks += [in_range(name, c, batch.num_refs, "the rows of ref_emb") for c in in_ref]
    return checks
