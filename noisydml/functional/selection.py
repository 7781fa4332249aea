"""PRISM's choice among the samples of a batch, given their similarities to the classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisydml.functional.checks import on_host
from noisydml.functional.clean_probability import own_similarity, softmax_probability
from noisydml.functional.low_ranks import smooth_noise_rate, smooth_noise_rate_on_host
from noisydml.functional.top_r import smooth_top_r, smooth_top_r_on_host

# An estimate of this or more says that the features tell too little yet, not that most labels are
# wrong: to drop the lowest would be to drop nearly at random, too many for anything to be learned.
_NOTHING_LEARNED = 0.7


class Window(NamedTuple):
    """What is kept of the last W batches.

    Attributes:
        quantiles: (W,) float64, the latest at the end, zeros in front of the first.
        number: 0-dim int64, how many of them there are.
        low_ranks: (W, 2) float64, :func:`~noisydml.functional.low_rank_counts` of the batches, the
            latest at the end; None where the noise rate is given.
    """

    quantiles: Tensor
    number: Tensor
    low_ranks: Tensor | None


class Candidates(NamedTuple):
    """A batch of one row or more to choose from.

    Attributes:
        similarities: (B, C) from :func:`~noisydml.functional.class_similarity`, without a graph.
        labels: (B,) integers in ``[0, C)``.
        scores: (B,) in the place of Eq. 7, ``-inf`` for a class that the memory does not hold;
            None for Eq. 7.
        samples: (B,) bool, which rows take part in quantile and estimate; None for all.
        noise_rate: R; None to have it estimated.
        progress: 0-dim integer; nobody is dropped while it is below ``warmup``.
        warmup: see there.
    """

    similarities: Tensor
    labels: Tensor
    scores: Tensor | None
    samples: Tensor | None
    noise_rate: float | None
    progress: Tensor
    warmup: int


class Selection(NamedTuple):
    """What is chosen from a batch.

    Attributes:
        scores: (B,) float64, 1 for a class that the memory does not hold.
        keep: (B,) bool.
        threshold: 0-dim float64, what the scores must be above; ``-inf`` drops nobody.
        noise_rate: 0-dim float64, given or estimated.
        window: the window after the batch.
    """

    scores: Tensor
    keep: Tensor
    threshold: Tensor
    noise_rate: Tensor
    window: Window


def select(batch: Candidates, window: Window) -> Selection:
    """PRISM's Alg. 1, lines 1 to 14, given the window of the batches before."""
    choose = _select_on_host if on_host(batch.similarities) else _select_on_device
    return choose(batch, window)


def _select_on_device(batch: Candidates, window: Window) -> Selection:
    own = own_similarity(batch.similarities, batch.labels)
    evidence = own if batch.scores is None else batch.scores
    known = evidence != -math.inf  # so is NaN, which is above no threshold
    if batch.scores is None:
        scores = softmax_probability(batch.similarities, batch.labels).double()
    else:
        scores = torch.where(known, evidence, 1.0).double()
    counted = known if batch.samples is None else known & batch.samples
    if batch.noise_rate is None:
        assert window.low_ranks is not None
        rate, low_ranks = smooth_noise_rate(
            batch.similarities, own, batch.samples, window.low_ranks
        )
        to_drop = rate.masked_fill(rate >= _NOTHING_LEARNED, 0)
    else:
        to_drop = rate = scores.new_full((), batch.noise_rate)
        low_ranks = None
    smooth = smooth_top_r(scores, to_drop, counted, window.quantiles, window.number)
    threshold = smooth.threshold.masked_fill(batch.progress < batch.warmup, -math.inf)
    keep = (scores > threshold) | known.logical_not()
    after = Window(smooth.quantiles, smooth.number, low_ranks)
    return Selection(scores, keep, threshold, rate, after)


def _select_on_host(batch: Candidates, window: Window) -> Selection:
    """The same where numbers can be read without a wait: NumPy is quicker with so few of them."""
    similarities = batch.similarities.numpy()
    of_label = (np.arange(len(similarities)), batch.labels.numpy())
    own = similarities[of_label]
    evidence = own if batch.scores is None else batch.scores.numpy()
    known = evidence != -math.inf
    if batch.scores is None:
        evidence = batch.similarities.softmax(dim=1).numpy()[of_label]
    scores = np.where(known, evidence, 1).astype(np.float64)
    samples = True if batch.samples is None else batch.samples.numpy()
    rate, low_ranks = batch.noise_rate, None
    if rate is None:
        assert window.low_ranks is not None
        ranked, before = (own > -math.inf) & samples, window.low_ranks.double().numpy()
        rate, after = smooth_noise_rate_on_host(similarities, own, ranked, before)
        low_ranks = torch.from_numpy(after)
    threshold, quantiles, number = smooth_top_r_on_host(
        scores,
        0.0 if batch.noise_rate is None and rate >= _NOTHING_LEARNED else rate,
        known & samples,
        window.quantiles.double().numpy(),
        int(window.number),
    )
    if int(batch.progress) < batch.warmup:
        threshold = -math.inf
    return Selection(
        torch.from_numpy(scores),
        torch.from_numpy((scores > threshold) | ~known),
        torch.from_numpy(np.array(threshold)),
        torch.from_numpy(np.array(rate, dtype=np.float64)),
        Window(torch.from_numpy(quantiles), window.number.new_full((), number), low_ranks),
    )
