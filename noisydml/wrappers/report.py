"""What the wrappers decided, as numbers and as a line for a log."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noisydml.wrappers.base import Decision, LossWrapper

_QUANTILES = {"score_q10": 0.1, "score_q50": 0.5, "score_q90": 0.9}


@torch.no_grad()
def decision_stats(decision: Decision) -> dict[str, float]:
    """The figures of a decision, for TensorBoard, a CSV file or a log.

    The keys are always the same, so that every step is a row of one table:

    * ``size``: number of samples, B;
    * ``kept``: share of them that the wrapped loss saw;
    * ``mean_weight``: of all B, dropped ones included;
    * ``threshold``, ``noise_rate``: as in the decision;
    * ``score_q10``, ``score_q50``, ``score_q90``: quantiles of the scores, each one of them.

    What a decision does not have is NaN: TensorBoard leaves a gap, and so do the means of pandas.

    Args:
        decision: of a wrapper, ``loss_fn.decision`` after a call.

    Costs one host synchronisation on CUDA: call it in the steps that are logged.

    Example:
        >>> import torch
        >>> from noisydml import Decision, decision_stats
        >>> score, threshold = torch.tensor([0.9, 0.7, 0.1, 0.8]), torch.tensor(0.5)
        >>> keep = score > threshold
        >>> stats = decision_stats(Decision(keep, keep.float(), score, threshold))
        >>> stats["kept"], stats["threshold"], stats["noise_rate"]
        (0.75, 0.5, nan)
    """
    size = len(decision.keep)
    unknown = torch.full((), math.nan, dtype=torch.float64, device=decision.keep.device)

    def number(value: Tensor | None) -> Tensor:
        return unknown if value is None else value.double().reshape(())

    numbers = {
        "kept": decision.keep.double().mean(),
        "mean_weight": decision.weight.double().mean(),
        "threshold": number(decision.threshold),
        "noise_rate": number(decision.noise_rate),
    }
    scores = unknown if decision.score is None or size == 0 else decision.score.double()
    for name, q in _QUANTILES.items():
        # The nearest, as between infinite scores nothing can be interpolated.
        numbers[name] = scores.nanquantile(q, interpolation="nearest")
    values = torch.stack(list(numbers.values())).tolist()
    return {"size": float(size), **dict(zip(numbers, values, strict=True))}


def decision_summary(loss: LossWrapper) -> str:
    """One line for a log: what each wrapper of a nest made of the last batch, the outermost first.

    Args:
        loss: the wrapper that is called.

    Raises:
        TypeError: if ``loss`` is not a wrapper.

    Costs one host synchronisation for each wrapper on CUDA: call it in the steps that are logged.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from noisydml import GroundTruthFilter, decision_summary
        >>> is_noisy = torch.tensor([False, True, False])
        >>> loss_fn = GroundTruthFilter(losses.ContrastiveLoss(), is_noisy)
        >>> decision_summary(loss_fn)
        'GroundTruthFilter: not called yet'
        >>> loss = loss_fn(torch.eye(3), torch.zeros(3).long(), sample_ids=torch.arange(3))
        >>> decision_summary(loss_fn)
        'GroundTruthFilter: kept 2 of 3, threshold 0.5, median score 1'
    """
    if not isinstance(loss, LossWrapper):
        raise TypeError(f"loss must be a LossWrapper, got {type(loss).__name__}")
    parts = []
    inner: Any = loss
    while isinstance(inner, LossWrapper):
        parts.append(f"{type(inner).__name__}: {_words(inner.decision)}")
        inner = inner.loss
    return "; ".join(parts)


def _words(decision: Decision | None) -> str:
    if decision is None:
        return "not called yet"
    stats = decision_stats(decision)
    size = round(stats["size"])
    if size == 0:
        return "no samples"
    kept = round(stats["kept"] * size)
    words = [f"kept {kept} of {size}"]
    # Of a filter the weights say the same again.
    if not math.isclose(stats["mean_weight"], stats["kept"], abs_tol=1e-6):
        words.append(f"mean weight {stats['mean_weight']:.3f}")
    named = {"threshold": "threshold", "noise_rate": "noise rate", "score_q50": "median score"}
    words += [
        f"{name} {stats[key]:.3g}" for key, name in named.items() if math.isfinite(stats[key])
    ]
    return ", ".join(words)
