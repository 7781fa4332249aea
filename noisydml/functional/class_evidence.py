"""Of which classes whitened features are: class centers, leaving oneself out, votes, and copies."""

from __future__ import annotations

import itertools
import math
import warnings

import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.checks import (
    require_floating,
    require_integer,
    require_vector,
    require_width,
)
from noisydml.functional.parts import Whole
from noisydml.functional.products import full_precision

_TINY = 1e-12
_CHANCE = 1e-3  # copies that a sample would have by chance
_FLOOR = 0.02  # of a vote, shared by all classes
_TEMPERATURES, _PARTS = (0.05, 0.1, 0.2, 0.4), (0.3, 1.0)  # enough to compare features by
_RATES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUMBER_OF_SETTINGS = len(_TEMPERATURES) * len(_PARTS) * len(_RATES)
_PAIRS = 4096  # of rows compared at once
_SAME = 1e-5  # the distance of unit vectors that are equal but for rounding
_ROUNDING = 1e-3  # the square root of what a difference of squares has lost, as a cosine has
_LEAST_COSINE, _MOST_COSINE = 0.02, 0.98  # of two samples of a class, on average


def held_out_likelihood(similarity: Tensor, votes: Tensor, labels: Tensor) -> Tensor:
    r"""How likely labels are that have taught nothing, if wrong ones fall on all classes alike.

    :math:`p_{ic} \propto \exp(s_{ic} / T) \, v_{ic}^\kappa`, and
    :math:`P(y_i) = (1 - e) \, p_{i y_i} + \frac{e}{C - 1} (1 - p_{i y_i})`, for eight pairs of
    :math:`T` and :math:`\kappa` and ten rates :math:`e`.

    Args:
        similarity: (B, C) floating point, with the class centers.
        votes: (B, C) floating point, positive, each class's share of the neighbours' votes.
        labels: (B,) integers in ``[0, C)``.

    Returns:
        (80, B) float32, :math:`\log P(y_i)`.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import held_out_likelihood
        >>> near, votes = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.1, 0.9]])
        >>> torch.stack(held_out_likelihood(near, votes, torch.tensor([1])).exp().aminmax())
        tensor([0.1000, 0.9800])
    """
    rates, own, found = similarity.new_tensor(_RATES), labels.unsqueeze(1), []
    for temperature, part in itertools.product(_TEMPERATURES, _PARTS):
        logits = torch.add(similarity / temperature, votes.log(), alpha=part)
        right = logits.log_softmax(dim=1).gather(1, own).exp()
        likely = right * (1 - rates) + (1 - right) * rates / max(similarity.shape[1] - 1, 1)
        found.append(likely.clamp_min(_TINY).log().T)
    return torch.cat(found)


def vote_shares(ballots: Tensor, votes: Tensor, num_classes: int) -> Tensor:
    """Each class's share of its neighbours' votes, of which all classes share a fiftieth.

    Args:
        ballots: (B, K + 1) floating point, not negative: the trusted votes for each of K classes,
            and for all others together.
        votes: (B, k) floating point, not negative: those of all neighbours, trusted or not.
        num_classes: C, not below K.

    Returns:
        (B, K + 1) positive; the last is the mean of the other classes.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import vote_shares
        >>> vote_shares(torch.tensor([[1.0, 2.0, 0.0]]), torch.ones(1, 3), num_classes=2)
        tensor([[0.3366, 0.6634, 0.0098]])
    """
    floor = _FLOOR * votes.sum(dim=1, keepdim=True) + 1e-9
    total = ballots.sum(dim=1, keepdim=True) + floor
    each = ballots.clone()
    each[:, -1] /= max(num_classes - ballots.shape[1] + 1, 1)
    return (each + floor / num_classes) / total


@full_precision
def leave_one_out_similarity(
    features: Tensor,
    sums: Tensor,
    own_classes: Tensor,
    own_weights: Tensor,
    classes: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cosine similarity with the class centers; that of one's own class without oneself.

    :math:`s_{ic} = \cos(z_i, m_c)` with the sums :math:`m_c = \sum_j w_j z_j` over class c, less
    :math:`w_i z_i` for the class of sample i. A label that is wrong does not pull the center that
    it is compared with.

    Args:
        features: (N, D) float32, unit vectors :math:`z`.
        sums: (C, D) float32, :math:`m`.
        own_classes: (N,) integers in ``[0, C)``.
        own_weights: (N,) :math:`w_i`, with which each sample is in the sum of its own class.
        classes: (N, K) integers, ascending in each row, the classes that each sample is compared
            with; None for all.
        lengths: (C,) of the sums, where they are known already.

    Returns:
        (N, K) similarities, in which that to the own class counts the sample itself in, and (N,)
        those to the own class that do not. 0 for a class without any other sample.

    Raises:
        TypeError: if an argument is no tensor of that kind of dtype.
        ValueError: if shapes do not fit, or ``classes`` are not in ``[0, C)``.

    Example:
        >>> import torch
        >>> from noisydml.functional import leave_one_out_similarity
        >>> features, labels = torch.eye(2), torch.tensor([0, 0])
        >>> sums = torch.tensor([[1.0, 1.0]])
        >>> leave_one_out_similarity(features, sums, labels, torch.ones(2))[1]
        tensor([0., 0.])
    """
    require_floating("features", features, ndim=2)
    require_floating("sums", sums, ndim=2)
    require_width("sums", sums, "features", features)
    require_integer("own_classes", own_classes, len(features), "feature")
    require_vector("own_weights", own_weights, len(features), "feature")
    lengths = torch.linalg.vector_norm(sums, dim=1) if lengths is None else lengths
    lengths = lengths.clamp_min(_TINY)
    if classes is None:
        similarity = features @ sums.T / lengths
    else:
        require_integer("classes", classes.reshape(-1))
        # What is read beyond the sums would be any memory; one transfer to the host.
        least, most = torch.stack(classes.aminmax()).tolist() if classes.numel() else (0, 0)
        if not 0 <= least <= most < max(len(sums), 1):
            raise ValueError(f"classes must be in [0, {len(sums)}), got others")
        similarity = _chosen_products(features, sums, classes) / lengths[classes]
    others = sums.index_select(0, own_classes) - features * own_weights.unsqueeze(1)
    # What is left of a class of one is rounding, which normalize would make a direction.
    nothing = torch.linalg.vector_norm(others, dim=1) <= 1e-5 * own_weights
    own = (features * normalize(others)).sum(dim=1).masked_fill(nothing, 0)
    return similarity, own


def without_copies(similarity: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    r"""Cosine similarity with class centers, less what copies of the sample bring to them.

    A copy has the sample's own direction, so that of the sum :math:`m_c` the similarity tells all:
    :math:`\cos(z_i, m_c - w z_i) = (m_c^T z_i - w) / \sqrt{|m_c|^2 - 2 w\, m_c^T z_i + w^2}`.

    Args:
        similarity: (B, K) :math:`\cos(z_i, m_c)`, of unit vectors.
        lengths: (B, K) or (K,) floating point, :math:`|m_c|`.
        weights: (B, K) with which copies are in each sum, not negative.

    Returns:
        (B, K); 0 where a class has nothing but copies.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import without_copies
        >>> similarity, length = torch.tensor([[2**-0.5, 1.0]]), torch.tensor([2**0.5, 1.0])
        >>> without_copies(similarity, length, torch.ones(1, 2)).abs().round(decimals=4)
        tensor([[0., 0.]])
    """
    products = similarity * lengths
    left = (lengths.square() - 2 * weights * products + weights.square()).clamp_min(0).sqrt()
    rest: Tensor = (products - weights) / left.clamp_min(_TINY)
    rest = rest.clamp(-1, 1).masked_fill(left <= _ROUNDING * weights, 0)
    return torch.where(weights > 0, rest, similarity)


def pair_cosine(lengths: Tensor, sizes: Tensor) -> Tensor:
    r"""The mean cosine of a unit vector with the others of its class, from the classes' sums alone.

    :math:`\rho = \sum_c (\lVert m_c \rVert^2 / n_c - 1) \, / \, \sum_c (n_c - 1)`.

    Args:
        lengths: (C,) floating point, :math:`\lVert m_c \rVert`, of the sum of each class.
        sizes: (C,) floating point, :math:`n_c`, how many vectors, or of what weight, are in it.

    Returns:
        0-dim float64 in ``[0.02, 0.98]``. Classes of one, or a weight below 1.5, say nothing.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import pair_cosine
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # of one class
        >>> pair_cosine(vectors.sum(dim=0).norm().unsqueeze(0), torch.tensor([2.0]))
        tensor(0.6000, dtype=torch.float64)
    """
    lengths, sizes = lengths.double(), sizes.double()
    several = sizes > 1.5
    excess = (lengths.square() / sizes.clamp_min(1) - 1).masked_fill(~several, 0).sum()
    others = (sizes - 1).masked_fill(~several, 0).sum()
    return (excess / others.clamp_min(_TINY)).clamp(_LEAST_COSINE, _MOST_COSINE)


def known_part(sizes: Tensor, cosine: Tensor) -> Tensor:
    r"""How much of the true mean of a class is known from n samples of it.

    :math:`r = \frac{n \rho}{n \rho + 1 - \rho}`, the share that the truth has in the variance of
    their mean.

    Args:
        sizes: floating point, of any shape, :math:`n`, not negative.
        cosine: 0-dim, :math:`\rho`, of :func:`pair_cosine`.

    Returns:
        Of the shape and dtype of ``sizes``, in ``[0, 1)``.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import known_part
        >>> known_part(torch.tensor([0.0, 1.0, 9.0]), torch.tensor(0.25))
        tensor([0.0000, 0.2500, 0.7500])
    """
    known = sizes * cosine.to(sizes.dtype)
    part: Tensor = known / (known + 1 - cosine.to(sizes.dtype))
    return part


def size_adjustment(sizes: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    r"""What makes cosines with the means of many and of few samples comparable.

    The logarithm of the normal density around what is expected of a class's true mean, :math:`r`
    times the mean of its samples, is :math:`\sqrt q \, s - \tfrac12 (q - 1) \sqrt{\bar r \rho}`
    but for a factor and a constant, with a cosine :math:`s`, :math:`r` of :func:`known_part`,
    :math:`\bar r` that of the mean size, and :math:`q = r / \bar r`.

    Args:
        sizes: (C,) floating point, :math:`n`, not negative, of how many samples each mean is.
        cosine: 0-dim, :math:`\rho`, of :func:`pair_cosine`.

    Returns:
        (C,) what a cosine with each mean is to be multiplied by, and what is to be subtracted
        then. 1 and 0 where all classes are of one size.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import size_adjustment
        >>> size_adjustment(torch.tensor([1.0, 3.0, 5.0]), torch.tensor(0.25))
        (tensor([0.7071, 1.0000, 1.1180]), tensor([-0.0884,  0.0000,  0.0442]))
    """
    usual = known_part(sizes.mean(), cosine)
    relative = known_part(sizes, cosine) / usual.clamp_min(_TINY)
    member = (usual * cosine.to(usual.dtype)).sqrt()
    return relative.sqrt(), 0.5 * (relative - 1) * member


def _chosen_products(rows: Tensor, columns: Tensor, chosen: Tensor) -> Tensor:
    """(N, K) products of each row with the columns chosen for it; O(N K D), nothing is gathered."""
    size, k = chosen.shape
    places = torch.arange(0, size * k + 1, k, device=chosen.device)
    zeros = rows.new_zeros(size * k)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # that the layout is in beta
        pattern = torch.sparse_csr_tensor(
            places, chosen.reshape(-1), zeros, size=(size, len(columns)), check_invariants=False
        )
        products: Tensor = torch.sparse.sampled_addmm(pattern, rows, columns.T, beta=0.0)
    return products.values().reshape(size, k)


def near_identical(
    directions: Tensor, distance: Tensor, near: Tensor, parts: Whole | None = None
) -> Tensor:
    """(N,) the first of the rows that are near-identical to each, itself if there are none.

    Two rows are when they are nearer to each other than chance brings neighbours together: the
    number of neighbours grows with the m-th power of the distance, m being how many dimensions
    the features fill.

    Args:
        directions: (N, D) unit vectors.
        distance: (N, k) half of the squared distances to the nearest others, the nearest first.
        near: (N, k) integers, which rows they are; -1 for none.
        parts: where ranks have a part of the rows each; the result is of all rows then, on each.

    Returns:
        (N,) int64. Asks the host.

    Example:
        >>> import torch
        >>> from noisydml.functional.class_evidence import near_identical
        >>> directions = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)[[0, 1, 2, 3, 4, 1]]
        >>> distance, near = (1 - directions @ directions.T).fill_diagonal_(9).sort(dim=1)
        >>> near_identical(directions, distance.clamp_min(0), near)
        tensor([0, 1, 2, 3, 4, 1])
    """
    size, k = near.shape
    parts = Whole(size) if parts is None else parts
    first = torch.arange(parts.size, device=near.device)
    if k < 2:
        return first

    def apart(row: Tensor, other: Tensor) -> Tensor:
        """(M,) how far rows of this rank are from others, exactly."""
        found = [distance.new_zeros(0)]
        for some in parts.blocks(len(row), _PAIRS):
            between = directions[row[some]] - parts.at(directions, other[some].long())
            found.append(torch.linalg.vector_norm(between, dim=1))
        return torch.cat(found)

    # The third neighbour is no copy but of samples that are there four times; further ones may be
    # of other classes, beside which the samples of a class that a network has drawn together are
    # near-identical.
    far = min(12, k)
    asked = near[:, [min(3, k) - 1, max(far // 2, 1) - 1, far - 1]]
    rows = torch.arange(size, device=near.device).repeat_interleave(3)
    length = apart(rows, asked.reshape(-1).clamp_min(0)).view(size, 3)
    near_by, half, far_off = parts.everyone(length.masked_fill(asked < 0, math.inf)).unbind(dim=1)
    usable = far_off.isfinite() & (half > _SAME) & (near_by > _SAME)
    limit = length.new_zeros(())  # where nearly all are copies of others nothing else is a copy
    if bool(usable.any()):
        growth = (far_off[usable] / half[usable]).median().clamp_min(1 + 1e-6).log()
        dimension = (math.log(2) / growth).clamp_max(64)
        scale = near_by[usable].median()
        limit = ((_CHANCE / 3) ** (1 / dimension)).clamp_max(0.1) * scale
        limit = limit.clamp_min(1e-3 * scale)
    close = (near >= 0) & (distance.sqrt() <= limit + _ROUNDING)
    row, column = close.nonzero(as_tuple=True)
    other = near[row, column].long()
    copied = apart(row, other) <= (limit * math.sqrt(2)).clamp_min(_SAME)
    row, other = row[copied] + parts.start, other[copied]
    while True:  # the smallest number spreads through each group
        before = first.clone()
        smallest = torch.minimum(first[row], first[other])
        first.scatter_reduce_(0, row, smallest, "amin")
        first.scatter_reduce_(0, other, smallest, "amin")
        first = parts.largest(first.neg()).neg()
        first = first[first]
        if bool((first == before).all()):
            return first
