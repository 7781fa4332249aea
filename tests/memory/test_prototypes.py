"""Prototypes over a memory of features; the mathematics is tested in tests/functional."""

from __future__ import annotations

import io

import torch

from noisydml.functional import class_gaussians, floor_variances, gaussian_log_density
from noisydml.memory.prototypes import Prototypes

IDS = torch.arange(12)
LABELS = IDS % 3


def filled(**settings: bool) -> Prototypes:
    torch.manual_seed(0)
    prototypes = Prototypes(4, 5, 12, **settings)
    prototypes.remember(torch.randn(12, 5) + LABELS.unsqueeze(1), LABELS, IDS)
    prototypes.estimate()
    return prototypes


def test_they_are_the_gaussians_of_the_memory() -> None:
    prototypes = filled()
    means, variances, counts = class_gaussians(prototypes.memory.features, LABELS, 4)
    assert torch.equal(prototypes.means, means)
    assert torch.equal(prototypes.variances, floor_variances(variances, counts, 0.1))
    assert prototypes.counts.tolist() == [4, 4, 4, 0]
    features = torch.randn(3, 5)
    expected = gaussian_log_density(features, means, prototypes.variances, counts)
    assert torch.equal(prototypes.log_density(features), expected)


def test_an_empty_memory_has_none() -> None:
    prototypes = Prototypes(4, 5, 12)
    prototypes.estimate()
    prototypes.refine(k=3, cycle=1)
    assert prototypes.counts.tolist() == [0] * 4
    assert (prototypes.log_density(torch.randn(2, 5)) == -torch.inf).all()
    assert len(prototypes.refined_labels().sample_ids) == 0


def test_the_next_estimate_uses_the_refined_labels() -> None:
    prototypes = filled()
    prototypes.refine(k=6, cycle=1)
    ids, old, new, cycle = prototypes.refined_labels()
    assert len(ids) > 0
    assert torch.equal(old, LABELS[ids])
    in_use = prototypes.labels_in_use(LABELS, IDS)
    assert torch.equal(in_use[ids], new)
    assert (cycle == 1).all()
    prototypes.estimate()
    assert torch.equal(prototypes.counts, torch.bincount(in_use, minlength=4))


def test_entries_without_ids_are_never_refined() -> None:
    prototypes = Prototypes(4, 5, 12)
    prototypes.remember(torch.randn(12, 5), LABELS, None)
    prototypes.estimate()
    prototypes.refine(k=6, cycle=1)
    assert len(prototypes.refined_labels().sample_ids) == 0
    assert torch.equal(prototypes.labels_in_use(LABELS, None), LABELS)


def test_everything_is_saved() -> None:
    first, second = filled(by_direction=True), Prototypes(4, 5, 12, by_direction=True)
    first.refine(k=6, cycle=1)
    saved = {name for name in first.state_dict() if not name.endswith("_extra_state")}
    assert saved == {name for name, _ in first.named_buffers()}
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for mine, other in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(mine, other)
    features = torch.randn(3, 5)
    assert torch.equal(first.log_density(features), second.log_density(features))
    assert torch.equal(first.directions(features), second.directions(features))


def test_half_precision_spoils_no_density() -> None:
    prototypes, features = filled(), torch.randn(3, 5)
    exact = prototypes.log_density(features)
    prototypes.half()
    densities = prototypes.log_density(features.half())
    assert densities.dtype == torch.float32
    torch.testing.assert_close(densities, exact, rtol=1e-2, atol=0)
    assert prototypes.directions(features.half()).dtype == torch.float32
    prototypes.variances[:, 0] = 0  # as it makes of what is below 6e-8
    assert not prototypes.log_density(features).isnan().any()


def test_directions_are_unit_vectors_from_the_center() -> None:
    prototypes = filled(by_direction=True)
    directions = prototypes.directions(prototypes.memory.features)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(12))
    of_means = prototypes.directions(prototypes.means)
    torch.testing.assert_close(of_means[:3].sum(dim=0).norm() < 3, torch.tensor(True))
    torch.testing.assert_close(prototypes.center, prototypes.means[:3].mean(dim=0))
