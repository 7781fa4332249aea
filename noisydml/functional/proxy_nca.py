"""Proxy-NCA, one loss per sample (Movshovitz-Attias et al., 2017), without a host round trip."""

import torch
import torch.nn.functional as F
from torch import Tensor

from noisydml.functional.checks import require_floating, require_integer
from noisydml.functional.products import affine, unit_rows


def proxy_nca(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, softmax_scale: float = 1.0
) -> Tensor:
    r"""Proxy-NCA loss of every sample: how unlikely its label is, given the class proxies.

    .. math::
        \ell_i = -\log \frac{\exp(-s\, d_{i, y_i}^2)}{\sum_c \exp(-s\, d_{i,c}^2)}

    with :math:`d_{i,c}` the Euclidean distance of the normalised embedding i to the normalised
    proxy c, and all classes in the sum: the terms of pytorch-metric-learning's ``ProxyNCALoss``
    with its default settings. However far a sample is from its proxy, its loss is finite.

    Args:
        embeddings: (B, D) floating point; normalised here.
        labels: (B,) integers in ``[0, C)``.
        proxies: (C, D) floating point, one per class; normalised here.
        softmax_scale: s.

    Returns:
        (B,) losses in the wider dtype, float32 at least; differentiable in both.

    Raises:
        TypeError: if embeddings or proxies are not floating point, or labels no integers.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import proxy_nca
        >>> proxy_nca(torch.eye(2), torch.tensor([0, 0]), proxies=torch.eye(2))
        tensor([0.1269, 2.1269])
    """
    require_floating("embeddings", embeddings, ndim=2)
    require_integer("labels", labels, len(embeddings))
    require_floating("proxies", proxies, ndim=2)
    if embeddings.shape[1] != proxies.shape[1]:
        raise ValueError(
            f"embeddings and proxies must have the same width, "
            f"got {embeddings.shape[1]} and {proxies.shape[1]}"
        )
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, proxies.dtype), torch.float32)
    # |x - p|^2 = 2 - 2 <x, p> for unit vectors, and the constant cancels in the softmax.
    rows, centers = (unit_rows(each.to(dtype)) for each in (embeddings, proxies))
    cosine = affine(rows, centers)
    log_probability = F.log_softmax(2 * softmax_scale * cosine, dim=1)
    return -log_probability.gather(1, labels.long().unsqueeze(1)).squeeze(1)
