"""How many labels are wrong, from features of a network that was trained on them."""

from __future__ import annotations

import torch

from noisydml.functional.class_evidence import leave_one_out_similarity
from noisydml.functional.judge import core_rate
from noisydml.functional.neighbors import neighbor_label_score
from noisydml.functional.prism import low_rank_counts
from noisydml.memory.evidence import Sample

_BLOCK = 2**22  # similarities at once
# Noise that falls on all classes alike ranks as low as it is frequent; of noise that falls on
# similar classes less than this part does.
_LOW = 0.4
_MOST = 2.0  # times what the judge sees


def trained_rate(sample: Sample, rate: float) -> float:
    r"""What the rate of wrong labels is where the features have been trained on all of them.

    A neighbourhood that is of one mind lies deep inside one true class even then, so the share
    that has another label there counts, the rate of the core
    (:func:`~noisydml.functional.judge.core_rate`), up to twice the judge's. It does not where wrong
    labels rank as low as those that are wrong at random
    (:func:`~noisydml.functional.low_rank_counts`): with features that tell little the core has
    wrong labels by chance. No sample has a part in its own judgement.

    Args:
        sample: the labelled features.
        rate: of the judge.

    Returns:
        At least that. Asks the host.
    """
    core, low = core_and_low_ranks(sample)
    return max(rate, min(core, _MOST * rate)) if low < _LOW * core else rate


def core_and_low_ranks(sample: Sample) -> tuple[float, float]:
    """The shares of wrong labels where neighbours agree most, and by low ranks."""
    labelled = sample.labelled.nonzero().squeeze(1)
    directions = sample.all_directions(sample.weights)
    sums = sample.sums(directions.__getitem__, sample.weights)
    support, wrong = [], []
    low = torch.zeros(2, dtype=torch.float64, device=labelled.device)
    for some in torch.split(labelled, max(1, _BLOCK // sample.num_classes)):
        mine = sample.codes[some]
        voters = sample.all_classes[sample.near[some].clamp_min(0)]
        vote = neighbor_label_score(voters, mine, sample.votes[some])
        support.append(vote.support)
        wrong.append(vote.majority != mine)
        similarity, own = leave_one_out_similarity(
            directions[some], sums, mine, sample.own_weights[some]
        )
        similarity.scatter_(1, mine.unsqueeze(1), own.unsqueeze(1))
        low += torch.stack(low_rank_counts(similarity, own))
    everyone = sample.parts.everyone
    core = float(core_rate(everyone(torch.cat(support)), everyone(torch.cat(wrong))))
    low = sample.parts.total(low)
    return core, float(low[0] / low[1].clamp_min(1e-12))
