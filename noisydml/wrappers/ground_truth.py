"""The filter that knows the truth: the ceiling of every experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisydml.functional.checks import require_dense
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import ValueCheck, in_range
from noisydml.wrappers.decision import Judgement
from noisydml.wrappers.filter import Filter


class GroundTruthFilter(Filter):
    """Drops the samples that are known to have a wrong label.

    This is what a perfect detector of wrong labels would reach by dropping them. Compare every
    other wrapper with it.

    Args:
        loss: any PML loss, another wrapper, or any callable ``loss(embeddings, labels)``.
        is_noisy: (N,) bool, True where the label of the data set's sample i is wrong.
        validate_args: whether values are checked; see :class:`LossWrapper`.

    Forward:
        As every wrapper, with ``sample_ids`` (B,) in ``[0, N)`` required while training.
        ``decision.score`` is 1 for clean and 0 for noisy samples, ``decision.threshold`` 0.5.

    Raises:
        TypeError: if ``is_noisy`` is no bool tensor.
        ValueError: if it has not one dimension; in training if ``sample_ids`` are missing or out of
            range.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import ContrastiveLoss
        >>> from noisydml import GroundTruthFilter
        >>> is_noisy = torch.tensor([False, False, True, False])
        >>> loss_fn = GroundTruthFilter(ContrastiveLoss(), is_noisy)
        >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 0, 1])
        >>> loss_fn(embeddings, labels, sample_ids=torch.arange(4))
        tensor(1.4142)
        >>> loss_fn.decision.keep
        tensor([ True,  True, False,  True])
    """

    judges_anything = True
    is_noisy: Tensor

    def __init__(
        self, loss: Callable[..., Any], is_noisy: Tensor, *, validate_args: bool = True
    ) -> None:
        super().__init__(loss, validate_args=validate_args)
        if not isinstance(is_noisy, Tensor) or is_noisy.dtype != torch.bool:
            got = is_noisy.dtype if isinstance(is_noisy, Tensor) else type(is_noisy).__name__
            raise TypeError(f"is_noisy must be a bool tensor, got {got}")
        if is_noisy.ndim != 1:
            raise ValueError(f"is_noisy must have 1 dimension, got shape {tuple(is_noisy.shape)}")
        require_dense("is_noisy", is_noisy)
        self.register_buffer("is_noisy", is_noisy.detach().clone())

    def judge(self, batch: Batch) -> Judgement:
        assert batch.sample_ids is not None  # own_checks has seen to it
        clean = self.is_noisy.index_select(0, batch.sample_ids.clamp_min(0)).logical_not()
        keep = clean if batch.synthetic is None else clean | batch.synthetic
        score = keep.float()
        return self.filtered(batch, batch, keep, score, score.new_full((), 0.5))

    def own_checks(self, batch: Batch) -> list[ValueCheck]:
        if batch.sample_ids is None:
            raise ValueError(
                "GroundTruthFilter needs sample_ids, the position of each sample in is_noisy"
            )
        size = len(self.is_noisy)
        return [in_range("sample_ids", batch.sample_ids, size, "the length of is_noisy")]

    def extra_repr(self) -> str:
        return f"num_samples={len(self.is_noisy)}"
