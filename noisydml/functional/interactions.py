"""Which elements of the distance matrix a loss may use when some samples are distrusted."""

from __future__ import annotations

import torch
from torch import Tensor

from noisydml.functional.checks import require_integer, require_vector


def selected_interactions(
    labels: Tensor, trusted: Tensor, ref_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The positive pairs of trusted samples, and all negative ones (Ibrahimi et al., T-SINT, 2022).

    Args:
        labels: (B,) integers.
        trusted: (B,) bool.
        ref_labels: (R,) integers, the labels of other samples, all trusted, to compare with; None
            for the batch itself, where no sample is its own positive.

    Returns:
        Two bool tensors (B, R), (B, B) without ``ref_labels``: which pairs are positive, of equal
        label, and which negative. No transfer to the host.

    Raises:
        TypeError: if labels are no integers, or ``trusted`` is not bool.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from noisydml.functional import selected_interactions
        >>> labels, trusted = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
        >>> positive, negative = selected_interactions(labels, trusted)
        >>> positive.nonzero().tolist()
        [[0, 1], [1, 0]]
        >>> negative.nonzero().tolist()
        [[0, 3], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2]]
    """
    require_integer("labels", labels)
    require_vector("trusted", trusted, len(labels), "label")
    if trusted.dtype != torch.bool:
        raise TypeError(f"trusted must be a bool tensor, got dtype {trusted.dtype}")
    if ref_labels is not None:
        require_integer("ref_labels", ref_labels)
    same = labels.unsqueeze(1) == (labels if ref_labels is None else ref_labels)
    positive = same & trusted.unsqueeze(1)
    if ref_labels is None:
        positive = (positive & trusted).fill_diagonal_(False)
    return positive, same.logical_not()
