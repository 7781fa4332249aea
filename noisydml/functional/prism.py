"""PRISM: how likely a label is right, given a memory, and which samples are kept for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_integer,
    require_positive,
    require_share,
    require_vector,
    require_width,
)
from noisydml.functional.products import affine, unit_rows

_BLOCK = 4_000_000  # similarities that the pairwise form holds at once
_NONE = 1e-9  # less than any number of samples
_EXACT = 1e-9  # a product that rounding keeps below a whole number is that number: 0.29 * 100


def class_similarity(
    embeddings: Tensor, centers: Tensor, counts: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Mean cosine similarity of each embedding with each class in memory (PRISM, Eq. 5-6).

    .. math:: w_k^\top \frac{f(x_i)}{\lVert f(x_i) \rVert} / T

    Args:
        embeddings: (B, D) floating point; normalised here.
        centers: (C, D) :math:`w_k`, the **plain** mean of each class's normalised features, not
            normalised again (Eq. 6); finite, also where ``counts`` is 0.
        counts: (C,) integers, of how many features each mean is; 0 for a class that the memory
            does not hold.
        temperature: T, finite and above 0.

    Returns:
        (B, C) of at least float32, ``-inf`` for the classes that the memory does not hold.

    Raises:
        TypeError: if embeddings or centers are not floating point, counts no integers, or the
            temperature is no number.
        ValueError: if shapes do not fit, or the temperature is not finite and above 0.

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
    require_width("centers", centers, "embeddings", embeddings)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    unit = unit_rows(embeddings.to(dtype))
    absent = counts.to(dtype).clamp_max_(1).log_()  # (C,) 0, or -inf
    return affine(unit / temperature, centers.to(dtype), absent)


def class_similarity_pairs(
    embeddings: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    num_classes: int,
    temperature: float = 1.0,
) -> Tensor:
    r"""Mean cosine similarity with each class from all pairs, :math:`T(x_i, k)` of PRISM's Eq. 3.

    It agrees with :func:`class_similarity` up to rounding, and is here to show that. O(B M D)
    time, in blocks: no (B, M, D), nor even a (B, M) tensor for a large memory.

    Args:
        embeddings: (B, D) floating point; normalised here.
        features: (M, D) floating point, the memory; normalised here.
        feature_labels: (M,) integers in ``[0, num_classes)``, or -1 for entries to be ignored.
        num_classes: C.
        temperature: T, finite and above 0.

    Returns:
        (B, C) of at least float32, ``-inf`` for the classes that the memory does not hold.

    Raises:
        TypeError: if embeddings or features are not floating point, labels no integers, or
            ``num_classes`` or the temperature is no number.
        ValueError: if shapes do not fit, there is no class, or the temperature is not finite and
            above 0.

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
    require_width("features", features, "embeddings", embeddings)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    queries = unit_rows(embeddings.to(dtype)) / temperature
    labels = feature_labels.long()
    columns = torch.where(labels < 0, num_classes, labels)  # C for the ignored
    sums = queries.new_zeros(len(queries), num_classes + 1)
    ones = torch.ones(len(features), dtype=torch.int64, device=columns.device)
    counts = ones.new_zeros(num_classes + 1).index_add_(0, columns, ones)
    rows = max(1, _BLOCK // max(1, len(queries)))
    for block, column in zip(torch.split(features, rows), torch.split(columns, rows), strict=True):
        sums.index_add_(1, column, affine(queries, unit_rows(block.to(dtype))))
    means = torch.where(counts > 0, sums / counts.clamp_min(1), -math.inf)
    return means.narrow(1, 0, num_classes)


def own_similarity(similarities: Tensor, labels: Tensor) -> Tensor:
    """(B,) each sample's similarity to the class of its label, ``-inf`` where that is not held.

    With :func:`class_similarity` this is PRISM's ablation "memory-positive" (Eq. 13).

    Args:
        similarities: (B, C) from :func:`class_similarity`.
        labels: (B,) integers in ``[0, C)``.

    Raises:
        TypeError: if similarities are not floating point, or labels no integers.
        ValueError: if shapes do not fit.

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
    r"""(B,) probability that each label is right, from the similarities (PRISM, Eq. 2 and 7).

    .. math:: P(i) = \exp(s_{i y_i}) / \textstyle\sum_k \exp(s_{ik})

    The sum runs over the classes that the memory holds. A class that it does not hold has no
    center to compare with: its samples have probability 1 (Alg. 1, line 3).

    Args:
        similarities: (B, C) from :func:`class_similarity`.
        labels: (B,) integers in ``[0, C)``.

    Raises:
        TypeError: if similarities are not floating point, or labels no integers.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import softmax_probability
        >>> similarities = torch.tensor([[2.0, 0.0, -torch.inf]] * 2)
        >>> softmax_probability(similarities, torch.tensor([0, 2]))
        tensor([0.8808, 1.0000])
    """
    absent = own_similarity(similarities, labels) == -math.inf
    return own_similarity(similarities.softmax(dim=1), labels).masked_fill(absent, 1)


def clean_probability(
    embeddings: Tensor, labels: Tensor, centers: Tensor, counts: Tensor, temperature: float = 1.0
) -> Tensor:
    """Probability that each label is right, by class centers (PRISM, Eq. 6-7).

    :func:`softmax_probability` of :func:`class_similarity`.

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers in ``[0, C)``.
        centers: (C, D) plain means of each class's normalised features.
        counts: (C,) integers, of how many features each mean is.
        temperature: T, finite and above 0. The paper has 1, where the probabilities differ little
            from ``1 / C``; their order, which is what PRISM uses, depends on it too.

    Returns:
        (B,) of at least float32, in ``[0, 1]``. No transfer to the host; the largest tensor is
        (B, C).

    Raises:
        TypeError: if embeddings or centers are not floating point, labels or counts no integers, or
            the temperature is no number.
        ValueError: if shapes do not fit, or the temperature is not finite and above 0.

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
    """Probability that each label is right, by all pairs with the memory (PRISM, Eq. 2-3).

    :func:`softmax_probability` of :func:`class_similarity_pairs`.

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers in ``[0, C)``.
        features: (M, D) floating point, the memory; normalised here.
        feature_labels: (M,) integers in ``[0, C)``, or -1 for entries to be ignored.
        num_classes: C.
        temperature: T, finite and above 0.

    Returns:
        (B,) of at least float32, in ``[0, 1]``.

    Raises:
        TypeError: if embeddings or features are not floating point, labels no integers, or
            ``num_classes`` or the temperature is no number.
        ValueError: if shapes do not fit, there is no class, or the temperature is not finite and
            above 0.

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

    Raises:
        TypeError: if embeddings are not floating point, or labels no integers.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import batch_positive
        >>> batch_positive(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    require_floating("embeddings", embeddings, ndim=2)
    require_integer("labels", labels, len(embeddings))
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    unit = unit_rows(embeddings.to(dtype))
    same = (labels.unsqueeze(1) == labels.unsqueeze(0)).to(dtype)  # (B, B)
    cosines = affine(unit, unit)
    # Of equal scores rounding must not decide which is the lower: those of a class of one or two.
    cosines = ((cosines + cosines.T) / 2).clamp(-1, 1)
    cosines = cosines.diagonal_scatter(torch.ones_like(cosines.diagonal()))
    return (cosines * same).sum(dim=1) / same.sum(dim=1)


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
        TypeError: if probabilities are not floating point, or the rate is no number.
        ValueError: if shapes do not fit, or a rate on the host is outside ``[0, 1]``.

    Example:
        >>> import torch
        >>> from noisydml.functional import top_r_threshold
        >>> top_r_threshold(torch.tensor([0.4, 0.1, 0.3, 0.2]), noise_rate=0.5)
        tensor(0.2000, dtype=torch.float64)
    """
    require_floating("probabilities", probabilities, ndim=1)
    taking_part = probabilities.double()
    if known is not None:
        require_vector("known", known, len(probabilities), "probability")
        taking_part = torch.where(known, taking_part, math.inf)
        n = known.sum(dtype=torch.float64)  # of an integer the product has single precision
    else:
        n = taking_part.new_full((), len(probabilities))
    if not isinstance(noise_rate, Tensor):
        require_share("noise_rate", noise_rate)
    # With -inf in front the k-th smallest has the index k, from 0 on.
    ordered = pad(taking_part.sort().values, (1, 0), value=-math.inf)
    drops = (noise_rate * n + _EXACT).long()
    return ordered.gather(0, drops.reshape(1)).squeeze(0)


def smooth_top_r(
    probabilities: Tensor,
    noise_rate: float | Tensor,
    known: Tensor,
    quantiles: Tensor,
    number: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the last W of :func:`top_r_threshold`, this batch's included (PRISM, Eq. 4).

    Where nobody would be above it, the window starts again with this batch alone; the best ones
    are above the threshold even then. A batch with the quantile ``-inf`` does not enter the
    window.

    Args:
        probabilities: (B,) floating point, with B >= 1.
        noise_rate: R, a number in ``[0, 1]``, or a 0-dim tensor.
        known: (B,) bool, the samples that take part.
        quantiles: (W,) float64, those of the batches before, the latest at the end, zeros in front
            of the first.
        number: 0-dim int64, how many there are.

    Returns:
        The threshold, 0-dim float64, ``-inf`` where it drops nobody; and quantiles and number
        with this batch. No transfer to the host.

    Example:
        >>> import torch
        >>> from noisydml.functional.prism import smooth_top_r
        >>> probabilities, window = torch.tensor([0.4, 0.1, 0.3, 0.2]), torch.tensor([0.0, 0.1])
        >>> smooth_top_r(probabilities, 0.5, probabilities > 0, window.double(), torch.tensor(1))[0]
        tensor(0.1500, dtype=torch.float64)
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
    enters = quantile > -math.inf
    return (
        threshold,
        torch.where(enters, torch.cat([older, quantile.reshape(1)]), quantiles),
        torch.where(enters, number_now, number),
    )


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
            :func:`own_similarity`.
        counted: (B,) bool, the samples that take part; None for all.

    Returns:
        Two 0-dim float64 tensors, to be summed over batches before they are divided. The middle
        one of an odd number of ranks counts half. Samples whose own class is not there, or is the
        only one, count in neither. No transfer to the host.

    References:
        Storey, A direct approach to false discovery rates, JRSS B 2002.

    Raises:
        TypeError: if similarities, ``own`` among them, are not floating point.
        ValueError: if shapes do not fit.

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
    present = (similarities.narrow(0, 0, min(1, len(similarities))) > -math.inf).count_nonzero()
    known = (own > -math.inf) & (present > 1)
    if counted is not None:
        require_vector("counted", counted, len(similarities), "row of similarities")
        known = known & counted
    # How many classes are above the own one: 0 for the nearest; a wrong label has 1 to C, the right
    # class being one of them. A sum of floats is several times as fast as one of bools, and exact
    # up to 2^24 classes.
    higher = torch.empty_like(similarities, dtype=torch.promote_types(own.dtype, torch.float32))
    above = torch.gt(similarities, own.unsqueeze(1), out=higher).sum(dim=1)  # (B,)
    # 1 in the lower half of the ranks, -1 in the upper one, 0 in the middle.
    half = torch.sub(above, present, alpha=0.5).sign_()
    expected = known.sum(dtype=torch.float64) / 2
    return (half * known).sum(dtype=torch.float64).div_(2).add_(expected), expected


def smooth_noise_rate(
    similarities: Tensor, own: Tensor, counted: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The share of wrong labels by :func:`low_rank_counts` over W batches, this one included.

    Args:
        similarities: (B, C) floating point.
        own: (B,) the similarity to the class of each sample's label.
        counted: (B,) bool, the samples that take part.
        counts: (W, 2) float64, the counts of the batches before, the latest at the end.

    Returns:
        The rate, 0-dim float64 in ``[0, 1]``, 0 where there is nothing to go by; and the counts
        with this batch. No transfer to the host.
    """
    latest = torch.stack(low_rank_counts(similarities, own, counted)).unsqueeze(0)
    counts = torch.cat([counts.narrow(0, 1, len(counts) - 1), latest])
    found, expected = counts.sum(dim=0).unbind()
    return (found / expected.clamp_min(_NONE)).clamp_max(1), counts
