"""The rate that features of a trained network hide, against a slow literal form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from noisydml import noise
from noisydml.functional.judge import core_rate
from noisydml.functional.whitening import principal_components, within_class_whitening
from noisydml.memory.evidence import Sample
from noisydml.memory.judge import judge_labels
from noisydml.memory.trained import core_and_low_ranks, trained_rate


def classes(number: int, per_class: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    true = torch.arange(number).repeat(per_class)
    centers = torch.randn(number, 24, generator=generator)
    return centers[true] + spread * torch.randn(len(true), 24, generator=generator), true


def literal(features: Tensor, labels: Tensor, k: int) -> tuple[float, float]:
    number, size = int(labels.max()) + 1, len(labels)
    features = features - features.mean(dim=0)
    unit = normalize(features @ within_class_whitening(features, labels, torch.ones(size), number))
    agreement, wrong, low, expected = [], [], 0.0, 0.0
    for i in range(size):
        others = [j for j in range(size) if j != i]
        cosine = unit[others] @ unit[i]
        nearest = cosine.argsort(descending=True)[:k]
        distance = (1 - cosine[nearest]).clamp_min(0)
        votes = torch.zeros(number)
        for j, d in zip(nearest.tolist(), distance.tolist(), strict=True):
            votes[labels[others[j]]] += math.exp(-8 * d / float(distance.mean()))
        agreement.append(float(votes.max() / votes.sum()))
        wrong.append(int(votes.argmax()) != int(labels[i]))
        own = torch.tensor([j for j in others if labels[j] == labels[i]])
        mine = float(unit[i] @ normalize(unit[own].sum(dim=0), dim=0))
        centers = [normalize(unit[labels == c].sum(dim=0), dim=0) for c in range(number)]
        above = sum(
            float(unit[i] @ center) > mine for c, center in enumerate(centers) if c != labels[i]
        )
        middle = number / 2  # of a wrong label 1 to C - 1 are above
        low += 1.0 if above > middle else 0.5 if above == middle else 0.0
        expected += 0.5
    return float(core_rate(torch.tensor(agreement), torch.tensor(wrong))), low / expected


def sampled(features: Tensor, labels: Tensor, k: int) -> Sample:
    order = labels.argsort(stable=True)
    codes = torch.unique(labels, return_inverse=True)[1][order]
    ones, folds = torch.ones(len(labels)), torch.arange(len(labels)) % 5
    return Sample(
        principal_components(features, 256)[order],
        codes,
        int(codes.max()) + 1,
        ones,
        folds,
        k,
        None,
        "cosine",
    )


@pytest.mark.parametrize("kind", [noise.uniform, noise.pair_flip])
def test_it_is_what_a_loop_over_samples_finds(kind: object) -> None:
    features, true = classes(7, 20, 0.8)
    given = torch.from_numpy(kind(true, 0.3, seed=0).labels)  # type: ignore[operator]
    found = core_and_low_ranks(sampled(features, given, 15))
    assert found == pytest.approx(literal(features, given, 15), abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("spread", [0.5, 2.3])
def test_it_is_the_judges_or_more_and_never_twice_as_much(rate: float, spread: float) -> None:
    features, true = classes(40, 25, spread)
    given = torch.from_numpy(noise.pair_flip(true, rate, seed=0).labels)
    found = judge_labels(features, given, folds=1, core_refutes=False).noise_rate
    trained = judge_labels(features, given, folds=1, trained=True)
    assert found <= trained.noise_rate <= 2 * found
    if rate == 0 or spread < 1:  # certain of the classes, or nothing to see
        assert trained.noise_rate == pytest.approx(found)
    if (rate, spread) == (0.4, 2.3):  # of which the judge sees most, and this then too much
        assert 0.3 < found < 0.36
        assert 0.4 < trained.noise_rate < 0.7
    assert float(trained.probability.mean()) == pytest.approx(1 - trained.noise_rate, abs=1e-6)
    low, high = trained.noise_rate_bounds
    assert low <= trained.noise_rate <= high


def test_uniform_noise_is_left_to_the_judge() -> None:
    features, true = classes(40, 25, 2.0)
    given = torch.from_numpy(noise.uniform(true, 0.4, seed=0).labels)
    assert trained_rate(sampled(features, given, 50), 0.2) == 0.2


def test_core_rate_against_its_definition() -> None:
    agreement, wrong = torch.rand(200), torch.rand(200) < 0.4
    order = sorted(range(200), key=lambda i: -float(agreement[i]))
    tenth = sum(bool(wrong[i]) for i in order[:20]) / 20
    fifth = sum(bool(wrong[i]) for i in order[:40]) / 40
    expected = min(max(2 * tenth - fifth, 0), 1)
    assert float(core_rate(agreement, wrong)) == pytest.approx(expected)
    assert float(core_rate(agreement[:9], wrong[:9])) == 0
