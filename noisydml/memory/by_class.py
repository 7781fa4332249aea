"""Labelled features as the judge takes them: principal components, in the order of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from noisydml.functional.parts import Whole
from noisydml.functional.products import inverse_scale, largest_magnitude
from noisydml.functional.whitening import Rows, principal_components
from noisydml.memory.whitened import FOLDS

_WIDTH = 256  # columns that are kept of wide features


def classes_of(labels: Tensor, parts: Whole) -> Tensor:
    """(C,) the labels that occur, on any rank."""
    classes: Tensor = torch.unique(parts.everyone(torch.unique(labels)))
    return classes[classes >= 0]


def by_class(
    labels: Tensor, classes: Tensor, trust: Tensor | None, numbers: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An (N,) order of the samples by their classes; in that order, codes, trust and folds.

    ``size`` is the number of samples of all ranks, of which these are ``numbers`` (N,).
    """
    codes = torch.searchsorted(classes, labels.clamp_min(classes[0]))
    codes = codes.masked_fill(labels < 0, -1)
    trust = torch.ones_like(labels, dtype=torch.float32) if trust is None else trust.float()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(size, generator=generator, device="cpu").to(labels.device)
    order = codes.argsort(stable=True)
    return order, codes[order], trust[order], (drawn[numbers] % FOLDS)[order]


def components_of(features: Rows, parts: Whole) -> Tensor:
    """(N, W) float32, the principal components of the features, whose squares are not too large."""
    components = principal_components(features, _WIDTH, parts)
    components *= inverse_scale(parts.largest(largest_magnitude(components)))
    return components
