"""Which labels are wrong, in any embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisydml.audit.issues import LabelIssues
from noisydml.audit.labels import Classes, read_labels, refuse_masked
from noisydml.audit.rows import EmbeddingRows, TooFarApart
from noisydml.functional.checks import (
    require_count,
    require_dense,
    require_noise_rate,
    require_share,
)
from noisydml.functional.extras import optional
from noisydml.functional.products import largest_magnitude
from noisydml.memory.index import Metric, NeighborIndex, require_metric
from noisydml.memory.judge import LabelJudgement, judge_labels
from noisydml.memory.metric import better_metric

_NARROW = 64  # columns, up to which distances may tell more than directions
_HEAVIEST = 1e6  # of the weights that are given; float32 holds sums of their squares


def find_label_issues(
    embeddings: Any,
    labels: Any,
    *,
    k: int = 50,
    threshold: float = 0.5,
    metric: Metric | None = None,
    index: str | NeighborIndex | None = None,
    unlabeled: Any = -1,
    sample_weight: Any = None,
    noise_rate: float | None = None,
    progress: bool = False,
) -> LabelIssues:
    r"""Find the labels that are most likely wrong, and say how many are.

    One call on any embeddings, of any network, in any order; neither the share nor the kind of
    the wrong labels is asked for. Every label is judged by class centers in whitened space and by
    the nearest neighbours, the sample itself left out of both, with a model of how wrong labels
    come about that labels held out decide on: :func:`noisydml.memory.judge.judge_labels`.
    Near-identical samples are one voter; those with different labels are ``contradictions``.

    Args:
        embeddings: (N, D) finite floating point: a tensor, an array, a sequence of rows, or a
            data frame, whose columns may hold any numbers. A memory-mapped array
            (``numpy.load(mmap_mode="r")``) and a list of parts, (n, D) arrays or tensors of any
            float, are read in blocks, of which at most 256 numbers a sample stay in memory.
        labels: (N,) or (N, 1) given labels: integers, or names of any kind (strings, categories,
            bools, ...), as a tensor, array, sequence, or column of pandas, polars or pyarrow.
            None, NaN, NA and NaT stand for no label: such a sample gets a suggestion, does not
            vote, and is never counted as wrong.
        unlabeled: the label that also stands for none, -1 as in scikit-learn; None for no other.
            Unless it is None, other negative integers are refused.
        k: number of neighbours, at least 1.
        threshold: labels that are less likely right than this are issues; in ``[0, 1]``. Of no
            effect with ``noise_rate``.
        metric: ``"cosine"`` if the length of an embedding means nothing; ``"euclidean"`` if it
            counts how far apart two of them are. By default ``"cosine"``, unless there are at most
            64 columns and distances tell more of labels that are held out, as they mostly do of
            tables.
        index: what finds the neighbours: ``"torch"``, a FAISS factory string such as
            ``"IVF256,Flat"``, or a :class:`~noisydml.memory.index.NeighborIndex`. By default exact,
            and on the CPU from 131,073 samples on an inverted file.
        sample_weight: (N,) how far each label is to be trusted from the start, finite and not
            negative; None for 1. If one is above a million, all are divided alike until none is.
        noise_rate: the share of wrong labels in ``[0, 1)``, where it is known, as from some that
            were checked by hand; None to estimate it. So many of the labels that can be judged
            become issues, rounded: those of the lowest score, of equal ones the first in order.
            None do where the features do not tell the labels.
        progress: whether to show a progress bar; needs tqdm.

    Returns:
        :class:`LabelIssues`, whose ``classes`` are the names, if the labels are any. The only
        sample of its class cannot be judged: its score is 1, its probability NaN.

    Raises:
        TypeError: if embeddings are not floating point, or labels neither integers nor names:
            floats that are not whole, complex numbers, lists.
        ValueError: if embeddings are not finite or masked in part, or float32 cannot hold how far
            they lie apart; if shapes do not fit, a setting is outside the values above, a label is
            negative, or there is one class beside -1, which may be a class then.

    ``neighbors`` of the issues are the first eight of the k that the judge has seen, in whitened
    space. Beside the embeddings it takes about 3 kB a sample where they are 128 wide.

    Example:
        >>> import torch
        >>> from noisydml import find_label_issues
        >>> angles = torch.cat([torch.linspace(0, 0.5, 20), torch.linspace(2, 2.5, 20)])
        >>> embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> labels = torch.tensor([0] * 20 + [1] * 20)
        >>> labels[3] = 1
        >>> print(find_label_issues(embeddings, labels).summary(top=0))  # doctest: +ELLIPSIS
        1 of 40 labels are most likely wrong (2.5 %).
        About 2.5 % of all labels are wrong (between 0.0 and 7.4 %), if wrong labels fall on ...
        >>> find_label_issues(embeddings, labels).rows()[0]["sample_id"]
        3
    """
    if metric is not None:
        require_metric(metric)
    rows = EmbeddingRows(embeddings, metric or "cosine")
    labels, classes = read_labels(labels, rows.shape[0], unlabeled)
    labels = labels.to(rows.device)
    require_count("k", k)
    require_share("threshold", threshold)
    if noise_rate is not None:
        require_noise_rate(noise_rate)
        noise_rate = float(noise_rate)
    if isinstance(index, NeighborIndex) and index.metric != "cosine":
        raise ValueError(
            f"index must have the metric 'cosine', whatever metric is given here, got "
            f"{index.metric!r}: the judge whitens the embeddings and compares directions"
        )
    weights = None
    if sample_weight is not None:
        weights = _read_weights(sample_weight, len(labels)).to(rows.device)
    if metric is None:
        metric, rows = _with_metric(rows, labels, weights, k)
    with _bar(progress) as advance:
        found = judge_labels(
            rows,
            labels,
            trust=weights,
            k=k,
            index=index,
            noise_rate=noise_rate,
            metric=metric,
            progress=advance,
        )
    return issues_of(found, labels, threshold, classes, noise_rate)


def _with_metric(
    rows: EmbeddingRows, labels: Tensor, weights: Tensor | None, k: int
) -> tuple[Metric, EmbeddingRows]:
    """By what embeddings are better compared, and their rows for it; given those for cosines."""
    if rows.shape[1] <= _NARROW:
        with suppress(TooFarApart):
            distances = rows.compared_by("euclidean")
            if better_metric(rows, distances, labels, weights, k) == "euclidean":
                return "euclidean", distances
    return "cosine", rows


def issues_of(
    found: LabelJudgement,
    labels: Tensor,
    threshold: float = 0.5,
    classes: Classes = None,
    share: float | None = None,
) -> LabelIssues:
    """What the judge found, as a table of the labels less probable than the threshold.

    With a ``share`` it is one of that share of the labels that could be judged.
    """
    given = labels >= 0
    score = torch.where(given, found.score, math.nan)
    probability = torch.where(given & found.known, found.probability, math.nan)
    order = torch.where(found.known, score, 2).argsort(stable=True)
    number = int((probability < threshold).sum())
    if share is not None:
        number = 0 if math.isnan(found.noise_rate) else round(share * int(found.known.sum()))
    issues = order[:number]
    return LabelIssues(
        issues=issues.cpu(),
        score=score.cpu(),
        given_labels=labels.cpu(),
        suggested_labels=found.suggested_labels.cpu(),
        support=found.support.cpu(),
        noise_rate=found.noise_rate,
        neighbors=found.neighbors[issues].cpu(),
        probability=probability.cpu(),
        noise_rate_bounds=found.noise_rate_bounds if share is None else None,
        found_by=found.found_by,
        contradictions=_contradictions(found.copies, labels),
        classes=classes,
    )


def _contradictions(copies: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The groups of copies that have several labels."""
    rows = (labels >= 0).nonzero().squeeze(1)
    group, label = copies[rows], labels[rows]
    pairs = torch.unique(torch.stack([group, label], dim=1), dim=0)
    groups, different = torch.unique(pairs[:, 0], return_counts=True)
    at_odds = torch.isin(group, groups[different > 1])
    rows, group = rows[at_odds].cpu(), group[at_odds].cpu()
    _, sizes = torch.unique(group, return_counts=True)
    return torch.split(rows[group.argsort(stable=True)], sizes.tolist()) if len(rows) else ()


def _read_weights(value: Any, length: int) -> Tensor:
    if not isinstance(value, Tensor):
        refuse_masked("sample_weight", value)
        try:
            value = torch.from_numpy(np.array(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(f"sample_weight must hold {length} numbers: {error}") from error
    require_dense("sample_weight", value)
    weights: Tensor = value.detach()
    if weights.shape != (length,) or weights.is_complex():
        raise ValueError(f"sample_weight must have {length} entries, got {tuple(weights.shape)}")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("sample_weight must be finite and not negative")
    weights = weights.double()
    return (weights / (largest_magnitude(weights) / _HEAVIEST).clamp_min(1)).float()


@contextmanager
def _bar(progress: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What the judge calls after each round."""
    if not progress:
        yield None
        return
    tqdm = optional("tqdm", "progress").tqdm
    with tqdm(desc="judging labels") as bar:

        def advance(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield advance
