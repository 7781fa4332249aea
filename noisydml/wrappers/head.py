"""The head: a module from features to embeddings that a wrapper calls for its wrapped loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisydml.pml.batch import Batch
from noisydml.wrappers.base import zero_with_graph


def embed(head: nn.Module, features: Tensor) -> Tensor:
    """(B, E) embeddings of (B, D) features; a head is never called with no row.

    Raises:
        ValueError: if the head returns anything but one row per feature.
    """
    if len(features) == 0:  # which batch norm refuses; every parameter is in the graph all the same
        empty = features.new_zeros(0, output_width(head, features.shape[1]))
        return empty + zero_with_graph(features, head.parameters())
    parameter = next(head.parameters(), features)
    embeddings: Tensor = head(features.to(parameter.dtype))
    if embeddings.ndim != 2 or len(embeddings) != len(features):
        raise ValueError(
            f"head must return {len(features)} embeddings, one per feature, "
            f"got shape {tuple(embeddings.shape)}"
        )
    return embeddings


def embed_batch(head: nn.Module | None, batch: Batch) -> Batch:
    """The batch with its features, and those of ``ref_emb``, embedded; itself without a head."""
    if head is None:
        return batch
    embeddings, ref_emb = embed(head, batch.embeddings), None
    if batch.ref_emb is not None and not batch.of_itself:
        ref_emb = embed(head, batch.ref_emb)
    return batch.changed(embeddings=embeddings, ref_emb=ref_emb)


def output_width(head: nn.Module, feature_size: int) -> int:
    """E of the head's (B, E) embeddings: asked in eval mode with a row of zeros."""
    training = {module: module.training for module in head.modules()}
    parameter = next(head.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            return int(head.eval()(parameter.new_zeros(1, feature_size)).shape[1])
    finally:
        for module, mode in training.items():
            module.training = mode
