"""Ranks that have a part of the samples each judge them as one process does that has them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import run_ranks
from torch import Tensor

from noisydml import noise
from noisydml.memory.judge import LabelJudgement, judge_labels

WITH_FOUR = ("at random", "copies, some without a label", "many")

Problem = tuple[Tensor, Tensor, dict[str, Any]]


def classes(
    number: int, per_class: int, spread: float | Tensor, width: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    true = torch.arange(number).repeat_interleave(per_class)
    centers = torch.randn(number, width, generator=generator)
    return centers[true] + spread * torch.randn(len(true), width, generator=generator), true


def problems() -> dict[str, Problem]:
    features, true = classes(8, 40, 1.0, width=12)
    at_random = torch.from_numpy(noise.uniform(true, 0.3, seed=0).labels)
    flipped = torch.from_numpy(noise.pair_flip(true, 0.3, seed=0).labels)
    unlabelled = at_random.clone()
    unlabelled[::9] = -1
    rows = torch.cat([torch.arange(len(true)), torch.arange(0, 60, 3), torch.arange(0, 60, 3)])
    many, kinds = classes(150, 6, 0.6, width=16)  # of which a sample is compared with some
    trained = features + 0.9 * torch.randn(12)[flipped % 12, None]
    wide, few = classes(6, 30, 1.5, width=300)
    unequal = torch.linspace(0.3, 1.8, 20).repeat_interleave(60).unsqueeze(1)
    hard, right = classes(20, 60, unequal, width=8)  # samples that are not taken for wrong
    scale = torch.tensor([1.0] * 9 + [0.1] * 3)
    corner, corners = classes(4, 50, scale, width=12)  # apart where they hardly vary
    corner[:, :9] -= corner.reshape(4, 50, 12).mean(dim=1)[corners, :9]
    return {
        "at random": (features, at_random, {"folds": 1}),
        "particular classes": (features, flipped, {"folds": 2}),
        "distances": (features, at_random, {"metric": "euclidean", "folds": 1}),
        "copies, some without a label": (features[rows], unlabelled[rows], {"folds": 1}),
        "more copies than neighbours": (
            torch.cat([features, features[:1].expand(40, -1), features[50:51].expand(40, -1)]),
            torch.cat([at_random, torch.arange(40) % 20, at_random[50:51].expand(40)]),
            {"folds": 1, "k": 20},
        ),
        "distrusted": (features, at_random, {"trust": (at_random == true) / 2 + 0.5, "folds": 1}),
        "trained": (trained, flipped, {"trained": True, "folds": 1}),
        "told": (features, flipped, {"noise_rate": 0.2, "folds": 1}),
        "many": (many, torch.from_numpy(noise.uniform(kinds, 0.2, seed=0).labels), {"folds": 1}),
        "wide": (wide, torch.from_numpy(noise.uniform(few, 0.2, seed=0).labels), {"folds": 1}),
        "hard": (hard, right, {"folds": 1}),
        "narrow": (corner, corners, {"folds": 1}),
        "nothing to say": (features[:40], at_random[torch.randperm(40)], {"folds": 1}),
        "one class": (features[:40], true[:40], {}),
    }


def part(size: int, rank: int, world: int) -> slice:
    """The rows of a rank: some more for the later ones, and of four ranks none for the second."""
    ends = [size * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    if world == 4:
        ends[2] = ends[1]
    return slice(ends[rank], ends[rank + 1])


def judged_in_parts(rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(0)
    found = {}
    for name, (features, labels, settings) in problems().items():
        if world == 4 and name not in WITH_FOUR:
            continue
        own = part(len(labels), rank, world)
        if "trust" in settings:
            settings = {**settings, "trust": settings["trust"][own]}
        said = judge_labels(features[own], labels[own], shard=True, **settings)
        found[name] = said._asdict()
    return found


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folders = {world: tmp_path_factory.mktemp(f"ranks{world}") for world in (2, 4)}
    return {world: run_ranks(judged_in_parts, world, path) for world, path in folders.items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, LabelJudgement]:
    torch.manual_seed(0)
    return {name: judge_labels(x, y, **settings) for name, (x, y, settings) in problems().items()}


@pytest.mark.parametrize(
    ("world", "name"), [*((2, name) for name in problems()), *((4, name) for name in WITH_FOUR)]
)
def test_it_is_what_one_process_says(
    world: int, name: str, by_rank: dict[int, list[Any]], whole: dict[str, LabelJudgement]
) -> None:
    """Sums over ranks round otherwise, so that it is not to the bit."""
    expected = whole[name]
    for field, value in expected._asdict().items():
        parts = [found[name][field] for found in by_rank[world]]
        if field == "neighbors" and "copies" in name:
            continue  # of equally near ones any may come first
        if isinstance(value, Tensor):
            joined = torch.cat(parts)
            torch.testing.assert_close(
                joined, value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=field
            )
        elif isinstance(value, (str, bool)):
            assert set(parts) == {value}, field
        else:
            for each in parts:
                assert each == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), field
                assert repr(each) == repr(parts[0]), field  # no two ranks apart


def test_with_one_process_it_is_the_same(whole: dict[str, LabelJudgement]) -> None:
    torch.manual_seed(0)
    features, labels, settings = problems()["at random"]
    found = judge_labels(features, labels, shard=True, **settings)
    assert torch.equal(found.score, whole["at random"].score)


def test_the_problems_differ(whole: dict[str, LabelJudgement]) -> None:
    assert {found.structured for found in whole.values()} == {False, True}
    told = {found.found_by for found in whole.values()}
    assert len(told) == 5, told
    assert whole["hard"].noise_rate < 0.5 * whole["hard"].noise_rate_bounds[1]
    copied = whole["copies, some without a label"].copies != torch.arange(360)
    assert copied.sum() == 2 * (20 - 7)  # those without a label are not asked for
