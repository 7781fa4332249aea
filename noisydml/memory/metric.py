"""By what features are to be compared: their directions, or their distances."""

from __future__ import annotations

import torch
from torch import Tensor

from noisydml.functional.parts import Whole
from noisydml.functional.whitening import Rows
from noisydml.memory.by_class import by_class, classes_of, components_of
from noisydml.memory.index import Metric
from noisydml.memory.whitened import A_TENTH, FEWEST, Whitened


def better_metric(
    directions: Rows, features: Rows, labels: Tensor, trust: Tensor | None = None, k: int = 50
) -> Metric:
    """By what features are to be compared: distances where they tell more.

    Args:
        directions: (N, D) floating point, what :func:`~noisydml.memory.judge.judge_labels` takes
            with ``"cosine"``.
        features: (N, D) floating point, what it takes with ``"euclidean"``.
        labels: (N,) integers, -1 where there is none.
        trust: (N,) in ``[0, 1]``, with which labels count; None for 1.
        k: number of neighbours.

    Returns:
        ``"euclidean"`` if centers and neighbours gain more with it, in the mean logarithm of the
        probability of labels held out, over the sizes of the classes; by a tenth of what they gain
        with ``"cosine"``, if that is anything. Which one it is of labels that mean nothing is
        chance.

    Example:
        >>> import torch
        >>> from noisydml.memory.metric import better_metric
        >>> features = torch.rand(200, 1).mul(5).exp() * torch.tensor([[0.6, 0.8]])
        >>> labels = (features[:, 0] > 5).long()  # all in one direction
        >>> better_metric(torch.nn.functional.normalize(features), features, labels)
        'euclidean'
    """
    parts, gains = Whole(len(labels)), []
    classes = classes_of(labels, parts)
    if len(classes) < 2:
        return "cosine"
    spaces: tuple[tuple[Metric, Rows], ...] = ("cosine", directions), ("euclidean", features)
    with torch.autocast(labels.device.type, enabled=False):
        numbers = torch.arange(len(labels), device=labels.device)
        order, codes, trust, fold = by_class(labels, classes, trust, numbers, len(labels))
        weights = trust.masked_fill(codes < 0, 0)
        for metric, rows in spaces:
            space = Whitened(components_of(rows, parts)[order], codes, len(classes), metric)
            gains.append(space.gains(weights, fold, k, [space.shrinkage]).squeeze(0))
    gained, by_distance = (each.mean() for each in gains)
    more = len(gains[0]) >= FEWEST and by_distance - gained > A_TENTH * gained.clamp_min(0)
    return "euclidean" if more else "cosine"
