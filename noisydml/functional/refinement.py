"""Labels refined by what each class's mean retrieves, more from cycle to cycle (TITAN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml.functional.checks import require_count, require_floating, require_integer

_BLOCK = 16_000_000  # distances that are held at once


def retrieval_number(cycle: int, cycles: int, most: int) -> int:
    r"""The whole part of :math:`K_t = \frac{t}{T} K_{max}` (TITAN, Eq. 10).

    Args:
        cycle: t, 0 or more; from T on the number stays :math:`K_{max}`.
        cycles: T, 1 or more.
        most: :math:`K_{max}`, 0 or more.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> from noisydml.functional import retrieval_number
        >>> [retrieval_number(t, cycles=8, most=20) for t in range(10)]
        [0, 2, 5, 7, 10, 12, 15, 17, 20, 20]
    """
    require_count("cycle", cycle, least=0)
    require_count("cycles", cycles)
    require_count("most", most, least=0)
    return min(cycle, cycles) * most // cycles


def refine_labels(
    features: Tensor, labels: Tensor, means: Tensor, k: int, counts: Tensor | None = None
) -> Tensor:
    r"""Labels after every class's mean has claimed its ``k`` nearest samples (TITAN, Eq. 9).

    A claimed sample gets the label of the class that claims it, the nearest of them if several
    do; the others keep theirs. Distances are Euclidean.

    Args:
        features: (N, D) floating point, of all samples.
        labels: (N,) integers; rows with a negative one are nobody's, such as the empty entries
            of a memory.
        means: (C, D) floating point.
        k: 0 or more.
        counts: (C,) integers, 0 for classes without samples, which claim none; None if all have
            some.

    Returns:
        (N,) int64. Of samples at the same distance from a mean any may be claimed. O(N C D) time,
        in blocks of classes: no (N, C) tensor for a large data set. No transfer to the host.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import refine_labels
        >>> features = torch.tensor([[0.0], [0.1], [1.0], [0.9], [0.6]])
        >>> means = torch.tensor([[0.0], [1.0]])
        >>> refine_labels(features, torch.tensor([0, 1, 1, 0, 0]), means, k=2)
        tensor([0, 0, 1, 1, 0])
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_floating("means", means, ndim=2)
    require_count("k", k, least=0)
    if means.shape[1] != features.shape[1]:
        raise ValueError(
            f"means must be as wide as the features, {features.shape[1]}, got {means.shape[1]}"
        )
    if counts is not None:
        require_integer("counts", counts, len(means), "class")
    labels = labels.long()
    k = min(k, len(features))
    if k == 0 or len(means) == 0:
        return labels.clone()
    distance, claimed = _nearest(features.detach(), labels >= 0, means.detach(), k)  # (C, k)
    if counts is not None:
        distance = torch.where((counts > 0).unsqueeze(1), distance, math.inf)
    return _resolve(distance, claimed, labels)


def _nearest(features: Tensor, present: Tensor, means: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(C, k) squared distances and rows of the features that are nearest to each mean."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    means = means.to(dtype)
    center = means.mean(dim=0)  # a common offset would cost digits
    features, means = features.to(dtype) - center, means - center
    own = torch.where(present, features.square().sum(dim=1), math.inf)
    found = []
    for block in torch.split(means, max(1, _BLOCK // len(features))):
        distance = torch.addmm(own, block, features.T, alpha=-2)
        distance = distance + block.square().sum(dim=1, keepdim=True)
        found.append(distance.topk(k, dim=1, largest=False))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _resolve(distance: Tensor, claimed: Tensor, labels: Tensor) -> Tensor:
    """The labels, where several classes claim a sample that of the nearest, then of the lowest."""
    num_classes = len(distance)
    classes = torch.arange(num_classes, device=labels.device).unsqueeze(1).expand_as(claimed)
    rows, distance = claimed.reshape(-1), distance.reshape(-1)
    unclaimed = torch.full(labels.shape, math.inf, dtype=distance.dtype, device=labels.device)
    least = unclaimed.scatter_reduce(0, rows, distance, "amin")
    wins = (distance == least.gather(0, rows)) & (distance < math.inf)
    winner = torch.where(wins, classes.reshape(-1), num_classes)
    new = torch.full_like(labels, num_classes).scatter_reduce(0, rows, winner, "amin")
    return torch.where(new < num_classes, new, labels)
