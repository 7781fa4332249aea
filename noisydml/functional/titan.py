"""TITAN: classes as Gaussians, features mixed with draws from them, labels that they retrieve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_integer,
    require_positive,
    require_vector,
    require_width,
)
from noisydml.functional.neighbors import smallest
from noisydml.functional.products import TILE, affine

_BLOCK = 4_000_000  # numbers that are held in float64 at once
_DISTANCES = 16_000_000  # that are held at once


class ClassGaussians(NamedTuple):
    """A Gaussian with a diagonal covariance for every class; zeros for one without samples."""

    means: Tensor  # (C, D)
    variances: Tensor  # (C, D)
    counts: Tensor  # (C,) int64, the samples of each class


def class_gaussians(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    sum_parts: Callable[[list[Tensor]], None] | None = None,
) -> ClassGaussians:
    r"""Mean and diagonal variance of every class (TITAN, Eq. 1-2).

    .. math::
        \mu_c = \frac{1}{n_c} \sum_{y_i = c} z_i, \qquad
        \sigma_c^2 = \frac{1}{n_c} \sum_{y_i = c} (z_i - \mu_c)^2

    Args:
        features: (N, D) floating point, of a data set or a memory.
        labels: (N,) integers below ``num_classes``; rows with a negative one are left out.
        num_classes: C.
        sum_parts: where the features are a part of a data set: replaces tensors, in place, by
            their sums over the parts. Called with (C,) and (C, D) sums, and with a (C, D) one.

    Returns:
        :class:`ClassGaussians`, summed in float64 and returned in the dtype of the features,
        float32 at least. A class of one sample has zero variances. No transfer to the host.

    Raises:
        TypeError: if features are not floating point, labels no integers, or ``num_classes`` is
            none.
        ValueError: if shapes do not fit, or there is no class.

    Example:
        >>> import torch
        >>> from noisydml.functional import class_gaussians
        >>> features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]])
        >>> means, variances, counts = class_gaussians(features, torch.tensor([0, 0, 1]), 2)
        >>> means[0], variances[0], counts
        (tensor([1., 1.]), tensor([1., 0.]), tensor([2, 1]))
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_count("num_classes", num_classes)
    width = features.shape[1]
    # Row C takes what is to be left out.
    labels = torch.where(labels < 0, num_classes, labels.long())
    counts = labels.new_zeros(num_classes + 1).index_add_(0, labels, torch.ones_like(labels))
    sums, squares = counts.new_zeros(2, num_classes + 1, width, dtype=torch.float64)
    rows = max(1, _BLOCK // max(1, width))
    blocks = list(zip(torch.split(features.detach(), rows), torch.split(labels, rows), strict=True))
    for z, y in blocks:
        sums.index_add_(0, y, z.double())
    if sum_parts is not None:
        sum_parts([counts.narrow(0, 0, num_classes), sums.narrow(0, 0, num_classes)])
    number = counts.clamp_min(1).unsqueeze(1)
    means = sums / number
    for z, y in blocks:
        squares.index_add_(0, y, (z.double() - means.index_select(0, y)).square())
    if sum_parts is not None:
        sum_parts([squares.narrow(0, 0, num_classes)])
    dtype = torch.promote_types(features.dtype, torch.float32)
    variances = (squares / number).clamp_max_(torch.finfo(dtype).max)
    means, variances = (x.narrow(0, 0, num_classes).to(dtype) for x in (means, variances))
    return ClassGaussians(means, variances, counts.narrow(0, 0, num_classes))


def floor_variances(variances: Tensor, counts: Tensor, share: float) -> Tensor:
    """Variances that are at least a share of what is usual in their dimension.

    A class that does not vary in some dimension would have an infinite density. What is usual is
    the mean over the classes, weighted by their counts. (The paper has no floor.)

    Args:
        variances: (C, D) floating point, not negative.
        counts: (C,) integers, the samples of each class.
        share: finite and above 0.

    Returns:
        (C, D), all above 0, also in a dimension that never varies.

    Raises:
        TypeError: if variances are not floating point, counts no integers, or the share is no
            number.
        ValueError: if shapes do not fit, or the share is not finite and above 0.

    Example:
        >>> import torch
        >>> from noisydml.functional import floor_variances
        >>> floor_variances(torch.tensor([[2.0, 4.0], [0.0, 2.0]]), torch.tensor([5, 5]), 0.1)
        tensor([[2.0000, 4.0000],
                [0.1000, 2.0000]])
    """
    require_floating("variances", variances, ndim=2)
    require_integer("counts", counts, len(variances), "class")
    require_positive("share", share)
    weight = (counts.double() / counts.sum().clamp_min(1)).unsqueeze(1)
    usual = (variances * weight).sum(dim=0)  # (D,)
    usual = torch.maximum(usual, 1e-6 * usual.mean()).clamp_min(1e-12)
    return torch.maximum(variances, (share * usual).to(variances.dtype))


def gaussian_log_density(
    features: Tensor, means: Tensor, variances: Tensor, counts: Tensor | None = None
) -> Tensor:
    r"""Logarithm of every class's Gaussian density at every feature (TITAN, Eq. 3).

    .. math::
        \log N(z_i; \mu_c, \sigma_c^2) = -\frac{1}{2} \sum_d \Big[
        \frac{(z_{id} - \mu_{cd})^2}{\sigma_{cd}^2} + \log \sigma_{cd}^2 + \log 2\pi \Big]

    No tensor is larger than (C, D) or (B, C), and a common offset of all costs no digits.

    Args:
        features: (B, D) floating point.
        means: (C, D) floating point.
        variances: (C, D) floating point, above 0; see :func:`floor_variances`.
        counts: (C,) integers, 0 for classes that have no samples; None if all have some.

    Returns:
        (B, C) in the dtype of the means, float32 at least; ``-inf`` for classes without samples.

    Raises:
        TypeError: if features, means or variances are not floating point, or counts no integers.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import gaussian_log_density
        >>> means, variances = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.ones(2, 2)
        >>> gaussian_log_density(torch.tensor([[3.0, 4.0]]), means, variances)
        tensor([[-14.3379,  -1.8379]])
    """
    _require_gaussians(means, variances)
    require_floating("features", features, ndim=2)
    require_width("features", features, "means", means)
    present = _present(means, counts)
    dtype = torch.promote_types(means.dtype, torch.float32)
    means, variances = means.to(dtype), variances.to(dtype)
    center = mean_of_present(means, present)
    z, mu = features.to(dtype) - center, means - center  # so that no digits cancel below
    variances = torch.where(present.unsqueeze(1), variances, 1.0)
    # With p = 1 / variance, (z - mu)^2 p = z^2 p - 2 z mu p + mu^2 p: two products and a constant.
    precision = variances.reciprocal()
    slopes = mu * precision
    rest = (mu * slopes + variances.log()).sum(dim=1) + means.shape[1] * math.log(2 * math.pi)
    offsets = torch.where(present, -0.5 * rest, -math.inf)  # (C,)
    return affine(z.square(), -0.5 * precision) + affine(z, slopes, offsets)


def draw_mixture(
    nearest: Tensor,
    means: Tensor,
    variances: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 2.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw :math:`z'_i \sim N(\mu_{\hat y_i}, \sigma_{\hat y_i}^2)` and :math:`\lambda_i` (Eq. 5).

    Every sample has a draw and a :math:`\lambda \sim Beta(\alpha, \beta)` of its own.

    Args:
        nearest: (B,) integers in ``[0, C)``, the class to draw from for each sample.
        means: (C, D) floating point.
        variances: (C, D) floating point, not negative.
        alpha: of the Beta distribution, above 0.
        beta: of the Beta distribution, above 0.
        generator: of the random numbers, which are drawn on its device; None for torch's own.

    Returns:
        (B, D) draws :math:`z'_i` and (B,) shares :math:`\lambda_i` in [0, 1], on the device and in
        the dtype of the means, float32 at least.

    Raises:
        TypeError: if ``nearest`` are no integers, means or variances not floating point, ``alpha``
            or ``beta`` no numbers, or the generator is none.
        ValueError: if shapes do not fit, or ``alpha`` or ``beta`` is not finite and above 0.

    Example:
        >>> import torch
        >>> from noisydml.functional import draw_mixture
        >>> means, variances = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.full((2, 2), 0.01)
        >>> draws, share = draw_mixture(torch.tensor([1, 0]), means, variances)
        >>> draws.round().abs()
        tensor([[5., 5.],
                [0., 0.]])
    """
    require_integer("nearest", nearest, per="sample")
    _require_gaussians(means, variances)
    require_positive("alpha", alpha)
    require_positive("beta", beta)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    dtype = torch.promote_types(means.dtype, torch.float32)
    size, source = len(nearest), means.device if generator is None else generator.device
    noise = torch.randn(size, means.shape[1], generator=generator, device=source, dtype=dtype)
    first = torch.full((size,), float(alpha), dtype=torch.float64, device=source)
    # torch.distributions takes no generator; the function under it does.
    x = torch._standard_gamma(first, generator=generator)
    y = torch._standard_gamma(torch.full_like(first, float(beta)), generator=generator)
    share = (x / (x + y)).to(means.device, dtype, non_blocking=True)
    noise = noise.to(means.device, non_blocking=True)
    mu, variance = (x.detach().index_select(0, nearest.long()) for x in (means, variances))
    return torch.addcmul(mu.to(dtype), variance.to(dtype).sqrt(), noise), share


def mix(features: Tensor, draws: Tensor, share: Tensor, *, keep_length: bool = False) -> Tensor:
    r"""(B, D) :math:`\lambda_i z_i + (1 - \lambda_i) z'_i` (TITAN, Eq. 4).

    Args:
        features: (B, D) floating point; the result has its dtype and its graph.
        draws: (B, D), constants.
        share: (B,), constants.
        keep_length: whether each mixture gets the length of its feature, for embeddings that are
            compared as unit vectors: a mixture of such is shorter. Not part of Eq. 4.

    Raises:
        TypeError: if features or draws are not floating point.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import mix
        >>> mix(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([0.25, 1.0]))
        tensor([[0.2500, 0.2500],
                [1.0000, 1.0000]])
    """
    require_floating("features", features, ndim=2)
    require_floating("draws", draws, ndim=2)
    _require_shape("draws", draws, "features", features)
    require_vector("share", share, len(features), "feature")
    dtype = torch.promote_types(features.dtype, draws.dtype)
    z, own = features.to(dtype), share.detach().to(dtype).unsqueeze(1)
    mixed = own * z + (1 - own) * draws.detach().to(dtype)
    if keep_length:
        mixed = normalize(mixed) * z.norm(dim=1, keepdim=True)
    return mixed.to(features.dtype)


def mix_with_prototypes(
    features: Tensor,
    nearest: Tensor,
    means: Tensor,
    variances: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""(B, D) virtual samples :math:`z_i^+` between features and prototypes (TITAN, Eq. 4-5).

    :func:`draw_mixture` and :func:`mix` in one call. The label of :math:`z_i^+` is that of
    :math:`z_i`; no labels are mixed.

    Args:
        features: (B, D) floating point; the result has its dtype and its graph.
        nearest: (B,) integers in ``[0, C)``, the class of highest density (Eq. 3).
        means: (C, D) floating point.
        variances: (C, D) floating point, not negative.
        alpha: of the Beta distribution, above 0.
        beta: of the Beta distribution, above 0.
        generator: of the random numbers, which are drawn on its device; None for torch's own.

    Raises:
        TypeError: if ``nearest`` are no integers, features, means or variances not floating point,
            ``alpha`` or ``beta`` no numbers, or the generator is none.
        ValueError: if shapes do not fit, or ``alpha`` or ``beta`` is not finite and above 0.

    Example:
        >>> import torch
        >>> from noisydml.functional import mix_with_prototypes
        >>> means, variances = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2)
        >>> mixed = mix_with_prototypes(torch.zeros(2, 2), torch.tensor([0, 0]), means, variances)
        >>> ((0 < mixed) & (mixed < 1)).all()  # between the feature and the mean
        tensor(True)
    """
    require_floating("features", features, ndim=2)
    require_integer("nearest", nearest, len(features), "feature")
    draws, share = draw_mixture(
        nearest, means, variances, alpha=alpha, beta=beta, generator=generator
    )
    return mix(features, draws, share)


def density_weights(log_density: Tensor, divisor: float = 1.0) -> Tensor:
    r"""Confidence weights from log-densities, with mean 1 over the batch (TITAN, Eq. 8).

    The paper's :math:`w_i` is the density itself, which under- or overflows in some tens of
    dimensions. Here :math:`w_i = B\, p_i^{1/s} / \sum_j p_j^{1/s}`, computed from logarithms.

    Args:
        log_density: (B,) floating point.
        divisor: s, above 0. 1 is the faithful form, in which one sample takes nearly all of the
            weight in high dimensions. The number of dimensions gives the tempered form, the
            geometric mean of the density over the dimensions.

    Returns:
        (B,) in float32 or wider; none is below exp(-80), as 0 would drop a sample.

    Raises:
        TypeError: if densities are not floating point, or the divisor is no number.
        ValueError: if densities are not of one dimension, or the divisor is not finite and above 0.

    Example:
        >>> import torch
        >>> from noisydml.functional import density_weights
        >>> density_weights(torch.tensor([-300.0, -310.0, -400.0]), divisor=100)
        tensor([1.3200, 1.1944, 0.4856])
    """
    require_floating("log_density", log_density, ndim=1)
    require_positive("divisor", divisor)
    dtype = torch.promote_types(log_density.dtype, torch.float32)
    weights = len(log_density) * torch.softmax(log_density.double() / divisor, dim=0)
    return weights.clamp_min(math.exp(-80)).to(dtype)


def refine_labels(
    features: Tensor, labels: Tensor, means: Tensor, k: int, counts: Tensor | None = None
) -> Tensor:
    r"""Labels after every class's mean has claimed its ``k`` nearest samples (TITAN, Eq. 9).

    A claimed sample gets the label of the class that claims it, the nearest of them if several
    do; the others keep theirs. Distances are Euclidean.

    Args:
        features: (N, D) floating point, of all samples.
        labels: (N,) integers; rows with a negative one are claimed by none.
        means: (C, D) floating point.
        k: 0 or more.
        counts: (C,) integers, 0 for classes that claim none; None if all do.

    Returns:
        (N,) int64. Of samples at the same distance from a mean the first are claimed. O(N C D)
        time in blocks, without an (N, C) tensor for a large data set. No transfer to the host on
        CUDA.

    Raises:
        TypeError: if features or means are not floating point, labels no integers, or ``k`` is
            none.
        ValueError: if shapes do not fit, or ``k`` is negative.

    Example:
        >>> import torch
        >>> from noisydml.functional import refine_labels
        >>> features = torch.tensor([[0.0], [0.1], [1.0], [0.9], [0.6]])
        >>> means = torch.tensor([[0.0], [1.0]])
        >>> refine_labels(features, torch.tensor([0, 1, 1, 0, 0]), means, k=2)
        tensor([0, 0, 1, 1, 0])
    """
    distance, rows = nearest_samples(features, labels, means, k, counts)
    return claim(labels.long(), distance, rows)


def nearest_samples(
    features: Tensor, labels: Tensor, means: Tensor, k: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The samples that every mean may claim by :func:`refine_labels`.

    Arguments and errors are those of that function.

    Returns:
        (C, K) squared distances in float32 at least, the smallest first, and (C, K) int64 rows,
        K = min(k, N); of equally near ones the first rows. Infinite for rows with a negative label
        and for classes that claim none. On a CPU in float32 a part of the samples has, to the bit,
        the distances of the whole.
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_floating("means", means, ndim=2)
    require_count("k", k, least=0)
    require_width("means", means, "features", features)
    present = _present(means, counts)
    num_classes, k = len(means), min(k, len(features))
    dtype = torch.promote_types(features.dtype, torch.float32)
    mu = means.detach().to(dtype)
    distance, rows = mu.new_zeros(num_classes, 0), labels.new_zeros(num_classes, 0).long()
    if k == 0 or num_classes == 0:
        return distance, rows
    center = mu.index_select(0, present.int().argmax().view(1))  # an offset would cost digits
    mu = mu - center
    mu_square = torch.where(present, mu.square().sum(dim=1), math.inf).unsqueeze(1)  # (C, 1)
    slopes = pad(-2 * mu, (0, 0, 0, -num_classes % TILE[0]))
    size = max(1, _DISTANCES // num_classes // TILE[1]) * TILE[1]
    start = 0
    for block, given in zip(torch.split(features, size), torch.split(labels, size), strict=True):
        z = block.detach().to(dtype) - center
        z_square = torch.where(given >= 0, z.square().sum(dim=1), math.inf)
        missing = -len(block) % TILE[1]
        products = affine(slopes, pad(z, (0, 0, 0, missing)), pad(z_square, (0, missing)))
        found = products.narrow(0, 0, num_classes).narrow(1, 0, len(block)) + mu_square
        least, column = smallest(found, k)
        rows = torch.cat([rows, column + start], dim=1)
        distance, column = smallest(torch.cat([distance, least], dim=1), k)
        rows = rows.gather(1, column)
        start += len(block)
    return distance, rows


def claim(labels: Tensor, distance: Tensor, rows: Tensor) -> Tensor:
    """(N,) labels of samples that classes have claimed, and the given ones of all others.

    Args:
        labels: (N,) int64, as given.
        distance: (C, K) floating point, between every class's mean and the samples that it claims;
            infinite where it does not.
        rows: (C, K) int64, which samples they are.

    Returns:
        (N,) int64. Of several classes the nearest gets a sample, and of equally near ones the
        lowest.
    """
    num_classes, k = rows.shape
    classes = torch.arange(num_classes, device=labels.device).unsqueeze(1).expand(-1, k).flatten()
    distance, rows = distance.flatten(), rows.flatten()
    least = distance.new_full(labels.shape, math.inf).scatter_reduce(0, rows, distance, "amin")
    wins = (distance == least.gather(0, rows)) & (distance < math.inf)
    winner = torch.where(wins, classes, num_classes)
    new = torch.full_like(labels, num_classes).scatter_reduce(0, rows, winner, "amin")
    return torch.where(new < num_classes, new, labels)


def retrieval_number(cycle: int, cycles: int, most: int) -> int:
    r"""The whole part of :math:`K_t = \frac{t}{T} K_{max}` (TITAN, Eq. 10).

    Args:
        cycle: t, 0 or more; from T on the number stays :math:`K_{max}`.
        cycles: T, 1 or more.
        most: :math:`K_{max}`, 0 or more.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if ``cycle`` or ``most`` is negative, or ``cycles`` below 1.

    Example:
        >>> from noisydml.functional import retrieval_number
        >>> [retrieval_number(t, cycles=8, most=20) for t in range(10)]
        [0, 2, 5, 7, 10, 12, 15, 17, 20, 20]
    """
    require_count("cycle", cycle, least=0)
    require_count("cycles", cycles)
    require_count("most", most, least=0)
    return min(cycle, cycles) * most // cycles


def clustering_loss(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    counts: Tensor | None = None,
    *,
    temperature: float = 0.5,
) -> Tensor:
    r"""How badly each feature fits the mean of its class among all means (TITAN, Eq. 11).

    .. math::
        \ell_i = -\log \frac{\exp(z_i \cdot \mu_{y_i} / \tau)}{\sum_c \exp(z_i \cdot \mu_c / \tau)}

    Args:
        features: (B, D) floating point.
        labels: (B,) integers in ``[0, C)``.
        means: (C, D) floating point; constants to the gradient.
        counts: (C,) integers, 0 for classes that have no samples; None if all have some.
        temperature: :math:`\tau`, above 0.

    Returns:
        (B,) losses in float32 or wider, whose sum over the batch is the paper's; 0 for a sample
        of a class without a mean.

    Raises:
        TypeError: if features or means are not floating point, labels no integers, or the
            temperature is no number.
        ValueError: if shapes do not fit, or the temperature is not finite and above 0.

    Example:
        >>> import torch
        >>> from noisydml.functional import clustering_loss
        >>> clustering_loss(torch.eye(2), torch.tensor([0, 0]), means=torch.eye(2))
        tensor([0.1269, 2.1269])
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_floating("means", means, ndim=2)
    require_positive("temperature", temperature)
    require_width("means", means, "features", features)
    present, labels = _present(means, counts), labels.long()
    dtype = torch.promote_types(torch.promote_types(features.dtype, means.dtype), torch.float32)
    logits = affine(features.to(dtype) / temperature, means.detach().to(dtype))  # (B, C)
    # Not -inf, which would make a gradient NaN where no class has samples.
    logits = torch.where(present, logits, torch.finfo(dtype).min)
    losses = cross_entropy(logits, labels, reduction="none")
    return torch.where(present.index_select(0, labels), losses, 0.0)


def mean_of_present(means: Tensor, present: Tensor) -> Tensor:
    """(D,) mean of the (C, D) means of the classes that are ``present`` (C,), or zeros."""
    return (means * present.unsqueeze(1)).sum(dim=0) / present.sum().clamp_min(1)


def _present(means: Tensor, counts: Tensor | None) -> Tensor:
    """(C,) bool, which classes have samples."""
    if counts is None:
        return torch.ones(len(means), dtype=torch.bool, device=means.device)
    require_integer("counts", counts, len(means), "class")
    return counts > 0


def _require_gaussians(means: Tensor, variances: Tensor) -> None:
    require_floating("means", means, ndim=2)
    require_floating("variances", variances, ndim=2)
    _require_shape("variances", variances, "means", means)


def _require_shape(name: str, value: Tensor, of: str, other: Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {of}, {tuple(other.shape)}, got {tuple(value.shape)}"
        )
