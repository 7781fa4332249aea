"""What the wrappers decided, as numbers and as a line for a log."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisydml.wrappers.base import LossWrapper
from noisydml.wrappers.decision import Decision


@torch.no_grad()
def decision_stats(decision: Decision) -> dict[str, float]:
    """The figures of a decision, for a log or table.

    Every decision has all keys, so that a step is a row of a table. What it does not know is NaN:
    TensorBoard leaves a gap, and the means of pandas leave it out.

    * ``size``: number of samples, B;
    * ``kept``: share of them that the wrapped loss saw;
    * ``mean_weight``: of all B, dropped ones included;
    * ``threshold``, ``noise_rate``: the decision's;
    * ``score_q10``, ``score_q50``, ``score_q90``: quantiles of the scores, each one of them.

    Costs one host synchronisation on CUDA: call it in the steps that are logged.

    Raises:
        TypeError: if ``decision`` is none, as that of a loss that was not called yet.

    Example:
        >>> import torch
        >>> from noisydml import Decision, decision_stats
        >>> score, threshold = torch.tensor([0.9, 0.7, 0.1, 0.8]), torch.tensor(0.5)
        >>> keep = score > threshold
        >>> stats = decision_stats(Decision(keep, keep.float(), score, threshold))
        >>> stats["kept"], stats["threshold"], stats["noise_rate"]
        (0.75, 0.5, nan)
    """
    if not isinstance(decision, Decision):
        none = "None: the loss has not been called yet"
        got = none if decision is None else type(decision).__name__
        raise TypeError(f"decision must be a Decision, got {got}")
    size = len(decision.keep)
    unknown = torch.full((), math.nan, dtype=torch.float64, device=decision.keep.device)
    scores = unknown if decision.score is None or size == 0 else decision.score.double()
    numbers: dict[str, Tensor | None] = {
        "kept": decision.keep.double().mean(),
        "mean_weight": decision.weight.double().mean(),
        "threshold": decision.threshold,
        "noise_rate": decision.noise_rate,
    }
    for percent in (10, 50, 90):
        # The nearest, as between infinite scores nothing can be interpolated.
        numbers[f"score_q{percent}"] = scores.nanquantile(percent / 100, interpolation="nearest")
    known = [unknown if n is None else n.double().reshape(()) for n in numbers.values()]
    values = torch.stack(known).tolist()
    return {"size": float(size), **dict(zip(numbers, values, strict=True))}


def decision_summary(loss: LossWrapper) -> str:
    """One line for a log: what each wrapper of a nest made of the last batch, the outermost first.

    Costs one host synchronisation for each wrapper on CUDA.

    Raises:
        TypeError: if ``loss`` is not a wrapper.

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
    words = ", ".join(filter(None, [_words(loss.decision), loss.status()]))
    line = f"{type(loss).__name__}: {words}"
    return f"{line}; {decision_summary(loss.loss)}" if isinstance(loss.loss, LossWrapper) else line


def _words(decision: Decision | None) -> str:
    if decision is None:
        return "not called yet"
    stats = decision_stats(decision)
    size = round(stats["size"])
    if size == 0:
        return "no samples"
    words = [f"kept {round(stats['kept'] * size)} of {size}"]
    # Of a filter the weights say no more.
    if not math.isclose(stats["mean_weight"], stats["kept"], abs_tol=1e-6):
        words.append(f"mean weight {stats['mean_weight']:.3f}")
    named = {"threshold": "threshold", "noise_rate": "noise rate", "score_q50": "median score"}
    known = [key for key in named if math.isfinite(stats[key])]
    return ", ".join([*words, *(f"{named[key]} {stats[key]:.3g}" for key in known)])
