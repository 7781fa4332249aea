"""What a wrapper decided about a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisydml.pml.batch import Batch


@dataclass(frozen=True, eq=False)
class Decision:
    """What a wrapper decided about one batch; detached, on the batch's device.

    Attributes:
        keep: (B,) bool, the samples that the wrapped loss saw.
        weight: (B,) float, what the wrapper multiplied each sample's loss by, 1 for trusted ones.
            A ``sample_weight`` of the caller's is not part of it.
        score: (B,) float, the evidence that a label is right: higher is cleaner. None where the
            method has none.
        threshold: 0-dim float in the unit of ``score``; samples below it are distrusted. None
            where the method has none.
        noise_rate: 0-dim float, the share of wrong labels that the wrapper goes by, estimated or
            given. None where the method needs none.
        suggested_labels: (B,) int64, the label that the evidence speaks for. None where the
            method makes no suggestion.
        support: (B,) float in [0, 1], the share of the evidence that speaks for the suggested
            label. None where the method makes no suggestion.
        runner_up: (B,) float in [0, 1], the evidence for the second label over that for the
            first. None where the method makes no suggestion.
        judged: (B,) bool, for which samples there was something to judge by. Those that nobody
            could judge (in warm-up, before there is a reference, of a class never seen) are kept,
            but by a ``JudgeFilter`` that has yet to collect them, which is no evidence either way.
            Rows that a wrapper has made up are no samples, and never count as judged. Every
            sample, unless a wrapper says otherwise.
        probability: (B,) float in [0, 1], that the label is right, NaN for a sample that was not
            judged. None where the method has none.
    """

    keep: Tensor
    weight: Tensor
    score: Tensor | None = None
    threshold: Tensor | None = None
    noise_rate: Tensor | None = None
    suggested_labels: Tensor | None = None
    support: Tensor | None = None
    runner_up: Tensor | None = None
    judged: Tensor = None  # type: ignore[assignment]
    probability: Tensor | None = None

    def __post_init__(self) -> None:
        if self.judged is None:
            object.__setattr__(self, "judged", torch.ones_like(self.keep, dtype=torch.bool))

    @classmethod
    def trusting(cls, batch: Batch) -> Decision:
        """Every sample kept, with weight 1, and none of them judged."""
        ones = torch.ones(len(batch), device=batch.device, dtype=torch.float32)
        return cls(keep=ones.bool(), weight=ones, judged=torch.zeros_like(ones, dtype=torch.bool))


class Judgement(NamedTuple):
    """A decision, and what goes with it.

    ``own_loss`` trains the wrapper's own parameters (proxies): it must reach nothing but those,
    and its value is never added to the result. ``memo`` is whatever ``value`` and ``commit`` need
    of what ``judge`` has computed; None where there is nothing to commit.
    """

    decision: Decision
    own_loss: Tensor | None = None
    memo: Any = None
