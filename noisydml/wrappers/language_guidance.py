"""PLG: the similarities of a batch are drawn towards those of its names in language."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisydml.functional import language_guidance
from noisydml.functional.language_guidance import Direction, SameClass, check_settings
from noisydml.functional.products import finite
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import ValueCheck, in_range
from noisydml.wrappers.regularized import Regularizer


class LanguageGuidance(Regularizer):
    r"""Draws the similarities of a batch towards those of its names in language (PLG).

    The regulariser of ProcSim's Eq. 4 and of MS + PLG: the row-wise divergence between the
    cosines of the embeddings and the mean cosines of their language embeddings
    (:func:`~noisydml.functional.language_guidance`).

    Args:
        language: (N, E), or (N, k, E) for k pseudo-classes, floating point and finite: a row for
            every sample of the data set, or for every class. They are never trained.
            :mod:`noisydml.language` makes them from names.
        by: ``"sample_ids"`` if row i is that of sample i of the data set, ``"labels"`` (published)
            if it is that of class i; then a wrong label takes a wrong row.
        direction: ``"backward"`` (published) or ``"forward"``.
        temperature: finite and above 0; 1 as published.
        shift: finite; 1 as published.
        same_class: ``"fill"`` (published), ``"diagonal"`` or ``"keep"``.

    Forward:
        ``(embeddings, labels, sample_ids)`` to (B,) divergences, called by
        :class:`RegularizedLoss`.

    Raises:
        TypeError: if the table is not floating point, or a number none.
        ValueError: if the table has no row, or neither two nor three dimensions, or a setting is
            outside the values above; in training if ids are missing, there is no row for one, or
            its row is not finite.

    The table is a buffer and moves with the loss, but is a setting and no part of
    ``state_dict``. It keeps its dtype, so float16 halves its memory.

    References:
        Roth, Vinyals, Akata, Integrating Language Guidance into Vision-based Deep Metric
        Learning, CVPR 2022.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import MultiSimilarityLoss
        >>> from noisydml import LanguageGuidance, RegularizedLoss
        >>> of_classes = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])  # E = 2
        >>> guidance = LanguageGuidance(of_classes, by="labels")
        >>> loss_fn = RegularizedLoss(MultiSimilarityLoss(), guidance, weight=10)
        >>> loss = loss_fn(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> loss_fn.regularization.shape
        torch.Size([])
    """

    table: Tensor

    def __init__(
        self,
        language: Tensor,
        by: Literal["sample_ids", "labels"],
        *,
        direction: Direction = "backward",
        temperature: float = 1.0,
        shift: float = 1.0,
        same_class: SameClass = "fill",
    ) -> None:
        super().__init__()
        check_settings(language, direction, temperature, shift, same_class)
        if len(language) == 0:
            raise ValueError("language must have at least one row, got none")
        if by not in ("sample_ids", "labels"):
            raise ValueError(f"by must be 'sample_ids' or 'labels', got {by!r}")
        self.by = by
        self.direction = direction
        self.temperature = float(temperature)
        self.shift = float(shift)
        self.same_class = same_class
        self.register_buffer("table", language.detach().clone(), persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None) -> Tensor:
        row = labels if self.by == "labels" else sample_ids
        assert row is not None  # own_checks has seen to it
        with torch.autocast(embeddings.device.type, enabled=False):
            return language_guidance(
                embeddings,
                self.table.index_select(0, row),
                labels,
                direction=self.direction,
                temperature=self.temperature,
                shift=self.shift,
                same_class=self.same_class,
            )

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        row = batch.labels if self.by == "labels" else batch.sample_ids
        if row is None:
            raise ValueError(
                "LanguageGuidance needs sample_ids, the row of each sample in language"
            )
        rows = len(self.table)
        # Before the first step the table is not where the batch is.
        looked_up = self.table.to(row.device).index_select(0, row.clamp(0, rows - 1))
        bad = finite(looked_up).logical_not()
        return [
            in_range(self.by, row, rows, "the rows of language"),
            ValueCheck(bad, "language must be finite, got NaN or infinity"),
        ]

    def extra_repr(self) -> str:
        return f"rows={len(self.table)}, by={self.by}, direction={self.direction}"
