"""Virtual samples: features mixed with draws from the nearest class's Gaussian (TITAN)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml.functional.checks import (
    require_floating,
    require_integer,
    require_positive,
    require_vector,
)


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
