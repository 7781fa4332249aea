"""A space in which classes have the same spread in every direction, read from blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from noisydml.functional.checks import require_count, require_floating, require_integer
from noisydml.functional.parts import Whole
from noisydml.functional.products import full_precision, inverse_scale, largest_magnitude

_POWERS = 3  # of the covariance, in the search for its leading directions
_SPARE = 32  # directions more than asked for, as is usual (Halko et al., 2011)
_TINY = 1e-12
_NUMBERS = 2**22  # in the rows of a block


class Rows(Protocol):
    """Features of which some rows at a time are asked for: a tensor, or what reads them."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def row_blocks(shape: Sequence[int]) -> Iterator[slice]:
    """The rows by as many as have four million numbers together."""
    step = max(1, _NUMBERS // max(shape[1], 1))
    return (slice(start, start + step) for start in range(0, shape[0], step))


@full_precision
def principal_components(features: Rows, number: int, parts: Whole | None = None) -> Tensor:
    """The features, centred and turned so that ``number`` columns hold most of their variance.

    A randomised subspace iteration (Halko et al., 2011) with fixed random numbers: O(N D number).
    It reads the features by blocks, six times over, or twice where they are no wider.

    Args:
        features: (N, D) floating point: a tensor, or anything with its ``shape``, ``device`` and
            slices of rows.
        number: of columns, at least 1; features that are no wider are only centred.
        parts: where ranks have a part of the rows each.

    Returns:
        (N, min(D, number)) float32.

    Example:
        >>> import torch
        >>> from noisydml.functional import principal_components
        >>> principal_components(torch.tensor([[0.0, 3.0], [0.0, 5.0]]), 1).abs()
        tensor([[1.],
                [1.]])
    """
    read = isinstance(getattr(features, "device", None), torch.device)  # an array has another kind
    if isinstance(features, Tensor) or not read:
        require_floating("features", features, ndim=2)
    require_count("number", number)
    size, width = features.shape
    parts = Whole(size) if parts is None else parts
    reduces = width > number and parts.size > 0
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    largest = torch.zeros((), device=features.device)
    for rows in row_blocks(features.shape):
        block = features[rows].float()
        total += block.sum(dim=0, dtype=torch.float64)
        if reduces:
            largest = torch.maximum(largest, largest_magnitude(block))
    mean = (parts.total(total) / max(parts.size, 1)).float()

    def centred() -> Iterator[Tensor]:
        return (features[rows].float() - mean for rows in row_blocks(features.shape))

    basis = None
    if reduces:
        scale = inverse_scale(parts.largest(largest))  # of squares none is too large
        basis = _leading(lambda: (block * scale for block in centred()), number, parts, mean)
        basis = parts.first(basis)
    components = mean.new_empty(size, min(width, number))
    for rows, block in zip(row_blocks(features.shape), centred(), strict=True):
        components[rows] = block if basis is None else block @ basis
    return components


def _leading(
    blocks: Callable[[], Iterator[Tensor]], number: int, parts: Whole, mean: Tensor
) -> Tensor:
    """(D, number) the directions in which centred rows vary most."""
    generator, device = torch.Generator().manual_seed(0), mean.device
    shape = len(mean), min(number + _SPARE, len(mean))
    start = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    basis = start.to(device)
    for _ in range(_POWERS):
        product = torch.zeros(shape, dtype=torch.float64, device=device)
        for block in blocks():
            product += block.T @ (block @ basis)
        basis = torch.linalg.qr(parts.total(product).float()).Q
    gram = torch.zeros(2 * shape[1:], dtype=torch.float64, device=device)
    for block in blocks():
        reduced = block @ basis
        gram += reduced.T @ reduced
    gram = parts.total(gram)
    # LAPACK fails on what rounding leaves of rows that are all the same.
    _, turn = torch.linalg.eigh(gram * inverse_scale(gram.amax()))
    leading: Tensor = basis @ turn[:, -number:].to(basis)
    return leading


@full_precision
def within_class_whitening(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    num_classes: int,
    shrinkage: float | Tensor | None = None,
    parts: Whole | None = None,
) -> Tensor:
    r"""The matrix that makes the spread inside the classes the same in every direction.

    With :math:`\Sigma` the weighted covariance of the features around the means of their classes,
    it is :math:`V \Lambda^{-1/2}` of the eigendecomposition of
    :math:`(1 - a) \Sigma + a \frac{\operatorname{tr} \Sigma}{D} I`.

    Args:
        features: (N, D) floating point.
        labels: (N,) integers in ``[0, num_classes)``.
        weights: (N,) floating point, not negative; 0 for a sample that takes no part.
        num_classes: C.
        shrinkage: :math:`a` in ``[0, 1]``, towards the mean variance. None for that of
            :func:`~noisydml.functional.whitening.shrinkage_of_few` with one half and 20.
        parts: where ranks have a part of the rows each.

    Returns:
        (D, D) float32; the features are to be multiplied by it from the right. The identity where
        there is no spread.

    Example:
        >>> import torch
        >>> from noisydml.functional import within_class_whitening
        >>> features = torch.tensor([[0.0, 2.0], [0.0, 0.0], [9.0, 2.0], [9.0, 0.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> within_class_whitening(features, labels, torch.ones(4), 2, shrinkage=0.5).abs()
        tensor([[2.0000, 0.0000],
                [0.0000, 1.1547]])
    """
    require_floating("features", features, ndim=2)
    require_integer("labels", labels, len(features), "feature")
    require_floating("weights", weights, ndim=1)
    parts = Whole(len(features)) if parts is None else parts
    if shrinkage is None:
        shrinkage = shrinkage_of_few(0.5, 20, features.shape[1], parts.total((weights > 0).sum()))
    weights, labels = weights.float().unsqueeze(1), labels.long()
    sums = weights.new_zeros(num_classes, features.shape[1])
    for rows in row_blocks(features.shape):
        sums.index_add_(0, labels[rows], features[rows].float() * weights[rows])
    counts = weights.new_zeros(num_classes, 1).index_add_(0, labels, weights)
    means = parts.total(sums) / parts.total(counts).clamp_min(_TINY)
    covariance = sums.new_zeros(2 * features.shape[1:], dtype=torch.float64)
    for rows in row_blocks(features.shape):
        spread = features[rows].float() - means.index_select(0, labels[rows])
        spread *= weights[rows].sqrt()
        covariance += spread.T @ spread
    covariance = parts.total(covariance) / parts.total(weights.sum()).clamp_min(_TINY)
    mean = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=torch.float64, device=features.device)
    covariance = torch.where(mean > 0, covariance.lerp(mean * identity, shrinkage), identity)
    variance, directions = torch.linalg.eigh(covariance)
    matrix: Tensor = directions / variance.clamp_min(_TINY * variance[-1]).sqrt()
    return parts.first(matrix.float())


def shrinkage_of_few(least: float, samples: int, width: int, number: Tensor) -> Tensor:
    r"""The shrinkage of a covariance, more where samples are few for its width.

    :math:`\max(s, \frac{m D}{m D + n})`: where samples are few, each of them has directions to
    itself, in which whitening draws it to the class of its label, be that right or wrong.

    Args:
        least: :math:`s` in ``[0, 1]``.
        samples: :math:`m`, of a column, with which it is one half at least.
        width: D, number of columns.
        number: 0-dim, n, the samples that take part.

    Returns:
        0-dim.

    Example:
        >>> import torch
        >>> from noisydml.functional.whitening import shrinkage_of_few
        >>> [round(shrinkage_of_few(0.5, 20, 10, torch.tensor(n)).item(), 6) for n in (50, 1000)]
        [0.8, 0.5]
    """
    few = samples * width
    return (few / (few + number)).clamp_min(least)
