"""Which labels are wrong, in any embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noisydml.audit.issues import LabelIssues
from noisydml.audit.labels import read_embeddings, read_labels
from noisydml.functional import neighbor_label_score, neighbor_weights
from noisydml.functional.checks import require_count
from noisydml.memory.index import Metric, NeighborIndex
from noisydml.memory.neighbors import Neighborhood

_BLOCK = 4096  # queries searched, and votes counted, at once
_SHARPNESS = 8.0  # of the weights of the votes; figures for this and the next in docs/audit.md
_ROUNDS = 6  # of votes; three leave half of 40 % wrong labels of two classes, more change little
_SHOWN = 8  # neighbours of an issue that are kept, to be looked at


def find_label_issues(
    embeddings: Any,
    labels: Any,
    *,
    k: int = 200,
    threshold: float = 0.3,
    metric: Metric = "cosine",
    index: str | NeighborIndex | None = None,
    unlabeled: Any = -1,
) -> LabelIssues:
    r"""Find the labels that a sample's nearest neighbours speak against.

    One call on any embeddings, of any network, in any order; no noise rate is asked for. Each
    label is judged by the votes of its sample's k nearest neighbours, weighted by their distance
    (:func:`~noisydml.functional.neighbor_weights`), for it against those for the strongest label
    (:func:`~noisydml.functional.neighbor_label_score`). Five more votes follow, in which each
    neighbour's is multiplied by the score that its own label has just got.

    Args:
        embeddings: (N, D) finite floating point: a tensor, an array, a sequence of rows, or a
            data frame, whose columns may hold any numbers.
        labels: (N,) or (N, 1) given labels: integers, or names of any kind (strings, categories,
            bools, ...), as a tensor, array, sequence, or column of pandas, polars or pyarrow.
            None, NaN, NA and NaT stand for no label: such a sample gets a suggestion, does not
            vote, and is never counted as wrong.
        unlabeled: the label that also stands for none, -1 as in scikit-learn; None for no other.
            Unless it is None, other negative integers are refused.
        k: number of neighbours, at least 1. Too many do no harm, as the weight of those from
            other classes vanishes: 200 serve classes of 5 as well as of thousands.
        threshold: labels of a lower score are issues; in ``[0, 1]``. Stricter than the 0.5 of
            training, where a right label dropped costs little.
        metric: ``"cosine"`` or ``"euclidean"``.
        index: what finds the neighbours: ``"torch"``, a FAISS factory string such as
            ``"IVF256,Flat"``, or a :class:`~noisydml.memory.index.NeighborIndex`; exact by default.

    Returns:
        :class:`LabelIssues`, whose ``classes`` are the names, if the labels are any. The only
        sample of its class cannot be judged and has score 1.

    Raises:
        TypeError: for embeddings that are not floating point, or labels that are neither integers
            nor names: floats that are not whole, complex numbers, lists.
        ValueError: for a NaN or infinity, a wrong shape, a bad setting, a negative label, or one
            class beside -1, which may be a class then.

    Memory: 12 k bytes a sample beside the embeddings and the index.

    Example:
        >>> import torch
        >>> from noisydml import find_label_issues
        >>> angles = torch.cat([torch.linspace(0, 0.5, 20), torch.linspace(2, 2.5, 20)])
        >>> embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> labels = torch.tensor([0] * 20 + [1] * 20)
        >>> labels[3] = 1
        >>> print(find_label_issues(embeddings, labels, k=10).summary())
        1 of 40 labels are most likely wrong (2.5 %).
              sample_id      given_label  suggested_label            score          support
                      3                1                0           0.0000           1.0000
    """
    embeddings = read_embeddings(embeddings)
    labels, classes = read_labels(labels, len(embeddings), unlabeled)
    labels = labels.to(embeddings.device)
    require_count("k", k)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    neighborhood = Neighborhood(index, metric)
    neighborhood.build(embeddings, labels)
    given = labels >= 0
    voters = given.nonzero().squeeze(1)
    found = []
    for rows in torch.split(torch.arange(len(labels), device=labels.device), _BLOCK):
        distance, position, others = neighborhood.neighbors(embeddings[rows], labels[rows], k, rows)
        found.append((rows, distance, _taken(voters, position), others))
    judged = torch.cat([others for *_, others in found]) | ~given  # (N,)

    trust = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    for _ in range(_ROUNDS):
        votes = [
            neighbor_label_score(
                _taken(labels, position),
                labels[rows],
                neighbor_weights(distance, _SHARPNESS) * trust.take(position.clamp_min(0)),
            )
            for rows, distance, position, _ in found
        ]
        score, majority, support, _ = (torch.cat(parts) for parts in zip(*votes, strict=True))
        trust = torch.where(judged & given, score, 1.0)
    issues = trust.argsort(stable=True)[: int((trust < threshold).sum())]
    near = torch.cat([position[:, :_SHOWN] for _, _, position, _ in found])
    return LabelIssues(
        issues=issues.cpu(),
        score=torch.where(given, trust, math.nan).cpu(),
        given_labels=labels.cpu(),
        suggested_labels=torch.where(judged, majority, labels).cpu(),
        support=torch.where(judged, support, 0.0).cpu(),
        noise_rate=len(issues) / max(len(voters), 1),
        neighbors=near.index_select(0, issues).cpu(),
        classes=classes,
    )


def _taken(values: Tensor, position: Tensor) -> Tensor:
    """The values at positions; -1 where the position is below 0."""
    if len(values) == 0:
        return torch.full_like(position, -1)
    return torch.where(position < 0, -1, values.take(position.clamp_min(0)))
