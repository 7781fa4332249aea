"""Classes as Gaussians: their statistics, densities under all of them, and clustering (TITAN)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

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
