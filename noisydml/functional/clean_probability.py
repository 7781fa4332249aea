"""The probability that a label is right, given a memory of past features (PRISM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_integer,
    require_positive,
)
from noisydml.functional.products import affine

_BLOCK = 4_000_000  # similarities that the pairwise form holds at once
_TINY = 1e-12  # as in torch.nn.functional.normalize


def class_similarity(
    embeddings: Tensor, centers: Tensor, counts: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Mean cosine similarity of each embedding with each class in memory (PRISM, Eq. 5).

    Args:
        embeddings: (B, D) floating point; normalised here.
        centers: (C, D) the **plain** mean of each class's normalised features, not normalised
            again (Eq. 6); finite, also where ``counts`` is 0.
        counts: (C,) integers, of how many features each mean is; 0 for a class that the memory
            does not hold.
        temperature: the similarities are divided by it; above 0.

    Returns:
        (B, C) of at least float32, ``-inf`` for the classes that the memory does not hold.

    Raises:
        TypeError: for a tensor of the wrong dtype.
        ValueError: for a wrong shape or temperature.

    Example:
        >>> import torch
        >>> from noisydml.functional import class_similarity
        >>> centers, counts = torch.tensor([[0.6, 0.0], [0.0, 0.8], [0.0, 0.0]]), [5, 5, 0]
        >>> class_similarity(torch.tensor([[3.0, 0.0]]), centers, torch.tensor(counts))
        tensor([[0.6000, 0.0000,   -inf]])
    """
    require_floating("embeddings", embeddings, ndim=2)
    require_floating("centers", centers, ndim=2)
    require_integer("counts", counts, len(centers), "center")
    require_positive("temperature", temperature)
    _require_width("centers", centers, embeddings)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    absent = counts.clamp_max(1).log().to(dtype)  # 0, or -inf
    rows = embeddings.to(dtype)
    return affine(rows, centers.to(dtype), absent).div_(_length(rows, temperature))


def class_similarity_pairs(
    embeddings: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    num_classes: int,
    temperature: float = 1.0,
) -> Tensor:
    r"""The same from all pairs with the memory, :math:`T(x_i, k)` of PRISM's Eq. 3.

    O(B M D) time, in blocks: no (B, M, D), nor even a (B, M) tensor for a large memory. It
    agrees with :func:`class_similarity` up to rounding, and is here to show that.

    Args:
        embeddings: (B, D) floating point; normalised here.
        features: (M, D) floating point, the memory; normalised here.
        feature_labels: (M,) integers in ``[0, num_classes)``, or -1 for entries to be ignored.
        num_classes: C.
        temperature: as in :func:`class_similarity`.

    Returns:
        (B, C) of at least float32, ``-inf`` for the classes that the memory does not hold.

    Raises:
        TypeError: for a tensor of the wrong dtype.
        ValueError: for a wrong shape, number of classes or temperature.

    Example:
        >>> import torch
        >>> from noisydml.functional import class_similarity_pairs
        >>> memory, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> class_similarity_pairs(torch.tensor([[3.0, 0.0]]), memory, labels, num_classes=2)
        tensor([[0.5000,   -inf]])
    """
    require_floating("embeddings", embeddings, ndim=2)
    require_floating("features", features, ndim=2)
    require_integer("feature_labels", feature_labels, len(features), "feature")
    require_count("num_classes", num_classes)
    require_positive("temperature", temperature)
    _require_width("features", features, embeddings)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    queries = embeddings.to(dtype)
    # Column C takes what is to be ignored.
    columns = torch.where(feature_labels < 0, num_classes, feature_labels)
    sums = queries.new_zeros(len(queries), num_classes + 1)
    ones = torch.ones(len(features), dtype=torch.int64, device=columns.device)
    counts = ones.new_zeros(num_classes + 1).index_add_(0, columns, ones)
    rows = max(1, _BLOCK // max(1, len(queries)))
    for block, column in zip(torch.split(features, rows), torch.split(columns, rows), strict=True):
        sums.index_add_(1, column, affine(queries, normalize(block.to(dtype))))
    means = torch.where(counts > 0, sums / counts, -math.inf).div_(_length(queries, temperature))
    return means.narrow(1, 0, num_classes)


def own_similarity(similarities: Tensor, labels: Tensor) -> Tensor:
    """(B,) each sample's similarity to the class of its label, ``-inf`` where that is not held.

    With :func:`class_similarity` this is PRISM's ablation "memory-positive" (Eq. 13).

    Args:
        similarities: (B, C) from :func:`class_similarity`.
        labels: (B,) integers in ``[0, C)``.

    Example:
        >>> import torch
        >>> from noisydml.functional import own_similarity
        >>> own_similarity(torch.tensor([[0.6, 0.1], [0.2, 0.3]]), torch.tensor([0, 1]))
        tensor([0.6000, 0.3000])
    """
    require_floating("similarities", similarities, ndim=2)
    require_integer("labels", labels, len(similarities), "row of similarities")
    return similarities.gather(1, labels.to(torch.int64).unsqueeze(1)).squeeze(1)


def softmax_probability(similarities: Tensor, labels: Tensor) -> Tensor:
    """(B,) Eq. 2 and 7 from the similarities: 1 for a class that the memory does not hold.

    Args:
        similarities: (B, C) from :func:`class_similarity`.
        labels: (B,) integers in ``[0, C)``.

    Example:
        >>> import torch
        >>> from noisydml.functional import softmax_probability
        >>> similarities = torch.tensor([[2.0, 0.0, -torch.inf]] * 2)
        >>> softmax_probability(similarities, torch.tensor([0, 2]))
        tensor([0.8808, 1.0000])
    """
    held = own_similarity(similarities, labels) != -math.inf
    return own_similarity(similarities.softmax(dim=1), labels).masked_fill(held.logical_not(), 1)


def clean_probability(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    counts: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    r"""Probability that each label is right, by class centers (PRISM, Eq. 6-7).

    .. math::
        P(i) = \frac{\exp(w_{y_i}^\top x_i / T)}{\sum_{k : M_k > 0} \exp(w_k^\top x_i / T)},
        \qquad x_i = \frac{f(x_i)}{\lVert f(x_i) \rVert}

    The sum runs over the classes that the memory holds. A class that it does not hold has no
    center to compare with: its samples have probability 1 (Alg. 1, line 3).

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers in ``[0, C)``.
        centers: (C, D), as in :func:`class_similarity`.
        counts: (C,) integers, as in :func:`class_similarity`.
        temperature: :math:`T`, finite and above 0. The paper has 1, where the probabilities
            differ little from ``1 / C``; their order, which is what PRISM uses, depends on it too.

    Returns:
        (B,) of at least float32, in ``[0, 1]``. No transfer to the host; the largest tensor is
        (B, C).

    Raises:
        TypeError: for a tensor of the wrong dtype.
        ValueError: for a wrong shape or temperature.

    Example:
        >>> import torch
        >>> from noisydml.functional import clean_probability
        >>> centers, counts = torch.tensor([[0.8, 0.0], [0.0, 0.8]]), torch.tensor([5, 5])
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> clean_probability(x, torch.tensor([0, 1]), centers, counts, temperature=0.2)
        tensor([0.9820, 0.0180])
    """
    similarities = class_similarity(embeddings, centers, counts, temperature)
    return softmax_probability(similarities, labels)


def clean_probability_pairs(
    embeddings: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    num_classes: int,
    temperature: float = 1.0,
) -> Tensor:
    """The same from all pairs with the memory (PRISM, Eq. 2-3); see :func:`clean_probability`.

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers in ``[0, C)``.
        features: (M, D), the memory; normalised here.
        feature_labels: (M,) integers in ``[0, num_classes)``, or -1 for entries to be ignored.
        num_classes: C.
        temperature: as in :func:`clean_probability`.

    Returns:
        (B,) of at least float32, in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from noisydml.functional import clean_probability_pairs
        >>> memory, labels = torch.eye(2), torch.tensor([0, 1])
        >>> clean_probability_pairs(torch.eye(2), torch.tensor([0, 0]), memory, labels, 2)
        tensor([0.7311, 0.2689])
    """
    similarities = class_similarity_pairs(
        embeddings, features, feature_labels, num_classes, temperature
    )
    return softmax_probability(similarities, labels)


def batch_positive(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine similarity to the samples of the same class in the batch (PRISM, Eq. 12).

    One of the paper's ablations. A sample is one of its own class, as in the equation.

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers.

    Returns:
        (B,) of at least float32, in ``[-1, 1]``.

    Example:
        >>> import torch
        >>> from noisydml.functional import batch_positive
        >>> batch_positive(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    require_floating("embeddings", embeddings, ndim=2)
    require_integer("labels", labels, len(embeddings))
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    unit = normalize(embeddings.to(dtype))
    same = (labels.unsqueeze(1) == labels.unsqueeze(0)).to(dtype)
    return (affine(unit, unit) * same).sum(dim=1) / same.sum(dim=1)


def _require_width(name: str, value: Tensor, embeddings: Tensor) -> None:
    width = embeddings.shape[1]
    if value.shape[1] != width:
        raise ValueError(f"{name} must be as wide as the embeddings, {width}, got {value.shape[1]}")


def _length(rows: Tensor, temperature: float) -> Tensor:
    """(B, 1) what a product with each row is to be divided by; above 0 also for zeros."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return length.clamp_min(_TINY).mul_(temperature)
