"""TITAN: classes as Gaussians, features mixed with draws from them, labels that they retrieve."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.checks import (
    require_count,
    require_floating,
    require_integer,
    require_positive,
    require_vector,
)
from noisydml.functional.products import affine

_BLOCK = 4_000_000  # numbers that are held in float64 at once
_NOTHING = -80.0  # exp of it is lost beside 1, and exp of much less is slow: it is subnormal
_LEAST = 1e-6  # of the mean variance: what a dimension that never varies counts as
_TINY = 1e-12


class ClassGaussians(NamedTuple):
    """A Gaussian with a diagonal covariance for every class.

    Attributes:
        means: (C, D), zeros for a class without samples.
        variances: (C, D), likewise.
        counts: (C,) int64, the samples of each class.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor


class PreparedGaussians(NamedTuple):
    """What :func:`prepared_log_density` needs of the classes, computed once for many batches.

    Attributes:
        center: (D,) the mean of all samples.
        slopes: (C, 2 D) coefficients of the squares and of the features themselves.
        offsets: (C,) the constants; ``-inf`` for a class without samples.
    """

    center: Tensor
    slopes: Tensor
    offsets: Tensor


def class_gaussians(features: Tensor, labels: Tensor, num_classes: int) -> ClassGaussians:
    r"""Mean and diagonal variance of every class (TITAN, Eq. 1-2).

    .. math::
        \mu_c = \frac{1}{n_c} \sum_{y_i = c} z_i, \qquad
        \sigma_c^2 = \frac{1}{n_c} \sum_{y_i = c} (z_i - \mu_c)^2

    One pass over the features, in blocks: sums and sums of squares are taken about the mean of
    all features, in float64.

    Args:
        features: (N, D) floating point, of a data set or a memory.
        labels: (N,) integers below ``num_classes``; rows with a negative one are left out, such
            as the empty entries of a memory.
        num_classes: C.

    Returns:
        :class:`ClassGaussians`, in the dtype of the features, in float32 at least. The variances
        are the population's; a class of one sample has zeros. No transfer to the host.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import class_gaussians
        >>> features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]])
        >>> means, variances, counts = class_gaussians(features, torch.tensor([0, 0, 1]), 3)
        >>> means
        tensor([[1., 1.],
                [5., 5.],
                [0., 0.]])
        >>> variances[0], counts
        (tensor([1., 0.]), tensor([2, 1, 0]))
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_count("num_classes", num_classes)
    features = features.detach()
    width, device = features.shape[1], features.device
    dtype = torch.promote_types(features.dtype, torch.float32)
    rows = max(1, _BLOCK // max(1, width))
    # Row C takes what is to be ignored.
    classes = torch.where(labels < 0, num_classes, labels.long())
    center = _mean_of_present(features, labels >= 0)
    sums = torch.zeros(num_classes + 1, width, dtype=torch.float64, device=device)
    squares = torch.zeros_like(sums)
    for block, of_class in zip(
        torch.split(features, rows), torch.split(classes, rows), strict=True
    ):
        shifted = block.double() - center
        sums.index_add_(0, of_class, shifted)
        squares.index_add_(0, of_class, shifted.square())
    ones = torch.ones_like(classes)
    counts = ones.new_zeros(num_classes + 1).index_add_(0, classes, ones).narrow(0, 0, num_classes)
    share = counts.clamp_min(1).double().reciprocal().unsqueeze(1)
    means = sums.narrow(0, 0, num_classes) * share
    variances = (squares.narrow(0, 0, num_classes) * share - means.square()).clamp_min(0)
    present = (counts > 0).unsqueeze(1)
    # A single sample has no spread; what rounding leaves of it is none.
    variances = torch.where((counts > 1).unsqueeze(1), variances, 0.0)
    means = torch.where(present, means + center, 0.0)
    return ClassGaussians(means.to(dtype), variances.to(dtype), counts)


def floor_variances(variances: Tensor, counts: Tensor, share: float) -> Tensor:
    r"""Variances that are at least a share of what is usual in their dimension.

    A class of few samples may not vary at all in some dimensions, which would make its density
    infinite on a plane and 0 beside it. The usual variance of a dimension is the mean over the
    classes, weighted by their counts. (The paper has no floor, nor a word on small classes.)

    Args:
        variances: (C, D) floating point, not negative.
        counts: (C,) integers, the samples of each class.
        share: finite and above 0.

    Returns:
        (C, D), all above 0.

    Raises:
        TypeError, ValueError: for a bad argument.

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
    usual = (variances * weight).sum(dim=0)
    usual = torch.maximum(usual, _LEAST * usual.mean()).clamp_min(_TINY)
    return torch.maximum(variances, (share * usual).to(variances.dtype))


def prepare_gaussians(
    means: Tensor, variances: Tensor, counts: Tensor | None = None
) -> PreparedGaussians:
    """What does not depend on the features in :func:`gaussian_log_density`.

    Args:
        means: (C, D) floating point.
        variances: (C, D) floating point, above 0.
        counts: (C,) integers, 0 for classes to be left out; None if all are there.

    Returns:
        :class:`PreparedGaussians`, ``C (8 D + 4)`` bytes in float32.

    Raises:
        TypeError, ValueError: for a bad argument.
    """
    require_floating("means", means, ndim=2)
    require_floating("variances", variances, ndim=2)
    if variances.shape != means.shape:
        raise ValueError(
            f"variances must have the shape of means, {tuple(means.shape)}, "
            f"got {tuple(variances.shape)}"
        )
    dtype = torch.promote_types(means.dtype, torch.float32)
    present = torch.ones(len(means), dtype=torch.bool, device=means.device)
    if counts is not None:
        require_integer("counts", counts, len(means), "class")
        present = counts > 0
    means, variances = means.to(dtype), variances.to(dtype)
    center = _mean_of_present(means, present).to(dtype)
    precision = variances.reciprocal()
    shifted = means - center
    slopes = torch.cat([-0.5 * precision, shifted * precision], dim=1)
    log_determinant = variances.log().sum(dim=1)
    distance = (shifted.square() * precision).sum(dim=1)
    offsets = -0.5 * (distance + log_determinant + means.shape[1] * math.log(2 * math.pi))
    slopes = torch.where(present.unsqueeze(1), slopes, 0.0)
    return PreparedGaussians(center, slopes, torch.where(present, offsets, -math.inf))


def prepared_log_density(features: Tensor, prepared: PreparedGaussians) -> Tensor:
    """(B, C) :func:`gaussian_log_density` under classes that have been prepared.

    Args:
        features: (B, D) floating point.
        prepared: from :func:`prepare_gaussians`.
    """
    require_floating("features", features, ndim=2)
    center, slopes, offsets = prepared
    if 2 * features.shape[1] != slopes.shape[1]:
        raise ValueError(
            f"features must be as wide as the means, {slopes.shape[1] // 2}, "
            f"got {features.shape[1]}"
        )
    shifted = features.to(slopes.dtype) - center
    return affine(torch.cat([shifted.square(), shifted], dim=1), slopes, offsets)


def gaussian_log_density(
    features: Tensor, means: Tensor, variances: Tensor, counts: Tensor | None = None
) -> Tensor:
    r"""Logarithm of every class's Gaussian density at every feature (TITAN, Eq. 3).

    .. math::
        \log N(z_i; \mu_c, \sigma_c^2) = -\frac{1}{2} \sum_d \Big[
        \frac{(z_{id} - \mu_{cd})^2}{\sigma_{cd}^2} + \log \sigma_{cd}^2 + \log 2\pi \Big]

    The square is expanded about the mean of the classes, so that two matrix products do it: no
    tensor is larger than (C, 2 D) or (B, C), and a common offset of all features costs no digits.

    Args:
        features: (B, D) floating point.
        means: (C, D) floating point.
        variances: (C, D) floating point, above 0; see :func:`floor_variances`.
        counts: (C,) integers, 0 for classes that have no samples; None if all have some.

    Returns:
        (B, C) in the dtype of the means, float32 at least; ``-inf`` for classes without samples.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import gaussian_log_density
        >>> means, variances = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.ones(2, 2)
        >>> gaussian_log_density(torch.tensor([[3.0, 4.0]]), means, variances)
        tensor([[-14.3379,  -1.8379]])
    """
    return prepared_log_density(features, prepare_gaussians(means, variances, counts))


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
        (B,) float32 or wider. No sample's weight is below exp(-80) of the largest.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import density_weights
        >>> density_weights(torch.tensor([-300.0, -310.0, -400.0]), divisor=100)
        tensor([1.3200, 1.1944, 0.4856])
    """
    require_floating("log_density", log_density, ndim=1)
    require_positive("divisor", divisor)
    dtype = torch.promote_types(log_density.dtype, torch.float32)
    if len(log_density) == 0:
        return log_density.to(dtype)
    exponent = log_density.double() / divisor
    weight = (exponent - exponent.amax()).clamp_min(_NOTHING).exp()
    return (weight / weight.mean()).to(dtype)


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
        TypeError, ValueError: for a bad argument.

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
    if means.shape[1] != features.shape[1]:
        raise ValueError(
            f"means must be as wide as the features, {features.shape[1]}, got {means.shape[1]}"
        )
    dtype = torch.promote_types(torch.promote_types(features.dtype, means.dtype), torch.float32)
    features, means = features.to(dtype), means.detach().to(dtype)
    own_class = labels.long().unsqueeze(1)
    offsets = known = None
    if counts is not None:
        require_vector("counts", counts, len(means), "class")
        offsets = torch.zeros_like(counts, dtype=dtype)
        offsets = offsets.masked_fill_(counts == 0, torch.finfo(dtype).min / 4)
        known = counts.index_select(0, labels.long()) > 0
    logits = affine(features / temperature, means, offsets)
    own = logits.gather(1, own_class)
    # Far below the largest a term adds nothing to the sum, and its exponential is slow.
    floor = logits.detach().amax(dim=1, keepdim=True) + _NOTHING
    losses = torch.logsumexp(torch.maximum(logits, floor), dim=1) - own.squeeze(1)
    return losses if known is None else torch.where(known, losses, 0.0)


def _mean_of_present(rows: Tensor, present: Tensor) -> Tensor:
    """(D,) float64 mean of the rows where ``present``; zeros where there is none."""
    weight = present.double() / present.sum().clamp_min(1)
    size = max(1, _BLOCK // max(1, rows.shape[1]))
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for block, share in zip(torch.split(rows, size), torch.split(weight, size), strict=True):
        total = total + share @ block.double()
    return total


class Mixture(NamedTuple):
    r"""What a mixed sample is made of besides its own feature.

    Attributes:
        draws: (B, D), :math:`z'_i`, a draw from a class's Gaussian.
        share: (B,) in [0, 1], :math:`\lambda_i`, the share of the sample's own feature.
    """

    draws: Tensor
    share: Tensor


def draw_mixture(
    nearest: Tensor,
    means: Tensor,
    variances: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 2.0,
    generator: torch.Generator | None = None,
) -> Mixture:
    r"""Draw :math:`z'_i \sim N(\mu_{\hat y_i}, \sigma_{\hat y_i}^2)` and :math:`\lambda_i` (Eq. 5).

    Every sample has a draw and a :math:`\lambda \sim Beta(\alpha, \beta)` of its own.

    Args:
        nearest: (B,) integers in ``[0, C)``, the class to draw from for each sample.
        means: (C, D) floating point.
        variances: (C, D) floating point, not negative.
        alpha: above 0.
        beta: above 0.
        generator: of the random numbers; they are drawn on its device and moved to that of the
            means. None for torch's own on the device of the means.

    Returns:
        :class:`Mixture` in the dtype of the means, float32 at least.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import draw_mixture
        >>> generator = torch.Generator().manual_seed(0)
        >>> means, variances = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.full((2, 2), 0.01)
        >>> draws, share = draw_mixture(
        ...     torch.tensor([1, 0, 1]), means, variances, generator=generator
        ... )
        >>> draws.round()
        tensor([[5., 5.],
                [-0., 0.],
                [5., 5.]])
        >>> share.shape
        torch.Size([3])
    """
    require_integer("nearest", nearest, per="sample")
    require_floating("means", means, ndim=2)
    require_floating("variances", variances, ndim=2)
    if variances.shape != means.shape:
        raise ValueError(
            f"variances must have the shape of means, {tuple(means.shape)}, "
            f"got {tuple(variances.shape)}"
        )
    require_positive("alpha", alpha)
    require_positive("beta", beta)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    dtype = torch.promote_types(means.dtype, torch.float32)
    source = means.device if generator is None else generator.device
    shape = (len(nearest), means.shape[1])
    noise = torch.randn(shape, generator=generator, device=source, dtype=dtype)
    share = _draw_beta(len(nearest), float(alpha), float(beta), generator, source)
    rows = nearest.long()
    center, variance = (x.detach().index_select(0, rows).to(dtype) for x in (means, variances))
    noise = noise.to(means.device, non_blocking=True)
    share = share.to(means.device, dtype, non_blocking=True)
    return Mixture(torch.addcmul(center, variance.sqrt(), noise), share)


def mix(features: Tensor, draws: Tensor, share: Tensor, *, keep_length: bool = False) -> Tensor:
    r"""(B, D) :math:`\lambda_i z_i + (1 - \lambda_i) z'_i` (TITAN, Eq. 4).

    Args:
        features: (B, D) floating point; the result has its dtype and its graph.
        draws: (B, D), constants.
        share: (B,), constants.
        keep_length: whether each mixture gets the length of its feature, for embeddings that are
            compared as unit vectors: a mixture of such is shorter. Not part of Eq. 4.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import mix
        >>> mix(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([0.25, 1.0]))
        tensor([[0.2500, 0.2500],
                [1.0000, 1.0000]])
    """
    require_floating("features", features, ndim=2)
    require_floating("draws", draws, ndim=2)
    if draws.shape != features.shape:
        raise ValueError(
            f"draws must have the shape of features, {tuple(features.shape)}, "
            f"got {tuple(draws.shape)}"
        )
    require_vector("share", share, len(features), "feature")
    dtype = torch.promote_types(features.dtype, draws.dtype)
    own = share.detach().to(dtype).unsqueeze(1)
    mixed = own * features.to(dtype) + (1 - own) * draws.detach().to(dtype)
    if keep_length:
        mixed = normalize(mixed) * features.detach().to(dtype).norm(dim=1, keepdim=True)
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
    r"""Virtual samples :math:`z_i^+` between each feature and a prototype (TITAN, Eq. 4-5).

    :func:`draw_mixture` and :func:`mix` in one call. The label of :math:`z_i^+` is that of
    :math:`z_i`; no labels are mixed.

    Args:
        features: (B, D) floating point; gradients pass to it, times :math:`\lambda_i`.
        nearest: (B,) integers in ``[0, C)``, for instance
            ``gaussian_log_density(features, means, variances).argmax(dim=1)`` (Eq. 3).
        means: (C, D) floating point.
        variances: (C, D) floating point, not negative.
        alpha: of the Beta distribution, above 0.
        beta: likewise.
        generator: as in :func:`draw_mixture`.

    Returns:
        (B, D) in the dtype of the features.

    Raises:
        TypeError, ValueError: for a bad argument.

    Example:
        >>> import torch
        >>> from noisydml.functional import mix_with_prototypes
        >>> generator = torch.Generator().manual_seed(0)
        >>> means, variances = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2)
        >>> mixed = mix_with_prototypes(
        ...     torch.zeros(2, 2), torch.tensor([0, 0]), means, variances, generator=generator
        ... )
        >>> ((0 < mixed) & (mixed < 1)).all()  # between the feature and the mean
        tensor(True)
    """
    require_floating("features", features, ndim=2)
    require_integer("nearest", nearest, len(features), "feature")
    draws, share = draw_mixture(
        nearest, means, variances, alpha=alpha, beta=beta, generator=generator
    )
    return mix(features, draws, share)


def _draw_beta(
    size: int, alpha: float, beta: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """(size,) float64: X / (X + Y) for X and Y of Gamma distributions.

    torch.distributions takes no generator; the function under it does.
    """
    shape = torch.full((size,), alpha, dtype=torch.float64, device=device)
    first = torch._standard_gamma(shape, generator=generator)
    second = torch._standard_gamma(torch.full_like(shape, beta), generator=generator)
    return first / (first + second)


_DISTANCES = 16_000_000  # that are held at once


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
    for block in torch.split(means, max(1, _DISTANCES // len(features))):
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
