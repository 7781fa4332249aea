"""How many labels are wrong, from features of a network that was trained on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.judge import (
    core_rate,
    leave_one_out_similarity,
    within_class_whitening,
)
from noisydml.functional.neighbors import neighbor_weights
from noisydml.functional.prism import low_rank_counts
from noisydml.memory.index import NeighborIndex
from noisydml.memory.judge import LabelJudgement
from noisydml.memory.neighbors import Neighborhood

_SHARPNESS = 8.0  # of the neighbours' votes
_BLOCK = 2**22  # similarities at once
# Noise that falls on all classes alike ranks as low as it is frequent; of noise that falls on
# similar classes less than this part does.
_LOW = 0.4
_CERTAIN = 0.5  # mean probability of a sample's class
_MOST = 2.0  # times what the judge sees


def trained_rate(
    found: LabelJudgement,
    features: Tensor,
    labels: Tensor,
    *,
    k: int = 50,
    index: str | NeighborIndex | None = None,
) -> float:
    r"""The share of wrong labels, from features of a network that was trained on all of them.

    Such features agree with the wrong labels, and the judge takes a part of these for right ones,
    most of all where they fall on similar classes. A neighbourhood that is of one mind lies deep
    inside one true class even then, so the share that has another label there counts, the rate of
    the core (:func:`~noisydml.functional.judge.core_rate`), up to twice the judge's. It does not
    where the judge sees no structure or is certain of the classes, and where wrong labels rank as
    low as those that are wrong at random (:func:`~noisydml.functional.low_rank_counts`): with
    features that tell little the core has wrong labels by chance. No sample has a part in its own
    judgement.

    Args:
        found: what the judge says of them.
        features: (N, D) floating point, finite.
        labels: (N,) integers, -1 where there is none.
        k: number of neighbours.
        index: what finds them; see :class:`~noisydml.memory.neighbors.Neighborhood`.

    Returns:
        At least the judge's rate; NaN where that is. Asks the host.

    Example:
        >>> import torch
        >>> from noisydml.memory.judge import judge_labels
        >>> from noisydml.memory.united import trained_rate
        >>> labels = torch.arange(10).repeat(40)
        >>> features = 9 * torch.eye(10)[labels] + torch.rand(400, 10)
        >>> labels[:80] = (labels[:80] + 1) % 10  # a fifth of each class in the next
        >>> round(trained_rate(judge_labels(features, labels), features, labels), 2)
        0.2
    """
    rate = found.noise_rate
    if math.isnan(rate) or not found.structured or found.certainty >= _CERTAIN:
        return rate
    core, low = _core_and_low_ranks(features[labels >= 0], labels[labels >= 0], k, index)
    return max(rate, min(core, _MOST * rate)) if low < _LOW * core else rate


def _core_and_low_ranks(
    features: Tensor, labels: Tensor, k: int, index: str | NeighborIndex | None
) -> tuple[float, float]:
    """The shares of wrong labels where neighbours agree most, and by low ranks."""
    classes, codes = torch.unique(labels, return_inverse=True)
    features, ones = features.float(), torch.ones_like(codes, dtype=torch.float32)
    features = features - features.mean(dim=0)
    directions = normalize(features @ within_class_whitening(features, codes, ones, len(classes)))
    sums = directions.new_zeros(len(classes), directions.shape[1])
    sums.index_add_(0, codes, directions)
    hood = Neighborhood(index, "cosine")
    hood.build(directions, codes)
    shares, winners, low = [], [], torch.zeros(2, dtype=torch.float64, device=codes.device)
    rows = torch.arange(len(codes), device=codes.device)
    for block in torch.split(rows, max(1, _BLOCK // len(classes))):
        here, mine = directions[block], codes[block]
        distance, position, _ = hood.neighbors(here, mine, k, block)
        weights = neighbor_weights(distance, _SHARPNESS)
        votes = here.new_zeros(len(block), len(classes))
        votes.scatter_add_(1, hood.labels_at(position).clamp_min(0), weights)
        share, winner = votes.max(dim=1)
        shares.append(share / weights.sum(dim=1).clamp_min(1e-12))
        winners.append(winner)
        similarity, own = leave_one_out_similarity(here, sums, mine, ones[block])
        similarity.scatter_(1, mine.unsqueeze(1), own.unsqueeze(1))
        low += torch.stack(low_rank_counts(similarity, own))
    core = float(core_rate(torch.cat(shares), torch.cat(winners) != codes))
    return core, float(low[0] / low[1].clamp_min(1e-12))
