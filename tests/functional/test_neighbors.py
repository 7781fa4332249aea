"""The neighbours' vote against counting by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal import neighbor_vote
from torch import Tensor

from noisydml.functional import neighbor_label_score, neighbor_weights, neighbors
from noisydml.functional.neighbors import nearest_of_parts


def check(neighbor_labels: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
    vote = neighbor_label_score(neighbor_labels, labels, weights)
    rows = zip(neighbor_labels.tolist(), labels.tolist(), strict=True)
    for i, (row, label) in enumerate(rows):
        given = None if weights is None else weights[i].tolist()
        score, majority, support, runner_up = neighbor_vote(row, label, given)
        assert vote.majority[i] == majority
        torch.testing.assert_close(vote.score[i].item(), float(score), rtol=1e-12, atol=0)
        torch.testing.assert_close(vote.support[i].item(), float(support), rtol=1e-12, atol=0)
        torch.testing.assert_close(vote.runner_up[i].item(), float(runner_up), rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 11_318])
@pytest.mark.parametrize("k", [1, 2, 5, 20, 200])
def test_counts(k: int, classes: int) -> None:
    check(torch.randint(classes, (50, k)), torch.randint(classes, (50,)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_every_pattern_of_few_labels(row: list[int], label: int) -> None:
    check(torch.tensor([row]), torch.tensor([label]))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_weights(k: int) -> None:
    # Sixteenths are exact in floating point, so that ties are ties; some votes are 0.
    weights = torch.randint(0, 4, (200, k)) / 16
    check(torch.randint(3, (200, k)), torch.randint(3, (200,)), weights)


def test_below_one_half_is_the_papers_condition_in_integers() -> None:
    k = 21
    for own in range(k + 1):
        row = torch.tensor([[1] * own + [2] * (k - own)])
        score = neighbor_label_score(row, torch.tensor([1])).score
        assert bool(score < 0.5) == (2 * own < max(own, k - own))


def test_the_order_of_the_neighbours_does_not_matter() -> None:
    labels, neighbor_labels = torch.randint(4, (30,)), torch.randint(4, (30, 15))
    one = neighbor_label_score(neighbor_labels, labels)
    other = neighbor_label_score(neighbor_labels[:, torch.randperm(15)], labels)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_any_integers_are_labels() -> None:
    big = torch.tensor([[2**62, 2**62, -(2**62)]])
    vote = neighbor_label_score(big, torch.tensor([-(2**62)]))
    assert vote.majority.tolist() == [2**62]
    assert vote.score.tolist() == [0.5]
    assert neighbor_label_score(big.int() * 0, torch.zeros(1, dtype=torch.uint8)).score == 1


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nobody_votes(shape: tuple[int, int]) -> None:
    labels = torch.arange(shape[0])
    vote = neighbor_label_score(torch.zeros(shape, dtype=torch.long), labels)
    assert torch.equal(vote.majority, labels)
    assert (vote.score == 1).all()
    assert (vote.support == 0).all()


def test_votes_of_weight_zero_are_none() -> None:
    vote = neighbor_label_score(torch.tensor([[1, 2]]), torch.tensor([3]), torch.zeros(1, 2))
    assert (vote.score, vote.majority, vote.support) == (1, 3, 0)


def test_nothing_is_as_wide_as_the_number_of_classes(dataless: torch.device) -> None:
    """Labels without values: no shape can depend on them, and nobody is asked for them."""
    neighbor_labels = torch.zeros(8, 5, dtype=torch.long, device=dataless)
    labels = torch.zeros(8, dtype=torch.long, device=dataless)
    distance = torch.rand(8, 5, device=dataless)
    vote = neighbor_label_score(neighbor_labels, labels, neighbor_weights(distance, 4.0))
    assert [part.shape for part in vote] == [(8,)] * 4


def test_weights_by_the_formula() -> None:
    distance = torch.rand(40, 7, dtype=torch.float64)
    weights = neighbor_weights(distance, 3.0)
    for row, got in zip(distance.tolist(), weights.tolist(), strict=True):
        mean = sum(map(Fraction, row)) / 7
        wanted = torch.tensor([-3.0 * float(Fraction(d) / mean) for d in row]).double().exp()
        torch.testing.assert_close(torch.tensor(got).double(), wanted, rtol=1e-6, atol=0)


def test_weights_do_not_depend_on_the_scale() -> None:
    distance = torch.rand(5, 9, dtype=torch.float64)
    expected = neighbor_weights(distance, 4.0)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(neighbor_weights(distance * scale, 4.0), expected)


def test_weights_at_the_ends() -> None:
    assert torch.equal(neighbor_weights(torch.zeros(2, 3), 8.0), torch.ones(2, 3))
    assert neighbor_weights(torch.zeros(2, 0), 8.0).shape == (2, 0)
    far = neighbor_weights(torch.tensor([[0.0] * 99 + [1.0]]), 50.0)
    assert far[0, :99].eq(1).all()
    assert 0 < far[0, 99] < 1e-30


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((torch.zeros(3).long(), torch.zeros(3).long()), ValueError, "neighbor_labels"),
        (([[1]], torch.zeros(1).long()), TypeError, "neighbor_labels"),
        ((torch.zeros(3, 2), torch.zeros(3).long()), TypeError, "neighbor_labels"),
        ((torch.zeros(3, 2).long(), torch.zeros(2).long()), ValueError, "neighbor_labels"),
        ((torch.zeros(3, 2).long(), torch.zeros(3)), TypeError, "labels"),
        ((torch.zeros(3, 2).long(), torch.zeros(3).long(), torch.zeros(3)), ValueError, "weights"),
        ((torch.zeros(3, 2).long(), torch.zeros(3).long(), torch.zeros(3, 2).long()), TypeError,
         "weights"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: tuple, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        neighbor_label_score(*arguments)


def test_bad_arguments_of_the_weights() -> None:
    with pytest.raises(TypeError, match="distance"):
        neighbor_weights(torch.zeros(2, 2).long(), 1.0)
    with pytest.raises(ValueError, match="sharpness"):
        neighbor_weights(torch.zeros(2, 2), 0.0)


def test_the_nearest_of_parts_are_those_of_a_sorted_list() -> None:
    """Of few different distances, so that many are equal, and parts of which some have fewer."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        distance = torch.randint(0, 3, (4, 6, 5), generator=generator) / 2
        distance = torch.where(distance == 1, math.inf, distance)
        row = torch.stack([torch.randperm(20, generator=generator) for _ in range(6)])
        row = row.view(6, 4, 5).transpose(0, 1)
        found, place = nearest_of_parts(distance, row, 7)
        for query in range(6):
            pairs = zip(
                distance[:, query].flatten().tolist(), row[:, query].flatten().tolist(), strict=True
            )
            expected = sorted(pairs)[:7]
            rows = row[:, query].flatten()[place[query]].tolist()
            assert list(zip(found[query].tolist(), rows, strict=True)) == expected


def test_sparse_neighbor_labels_are_refused_by_name() -> None:
    labels = torch.zeros(3, 2, dtype=torch.int64)
    for bad in (labels.to_sparse(), labels.tolist()):
        with pytest.raises(TypeError, match="neighbor_labels"):
            neighbor_label_score(bad, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_nearest_of_a_label_is_that_of_a_loop(
    metric: Literal["cosine", "euclidean"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK", 7)
    rows, labels = torch.randn(30, 5) + 3, torch.randint(5, (30,))
    features, feature_labels = torch.randn(40, 5) + 3, torch.randint(4, (40,))
    features[::9], feature_labels[::9] = 0, -1  # empty places
    if metric == "cosine":
        features = torch.nn.functional.normalize(features)
    features[20], feature_labels[20] = features[10], feature_labels[10]  # of two alike the first
    rows[0], labels[0] = features[10], feature_labels[10]
    found = neighbors.nearest_of_label(rows, labels, features, feature_labels, metric)
    for row, label, place in zip(rows, labels.tolist(), found.tolist(), strict=True):
        of_label = [j for j in range(40) if feature_labels[j] == label]
        if metric == "cosine":
            far = {j: 1 - float(torch.cosine_similarity(row, features[j], dim=0)) for j in of_label}
        else:
            far = {j: float((row - features[j]).norm()) for j in of_label}
        assert place == (min(of_label, key=lambda j: round(far[j], 5)) if far else -1)
    assert found[0] == 10
    assert (found == -1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(dtype: torch.dtype) -> None:
    """Whose sum of distances may be beyond its range, and a small sharpness, too."""
    distance = torch.linspace(300, 900, 200).unsqueeze(0)
    found = neighbor_weights(distance.to(dtype), 2.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), neighbor_weights(distance, 2.0), rtol=0, atol=0.01)
    assert neighbor_weights(distance.to(dtype), 1e-3).isfinite().all()


def test_the_nearest_of_a_label_among_numbers_whose_squares_overflow() -> None:
    features, labels = torch.tensor([[1.0], [2.0], [4.0]]) * 1e25, torch.zeros(3).long()
    rows = torch.tensor([[1.2], [2.2], [3.5]]) * 1e25
    found = neighbors.nearest_of_label(rows, labels, features, labels, "euclidean")
    assert found.tolist() == [0, 1, 2]
