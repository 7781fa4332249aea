"""A neighbourhood asked about labels; its wrapper's tests compare the answers with the paper."""

from __future__ import annotations

import copy

import pytest
import torch
from fake_cuda import fake_cuda

from noisydml.functional import neighbor_label_score, neighbor_weights
from noisydml.memory.index import TorchIndex
from noisydml.memory.neighbors import Neighborhood


def test_entries_without_a_label_are_nobodys_neighbours() -> None:
    features = torch.arange(6.0)[:, None]
    labels = torch.tensor([0, -1, 0, 1, -1, 1])
    neighborhood = Neighborhood("torch", "euclidean")
    neighborhood.build(features, labels)
    distance, position, others = neighborhood.neighbors(
        features, labels.clamp_min(0), 3, torch.arange(6)
    )
    found = neighborhood.labels_at(position).tolist()
    # Entries 0, 2, 3, 5 are left. The own one has no vote; 1 and 4 are not there to be left out.
    assert found == [[0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert distance.diff(dim=1).ge(0).all()
    assert others.all()


def test_who_can_be_judged() -> None:
    labels = torch.tensor([3, 3, 8, 9])
    neighborhood = Neighborhood(None, "cosine")
    neighborhood.build(torch.randn(4, 2), labels)
    queries, asked = torch.randn(5, 2), torch.tensor([3, 8, 9, 5, 8])
    entries = torch.tensor([0, 2, 0, 1, 0])  # the third and the fifth have changed their label
    _, _, others = neighborhood.neighbors(queries, asked, 2, entries)
    assert others.tolist() == [True, False, True, False, True]
    _, _, others = neighborhood.neighbors(queries, asked, 2)
    assert others.tolist() == [True, False, False, False, False]


def test_the_nearest_of_the_same_label_are_taken_for_the_own_entries() -> None:
    features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4], [1.0]])
    neighborhood = Neighborhood("torch", "euclidean")
    neighborhood.build(features, torch.tensor([0, 0, 0, 0, 1, 0]))
    queries, labels = torch.tensor([[0.0], [0.0], [1.1]]), torch.tensor([0, 1, 0])
    distance, position, _ = neighborhood.neighbors(queries, labels, 2)
    # Three of the first's own label, none of the second's, and one before another label.
    assert position.tolist() == [[-1, -1, -1, 3, 4], [0, 1, 2, 3, 4], [-1, 4, 3, 2, 1]]
    assert torch.equal(distance.isinf(), position < 0)


@pytest.mark.parametrize("with_entries", [True, False])
def test_asking_never_asks_the_host(with_entries: bool) -> None:
    """Only ``build`` does, once an epoch."""
    with fake_cuda() as device:
        neighborhood = Neighborhood("torch", "cosine")
        neighborhood.labels = torch.zeros(40, dtype=torch.long, device=device)
        neighborhood._row = torch.arange(40, device=device)
        neighborhood._classes = torch.arange(5, device=device)
        neighborhood._counts = torch.ones(5, dtype=torch.long, device=device)
        neighborhood._index = TorchIndex()
        neighborhood._index.build(torch.randn(40, 8, device=device))
        labels = torch.zeros(6, dtype=torch.long, device=device)
        entries = torch.arange(6, device=device) if with_entries else None
        distance, position, others = neighborhood.neighbors(
            torch.randn(6, 8, device=device), labels, 7, entries
        )
        for weights in (neighbor_weights(distance, 4.0), None):
            vote = neighbor_label_score(neighborhood.labels_at(position), labels, weights)
            assert vote.score.device.type == others.device.type == "cuda"


def test_copies_are_built_anew() -> None:
    neighborhood = Neighborhood("IVF1,Flat", "cosine")
    neighborhood.build(torch.randn(50, 3), torch.arange(50) % 2)
    other = copy.deepcopy(neighborhood)
    assert not hasattr(other, "labels")
    other.build(torch.randn(50, 3), torch.arange(50) % 2)
    assert other.class_size == 25


def test_who_is_not_there_has_others_of_his_class() -> None:
    hood = Neighborhood("torch", "cosine")
    hood.build(torch.eye(3), torch.tensor([0, 1, 1]))
    _, _, known = hood.neighbors(torch.eye(3)[:2], torch.tensor([0, 0]), 2, torch.tensor([-1, 0]))
    assert known.tolist() == [True, False]


def test_who_is_not_there_leaves_nobody_out() -> None:
    hood = Neighborhood("torch", "cosine")
    hood.build(torch.eye(3), torch.tensor([0, 1, 1]))
    queries, entries = torch.eye(3)[:2], torch.tensor([-1, 1])
    _, position, _ = hood.neighbors(queries, torch.tensor([0, 0]), 2, entries)
    assert position[0, 0] == 0
