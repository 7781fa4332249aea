"""What a sample's nearest neighbours say of its label (N2D2)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from noisydml.functional.checks import (
    require_floating,
    require_integer,
    require_positive,
    require_tensor,
)
from noisydml.functional.products import largest_magnitude, unit_rows

_FAR = 80.0  # exp(-80) is no vote beside any other, and much less would be slow: subnormal
_LARGEST = torch.iinfo(torch.int64).max
_TINY = 1e-30
_BLOCK = 65_536  # features that a batch is compared with at once


class NeighborVote(NamedTuple):
    """The outcome of a vote, for each of B samples."""

    score: Tensor  # (B,) float64 in [0, 1], votes for the given label over the strongest one's
    majority: Tensor  # (B,) int64, the strongest label
    support: Tensor  # (B,) float64 in [0, 1], the majority's share of all votes
    runner_up: Tensor  # (B,) float64 in [0, 1], the votes of the next label over the majority's


# How often the sample itself is taken to be among the features, if nobody knows where: a sampler
# that draws several of each class at random draws one in four twice or more often.
REPEATED = 3


def neighbor_label_score(
    neighbor_labels: Tensor, labels: Tensor, weights: Tensor | None = None
) -> NeighborVote:
    r"""How well the neighbours support each label: :math:`n_y / \max_j n_j` (N2D2, section 3.1).

    :math:`n_j` is the number of neighbours of class j, or the sum of their weights. With counts,
    a score below :math:`\tfrac12` is :math:`2 n_y < \max_j n_j`, exactly. Of classes with equal
    votes the given one is the majority, else the one with the smallest label.

    Args:
        neighbor_labels: (B, k) integers, the labels of each sample's neighbours, in any order.
        labels: (B,) integers, the given labels.
        weights: (B, k) floating point, not negative, the weight of each vote; None for one each.

    Returns:
        :class:`NeighborVote`; without any votes the score is 1, the majority the given label, the
        rest 0. O(B k log k), whatever the number of classes. No transfer to the host.

    Raises:
        TypeError: if labels are no integers, or weights not floating point.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import neighbor_label_score
        >>> neighbor_labels = torch.tensor([[7, 7, 7, 2], [7, 3, 3, 3]])
        >>> vote = neighbor_label_score(neighbor_labels, torch.tensor([7, 7]))
        >>> vote.score.tolist(), vote.majority.tolist(), vote.support.tolist()
        ([1.0, 0.3333333333333333], [7, 3], [0.75, 0.75])
    """
    _check(neighbor_labels, labels, weights)
    neighbor_labels, labels = neighbor_labels.long(), labels.long()
    size, k = neighbor_labels.shape
    if size == 0 or k == 0:
        zeros = torch.zeros(size, dtype=torch.float64, device=labels.device)
        return NeighborVote(zeros + 1, labels, zeros, zeros)
    ordered, order = neighbor_labels.sort(dim=1)
    votes = torch.ones_like(ordered, dtype=torch.float64)
    if weights is not None:
        votes = weights.double().gather(1, order)
    # Equal labels lie side by side: votes up to here, less those before the run of this label.
    until = votes.cumsum(dim=1)
    starts_run = torch.nn.functional.pad(ordered.diff(dim=1) != 0, (1, 0), value=True)
    before = torch.where(starts_run, until - votes, 0.0).cummax(dim=1).values
    run = until - before  # (B, k), at the end of a run the votes of its label
    most = run.amax(dim=1)
    own = torch.where(ordered == labels.unsqueeze(1), run, 0.0).amax(dim=1)
    strongest = torch.where(run == most.unsqueeze(1), ordered, _LARGEST).amin(dim=1)
    total = until.select(1, -1)
    any_votes = total > 0
    majority = torch.where(own == most, labels, strongest)  # as it is without any vote
    second = torch.where(ordered == majority.unsqueeze(1), 0.0, run).amax(dim=1)
    return NeighborVote(
        torch.where(any_votes, own / most, 1.0),
        majority,
        torch.where(any_votes, most / total, 0.0),
        torch.where(any_votes, second / most, 0.0),
    )


def neighbor_weights(distance: Tensor, sharpness: float) -> Tensor:
    r"""Weight of each neighbour's vote, by its distance relative to the others'.

    .. math:: w_j = \exp\left(-s\, \frac{d_j}{\frac{1}{k}\sum_{j'} d_{j'}}\right)

    They do not depend on the scale of the embeddings, nor on how dense they lie. The paper gives
    one vote to every neighbour.

    Args:
        distance: (B, k) floating point, not negative: half of the squared distances. Infinite
            where there is no neighbour, which then has no weight and no part in the mean.
        sharpness: :math:`s`, finite and above 0; the smaller, the more alike the votes.

    Returns:
        (B, k) of the dtype of ``distance``, in ``[0, 1]``. All 1 where every distance is 0.

    Raises:
        TypeError: if distances are not floating point, or the sharpness is no number.
        ValueError: if distances are not of two dimensions, or the sharpness is not finite and above
            0.

    Example:
        >>> import torch
        >>> from noisydml.functional import neighbor_weights
        >>> neighbor_weights(torch.tensor([[0.1, 0.2, 0.6]]), sharpness=2.0)
        tensor([[0.5134, 0.2636, 0.0183]])
    """
    require_floating("distance", distance, ndim=2)
    require_positive("sharpness", sharpness)
    if distance.shape[1] == 0:
        return distance
    there = distance.isfinite()
    dtype = torch.promote_types(distance.dtype, torch.float32)  # in which their sum is finite
    near = torch.where(there, distance, 0.0).to(dtype)
    mean = near.sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp_min(1)
    relative = near / torch.where(mean > 0, mean, 1.0)
    weights = (relative.clamp_max(_FAR / sharpness) * -sharpness).exp() * there
    return weights.to(distance.dtype)


def may_be_own(found: Tensor, labels: Tensor, most: int | Tensor = REPEATED) -> Tensor:
    """Which of the nearest may be the sample itself, if nobody knows where it is among them.

    Those up to the first of another label, if they are not too many.

    Args:
        found: (B, K) integers, the labels of the nearest, the nearest first; negative for none.
        labels: (B,) integers in ``[0, C)``, of the samples.
        most: how many they are at most: a number, or (B,) integers.

    Returns:
        (B, K) bool.

    Example:
        >>> import torch
        >>> from noisydml.functional.neighbors import may_be_own
        >>> may_be_own(torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]), torch.tensor([1, 1])).int()
        tensor([[1, 1, 0, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    same = (found == labels.unsqueeze(1)).long()
    nearest = same.cumprod(dim=1)  # 1 up to the first of another label
    limit = most.unsqueeze(1) if isinstance(most, Tensor) else most
    return (nearest > 0) & (nearest.cumsum(dim=1) <= limit)


def nearest_of_parts(distance: Tensor, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each query, from the nearest in every part of a set.

    Args:
        distance: (P, B, K) floating point, of the K nearest in each of P parts, in any order;
            infinite where a part has fewer.
        row: (P, B, K) integers, which row of the whole set each of them is.
        k: how many are wanted.

    Returns:
        (B, k) distances from the nearest to the farthest, of equal ones that of the lowest row
        first, as a search of the whole set has them; and (B, k) int64 columns of the (B, P K)
        candidates, those of the first part first. k is at most P K.

    Example:
        >>> import torch
        >>> from noisydml.functional.neighbors import nearest_of_parts
        >>> distance = torch.tensor([[[0.1, 0.5]], [[0.3, 0.5]]])  # of one query, in two parts
        >>> row = torch.tensor([[[4, 2]], [[3, 1]]])
        >>> nearest_of_parts(distance, row, k=3)
        (tensor([[0.1000, 0.3000, 0.5000]]), tensor([[0, 2, 3]]))
    """
    distance, row = (each.transpose(0, 1).flatten(1) for each in (distance, row))
    by_row = row.argsort(dim=1)
    nearest, order = distance.gather(1, by_row).sort(dim=1, stable=True)
    return nearest[:, :k], by_row.gather(1, order[:, :k])


def nearest_of_label(
    rows: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    metric: Literal["cosine", "euclidean"],
) -> Tensor:
    """Which feature with the label of a row is nearest to it; O(B N D), in blocks.

    Args:
        rows: (B, D) float32.
        labels: (B,) integers, not negative.
        features: (N, D) float32; with ``"cosine"`` unit vectors.
        feature_labels: (N,) integers, -1 for a feature that is none, all of whose numbers are 0.
        metric: by directions or by Euclidean distance.

    Returns:
        (B,) int64, of equally near ones the first; -1 where no feature has the label.

    Example:
        >>> import torch
        >>> from noisydml.functional.neighbors import nearest_of_label
        >>> features, feature_labels = torch.eye(3), torch.tensor([0, 0, 1])
        >>> row = torch.tensor([[0.1, 0.8, 0.9]])
        >>> [nearest_of_label(row, torch.tensor([y]), features, feature_labels, "cosine").item()
        ...  for y in range(3)]
        [1, 2, -1]
    """
    if metric == "cosine":
        rows = unit_rows(rows)
    else:  # beside the squares of what all have in common little would be left of the rest
        center = (features / (feature_labels >= 0).sum().clamp_min(1)).sum(dim=0)
        features = features - center
        size = largest_magnitude(features).clamp_min(_TINY)
        features, rows = features / size, (rows - center) / size
    best = rows.new_full(labels.shape, -math.inf)
    nearest, start = torch.full_like(labels, -1, dtype=torch.int64), 0
    for block in torch.split(features, _BLOCK):
        near = rows @ block.T - 0.5 * block.square().sum(dim=1)
        other = labels.unsqueeze(1) != feature_labels.narrow(0, start, len(block))
        value, place = near.masked_fill(other, -math.inf).max(dim=1)
        nearest = torch.where(value > best, place + start, nearest)
        best = torch.maximum(best, value)
        start += len(block)
    return nearest


def smallest(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row and their columns; of equal ones the first, and in this order."""
    k, size = min(k, distance.shape[1]), distance.shape[1]
    if distance.device.type != "cpu":  # CUDA's topk takes the first of equal ones
        column = distance.topk(k, dim=1, largest=False).indices
    else:  # which it takes here, nobody knows
        value, column = distance.topk(min(k + 1, size), dim=1, largest=False)
        tied = value.select(1, k - 1) == value.select(1, -1)
        if k < size and tied.any():
            rows, most = distance[tied], value[tied, k, None]
            below, equal = rows < most, rows == most
            taken = equal.cumsum(dim=1) <= k - below.sum(dim=1, keepdim=True)
            column[tied, :k] = (below | equal & taken).nonzero()[:, 1].view(-1, k)
    column = column.narrow(1, 0, k).sort(dim=1).values
    value, order = distance.gather(1, column).sort(dim=1, stable=True)
    return value, column.gather(1, order)


def _check(neighbor_labels: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    require_integer("labels", labels)
    require_tensor("neighbor_labels", neighbor_labels, "a (B, k) integer torch.Tensor")
    if neighbor_labels.ndim != 2:
        got = tuple(neighbor_labels.shape)
        raise ValueError(f"neighbor_labels must be a (B, k) tensor, got {got}")
    require_integer("neighbor_labels", neighbor_labels.reshape(-1))
    size = len(neighbor_labels)
    if size != len(labels):
        raise ValueError(f"neighbor_labels must have {len(labels)} rows, one per label, got {size}")
    if weights is not None:
        require_floating("weights", weights)
        if weights.shape != neighbor_labels.shape:
            raise ValueError(
                f"weights must be of the shape of neighbor_labels, {tuple(neighbor_labels.shape)}, "
                f"got {tuple(weights.shape)}"
            )
