"""The value of a loss, shared out to the samples of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from noisydml import pml
from noisydml.functional.checks import require_loss
from noisydml.wrappers.base import LossWrapper
from noisydml.wrappers.checks import make_batch


def per_sample_loss(
    loss: Callable[..., Any],
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: tuple[Tensor, ...] | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Tensor:
    """One loss per sample, whose mean is the loss itself.

    The loss of sample i is the contribution of all terms with anchor i, times B. A regulariser of
    embeddings or weights belongs to no sample and is spread evenly. ``loss`` is left as it was.

    Args:
        loss: any loss of pytorch-metric-learning whose terms have an anchor, with a reducer that
            is homogeneous of degree one in its terms (all built-in ones are),
            ``CrossBatchMemory`` or ``MultipleLosses`` around such, or a callable
            ``loss(embeddings, labels)`` that returns shape (B,) already.
        embeddings: (B, D) floating point.
        labels: (B,) integers.
        indices_tuple: pairs or triplets from a PML miner.
        ref_emb: (R, D) embeddings to compare the batch with.
        ref_labels: (R,) their labels.

    Returns:
        (B,) tensor with ``per_sample.mean()`` equal to ``loss(embeddings, labels, ...)`` in value
        and, for every built-in reducer, in gradient (but for ``PerAnchorReducer`` with a pair given
        twice, which PML's gradient counts twice and its value once). With no sample, an empty
        tensor that has a graph.

    Raises:
        TypeError: if ``loss`` is none, or is reduced before a sample's part can be told, as
            ``HistogramLoss`` and ``ProxyAnchorLoss`` are; the message says why.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import TripletMarginLoss
        >>> from noisydml import per_sample_loss
        >>> embeddings = torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.8, 0.6]])
        >>> per_sample_loss(TripletMarginLoss(margin=0.5), embeddings, torch.tensor([0, 0, 1, 1]))
        tensor([0.1587, 0.7251, 0.1587, 0.7251])
    """
    require_loss("loss", loss)
    if isinstance(loss, LossWrapper):
        raise TypeError(
            f"{type(loss).__name__} is a wrapper, which judges when it is called; give the loss "
            "that it wraps, and take the weights from its decision"
        )
    batch = make_batch(embeddings, labels, indices_tuple, ref_emb, ref_labels)
    if len(batch) == 0:
        return embeddings.sum(dim=1)
    terms = pml.split(loss, batch)
    return terms.per_sample + terms.unweighted
