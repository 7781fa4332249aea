"""PRISM: how likely a label is right, given a memory, and which samples are kept for it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.checks import (
    on_host,
    require_count,
    require_floating,
    require_integer,
    require_number,
    require_positive,
    require_vector,
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


# A product that a rounding error keeps below a whole number is that number: 0.29 * 100.
_EXACT = 1e-9


def top_r_threshold(
    probabilities: Tensor, noise_rate: float | Tensor, known: Tensor | None = None
) -> Tensor:
    r"""The :math:`\lfloor R n \rfloor`-th smallest probability: what is above it is kept (TRM).

    Args:
        probabilities: (B,) floating point.
        noise_rate: :math:`R`, a number in ``[0, 1]``, or a 0-dim tensor.
        known: (B,) bool, the n samples that take part; None for all. Samples of a class that the
            memory does not hold have probability 1 without evidence and must stay out, or they
            would push the quantile up.

    Returns:
        0-dim float64 tensor; ``-inf``, which drops nobody, where :math:`\lfloor R n \rfloor` is 0.
        No transfer to the host.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import top_r_threshold
        >>> top_r_threshold(torch.tensor([0.4, 0.1, 0.3, 0.2]), noise_rate=0.5)
        tensor(0.2000, dtype=torch.float64)
    """
    require_floating("probabilities", probabilities, ndim=1)
    n: int | Tensor = len(probabilities)
    taking_part = probabilities.double()
    if known is not None:
        require_vector("known", known, len(probabilities), "probability")
        taking_part = torch.where(known, taking_part, math.inf)
        n = known.sum(dtype=torch.float64)  # of an integer the product has single precision
    if not isinstance(noise_rate, Tensor):
        require_number("noise_rate", noise_rate)
        if not 0 <= noise_rate <= 1:
            raise ValueError(f"noise_rate must be in [0, 1], got {noise_rate}")
    # With -inf in front the k-th smallest has the index k, from 0 on.
    ordered = torch.nn.functional.pad(taking_part.sort().values, (1, 0), value=-math.inf)
    drops = torch.as_tensor(noise_rate * n + _EXACT, device=ordered.device).long()
    return ordered.gather(0, drops.reshape(1)).squeeze(0)


class SmoothTopR(NamedTuple):
    """The threshold of a batch, and the window of quantiles after it.

    Attributes:
        threshold: 0-dim float64; ``-inf`` drops nobody.
        quantiles: (W,) float64, the latest at the end, zeros in front of the first.
        number: 0-dim int64, how many of them there are.
    """

    threshold: Tensor
    quantiles: Tensor
    number: Tensor


def smooth_top_r(
    probabilities: Tensor,
    noise_rate: float | Tensor,
    known: Tensor,
    quantiles: Tensor,
    number: Tensor,
) -> SmoothTopR:
    r"""The mean of the last W of :func:`top_r_threshold`, this batch's included (PRISM, Eq. 4).

    Where nobody would be above it, the window starts again with this batch alone; the best ones
    are above the threshold even then. A batch with the quantile ``-inf`` does not enter the
    window.

    Args:
        probabilities: (B,) as in :func:`top_r_threshold`, with B >= 1.
        noise_rate: as there.
        known: (B,) as there.
        quantiles: (W,) float64, of the batches before.
        number: 0-dim int64, how many there are.
    """
    quantile = top_r_threshold(probabilities, noise_rate, known)
    older = quantiles.narrow(0, 1, len(quantiles) - 1)
    number_now = (number + 1).clamp_max_(len(quantiles))
    mean = (older.sum() + quantile) / number_now

    best = torch.where(known, probabilities.double(), math.inf).amax()
    starts_again = best <= mean
    just_below = torch.nextafter(best, torch.full_like(best, -math.inf))
    threshold = torch.where(starts_again, torch.minimum(quantile, just_below), mean)

    older = older.masked_fill(starts_again, 0)
    number_now = number_now.masked_fill_(starts_again, 1)
    counts = quantile > -math.inf
    return SmoothTopR(
        threshold,
        torch.where(counts, torch.cat([older, quantile.reshape(1)]), quantiles),
        torch.where(counts, number_now, number),
    )


def smooth_top_r_on_host(
    probabilities: Array, noise_rate: float, known: Array, quantiles: Array, number: int
) -> tuple[float, Array, int]:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    ordered = np.sort(probabilities if known.all() else np.where(known, probabilities, math.inf))
    drops = int(noise_rate * np.count_nonzero(known) + _EXACT)
    quantile = float(ordered[drops - 1]) if drops else -math.inf
    if not quantile > -math.inf:
        return quantile, quantiles, number
    number = min(number + 1, len(quantiles))
    threshold = (float(quantiles[1:].sum()) + quantile) / number
    best = float(ordered[-1])
    if best <= threshold:
        threshold = min(quantile, math.nextafter(best, -math.inf))
        quantiles, number = np.zeros_like(quantiles), 1
    return threshold, np.concatenate([quantiles[1:], [quantile]]), number


Array = npt.NDArray[Any]

_NONE = 1e-9  # less than any number of samples


def low_rank_counts(
    similarities: Tensor, own: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""How many labels rank in the lower half of the classes, and how many would if all were wrong.

    Their ratio estimates the share of wrong labels. A wrong label says nothing of its sample, so
    that the rank of the given class among the others is uniform; a right label ranks near the
    top. Hence the lower half of the ranks holds half of the wrong labels and next to none of the
    right ones: Storey's estimate of the proportion of true null hypotheses, at
    :math:`\lambda = 1/2`. Labels that are wrong *and* similar to the right ones, such as a class's
    neighbour in a hierarchy, rank high and are not counted: the estimate is a lower bound then.

    Args:
        similarities: (B, C) floating point, of each sample with each class; ``-inf`` for classes
            that are not there, for all samples alike. Only their order counts.
        own: (B,) the similarity to the class of each sample's label, from
            :func:`~noisydml.functional.own_similarity`.
        counted: (B,) bool, the samples that take part; None for all.

    Returns:
        Two 0-dim float64 tensors, to be summed over batches before they are divided. The middle
        one of an odd number of ranks counts half. Samples whose own class is not there, or is the
        only one, count in neither. No transfer to the host.

    References:
        Storey, A direct approach to false discovery rates, JRSS B 2002.

    Example:
        >>> import torch
        >>> from noisydml.functional import low_rank_counts, own_similarity
        >>> similarities = torch.eye(8) - torch.arange(8) / 100
        >>> labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 6])  # the last two are wrong
        >>> found, expected = low_rank_counts(similarities, own_similarity(similarities, labels))
        >>> found / expected
        tensor(0.2500, dtype=torch.float64)
    """
    require_floating("similarities", similarities, ndim=2)
    require_floating("own", own, ndim=1)
    require_vector("own", own, len(similarities), "row of similarities")
    present = _present(similarities)
    known = (own > -math.inf) & (present > 1)
    if counted is not None:
        require_vector("counted", counted, len(similarities), "row of similarities")
        known = known & counted
    # 1 in the lower half of the ranks, -1 in the upper one, 0 in the middle.
    half = torch.sub(_above(similarities, own), present, alpha=0.5).sign_()
    expected = known.sum(dtype=torch.float64) / 2
    return (half * known).sum(dtype=torch.float64).div_(2).add_(expected), expected


def smooth_noise_rate(
    similarities: Tensor, own: Tensor, counted: Tensor | None, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The estimate over the last W batches, this one included, but never above 1.

    Args:
        similarities: (B, C) as in :func:`low_rank_counts`.
        own: (B,) as there.
        counted: (B,) bool or None, as there.
        counts: (W, 2) float64, :func:`low_rank_counts` of the batches before, the latest at the
            end.

    Returns:
        The rate, 0-dim float64, 0 where there is nothing to go by; (W, 2) the counts after it.
    """
    latest = torch.stack(low_rank_counts(similarities, own, counted)).unsqueeze(0)
    counts = torch.cat([counts.double().narrow(0, 1, len(counts) - 1), latest])
    in_all = counts.sum(dim=0)
    rate = in_all.select(0, 0) / in_all.select(0, 1).clamp_min(_NONE)
    return rate.clamp_max(1), counts


def smooth_noise_rate_on_host(
    similarities: Array, own: Array, counted: Array, counts: Array
) -> tuple[float, Array]:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    found = expected = 0.0
    present = np.count_nonzero(similarities[0] > -math.inf)
    if present > 1:
        narrow = np.min_scalar_type(similarities.shape[1])  # the fewer bytes, the faster
        above = (similarities > own[:, np.newaxis]).sum(axis=1, dtype=narrow)
        half = np.sign(above[counted] - 0.5 * present)
        found, expected = float(half.sum() + len(half)) / 2, len(half) / 2
    counts = np.concatenate([counts[1:], [[found, expected]]])
    found, expected = counts.sum(axis=0).tolist()
    return min(found / max(expected, _NONE), 1.0), counts


def _present(similarities: Tensor) -> Tensor:
    """0-dim int64, how many classes are there."""
    return (similarities.narrow(0, 0, min(1, len(similarities))) > -math.inf).count_nonzero()


def _above(similarities: Tensor, own: Tensor) -> Tensor:
    """(B,) how many classes are above the own one, 0 where that is the nearest.

    A wrong label has 1 to K, the right class being one of them. A sum of floats is several times
    as fast as one of bools, and exact up to 2^24 classes.
    """
    dtype = torch.promote_types(similarities.dtype, torch.float32)
    higher = torch.empty_like(similarities, dtype=dtype)
    return torch.gt(similarities, own.unsqueeze(1), out=higher).sum(dim=1)


# An estimate of this or more says that the features tell too little yet, not that most labels are
# wrong: to drop the lowest would be to drop nearly at random, too many for anything to be learned.
_NOTHING_LEARNED = 0.7


class Window(NamedTuple):
    """What is kept of the last W batches.

    Attributes:
        quantiles: (W,) float64, the latest at the end, zeros in front of the first.
        number: 0-dim int64, how many of them there are.
        low_ranks: (W, 2) float64, :func:`~noisydml.functional.low_rank_counts` of the batches, the
            latest at the end; None where the noise rate is given.
    """

    quantiles: Tensor
    number: Tensor
    low_ranks: Tensor | None


class Candidates(NamedTuple):
    """A batch of one row or more to choose from.

    Attributes:
        similarities: (B, C) from :func:`~noisydml.functional.class_similarity`, without a graph.
        labels: (B,) integers in ``[0, C)``.
        scores: (B,) in the place of Eq. 7, ``-inf`` for a class that the memory does not hold;
            None for Eq. 7.
        samples: (B,) bool, which rows take part in quantile and estimate; None for all.
        noise_rate: R; None to have it estimated.
        progress: 0-dim integer; nobody is dropped while it is below ``warmup``.
        warmup: see there.
    """

    similarities: Tensor
    labels: Tensor
    scores: Tensor | None
    samples: Tensor | None
    noise_rate: float | None
    progress: Tensor
    warmup: int


class Selection(NamedTuple):
    """What is chosen from a batch.

    Attributes:
        scores: (B,) float64, 1 for a class that the memory does not hold.
        keep: (B,) bool.
        threshold: 0-dim float64, what the scores must be above; ``-inf`` drops nobody.
        noise_rate: 0-dim float64, given or estimated.
        window: the window after the batch.
    """

    scores: Tensor
    keep: Tensor
    threshold: Tensor
    noise_rate: Tensor
    window: Window


def select(batch: Candidates, window: Window) -> Selection:
    """PRISM's Alg. 1, lines 1 to 14, given the window of the batches before."""
    choose = _select_on_host if on_host(batch.similarities) else _select_on_device
    return choose(batch, window)


def _select_on_device(batch: Candidates, window: Window) -> Selection:
    own = own_similarity(batch.similarities, batch.labels)
    evidence = own if batch.scores is None else batch.scores
    known = evidence != -math.inf  # so is NaN, which is above no threshold
    if batch.scores is None:
        scores = softmax_probability(batch.similarities, batch.labels).double()
    else:
        scores = torch.where(known, evidence, 1.0).double()
    counted = known if batch.samples is None else known & batch.samples
    if batch.noise_rate is None:
        assert window.low_ranks is not None
        rate, low_ranks = smooth_noise_rate(
            batch.similarities, own, batch.samples, window.low_ranks
        )
        to_drop = rate.masked_fill(rate >= _NOTHING_LEARNED, 0)
    else:
        to_drop = rate = scores.new_full((), batch.noise_rate)
        low_ranks = None
    smooth = smooth_top_r(scores, to_drop, counted, window.quantiles, window.number)
    threshold = smooth.threshold.masked_fill(batch.progress < batch.warmup, -math.inf)
    keep = (scores > threshold) | known.logical_not()
    after = Window(smooth.quantiles, smooth.number, low_ranks)
    return Selection(scores, keep, threshold, rate, after)


def _select_on_host(batch: Candidates, window: Window) -> Selection:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    similarities = batch.similarities.numpy()
    of_label = (np.arange(len(similarities)), batch.labels.numpy())
    own = similarities[of_label]
    evidence = own if batch.scores is None else batch.scores.numpy()
    known = evidence != -math.inf
    if batch.scores is None:
        evidence = batch.similarities.softmax(dim=1).numpy()[of_label]
    scores = np.where(known, evidence, 1).astype(np.float64)
    samples = True if batch.samples is None else batch.samples.numpy()
    rate, low_ranks = batch.noise_rate, None
    if rate is None:
        assert window.low_ranks is not None
        ranked, before = (own > -math.inf) & samples, window.low_ranks.double().numpy()
        rate, after = smooth_noise_rate_on_host(similarities, own, ranked, before)
        low_ranks = torch.from_numpy(after)
    threshold, quantiles, number = smooth_top_r_on_host(
        scores,
        0.0 if batch.noise_rate is None and rate >= _NOTHING_LEARNED else rate,
        known & samples,
        window.quantiles.double().numpy(),
        int(window.number),
    )
    if int(batch.progress) < batch.warmup:
        threshold = -math.inf
    return Selection(
        torch.from_numpy(scores),
        torch.from_numpy((scores > threshold) | ~known),
        torch.from_numpy(np.array(threshold)),
        torch.from_numpy(np.array(rate, dtype=np.float64)),
        Window(torch.from_numpy(quantiles), window.number.new_full((), number), low_ranks),
    )
