"""Neighbours found by FAISS and by blocks, against sorting all distances."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from noisydml.memory.index import FaissIndex, Metric, NeighborIndex, TorchIndex, frame_of

Make = Callable[..., NeighborIndex]
EXACT: dict[str, Make] = {
    "faiss": lambda metric: FaissIndex("Flat", metric),
    "torch": lambda metric: TorchIndex(metric),
    "torch in blocks": lambda metric: TorchIndex(metric, block_size=7),
}


def literal(features: Tensor, queries: Tensor, metric: str) -> Tensor:
    """(B, N) half squared distances in float64."""
    rows, features = queries.double(), features.double()
    if metric == "cosine":
        rows, features = (x / x.norm(dim=1, keepdim=True) for x in (rows, features))
    return 0.5 * torch.cdist(rows, features).square()


@pytest.mark.parametrize("k", [1, 5, 64, 130, 131, 199])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", EXACT)
def test_the_nearest(kind: str, metric: Metric, k: int) -> None:
    features, queries = torch.randn(130, 6), torch.randn(11, 6)
    index = EXACT[kind](metric)
    index.build(features)
    found = index.search(queries, k)
    distances, order = literal(features, queries, metric).sort(dim=1)
    assert torch.equal(found.position, order[:, :k])
    torch.testing.assert_close(found.distance, distances[:, :k].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("k", [1, 4, 29, 30, 31])
def test_the_excluded_one_is_not_among_them(kind: str, k: int) -> None:
    features = torch.randn(30, 6)
    exclude = torch.tensor([-1, *range(1, 30)])
    index = EXACT[kind]("cosine")
    index.build(features)
    found = index.search(features, k, exclude)
    order = literal(features, features, "cosine").argsort(dim=1).tolist()
    for i, row in enumerate(found.position.tolist()):
        wanted = [j for j in order[i] if j != exclude[i]]
        assert row == [*wanted, *[-1] * (30 - len(wanted))][:k]
    assert torch.equal(found.distance.isinf(), found.position < 0)


def test_an_excluded_one_far_away_costs_nobody_a_place() -> None:
    index = TorchIndex("euclidean")
    index.build(torch.arange(10.0)[:, None])
    found = index.search(torch.tensor([[0.0]]), 3, torch.tensor([9]))
    assert found.position.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", EXACT)
def test_few_or_no_features_and_queries(kind: str) -> None:
    index = EXACT[kind]("cosine")
    index.build(torch.randn(1, 3))
    assert index.search(torch.randn(2, 3), 5).position.tolist() == [[0], [0]]
    assert index.search(torch.randn(2, 3), 5, torch.tensor([0, -1])).position.tolist() == [
        [-1],
        [0],
    ]
    assert index.search(torch.randn(0, 3), 5).distance.shape == (0, 1)
    index.build(torch.randn(0, 3))
    assert index.search(torch.randn(2, 3), 5).position.shape == (2, 0)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW16", "SQfp16"])
def test_approximate_indices(factory: str) -> None:
    features = torch.nn.functional.normalize(torch.randn(2000, 8))
    index = FaissIndex(factory)
    index.build(features)
    found = index.search(features[:200], 1)
    assert (found.position[:, 0] == torch.arange(200)).float().mean() > 0.9


def test_half_precision_storage() -> None:
    features = torch.randn(100, 16)
    index = TorchIndex(dtype=torch.float16)
    index.build(features)
    exact = TorchIndex()
    exact.build(features)
    a, b = index.search(features, 5), exact.search(features, 5)
    assert (a.position == b.position).float().mean() > 0.98
    torch.testing.assert_close(a.distance, b.distance, rtol=0, atol=2e-3)


def test_searching_never_asks_the_host() -> None:
    with fake_cuda() as device:
        index = TorchIndex(block_size=16)
        index.build(torch.randn(140, 8, device=device))
        found = index.search(
            torch.randn(5, 8, device=device), 9, torch.zeros(5, dtype=torch.long, device=device)
        )
        assert found.position.shape == (5, 9)
        assert found.position.device.type == "cuda"


@pytest.mark.parametrize("factory", ["IVF8,Flat", "PCA4,IVF8,Flat"])
def test_searching_more_cells_finds_more(factory: str) -> None:
    features = torch.randn(400, 4)
    found = {}
    for nprobe in (None, 1, 8):
        index = FaissIndex(factory, "euclidean", nprobe)
        index.build(features)
        found[nprobe] = index.search(features, 20).position
    assert torch.equal(found[None], found[1])
    exact = FaissIndex("Flat", "euclidean")
    exact.build(features)
    assert torch.equal(found[8], exact.search(features, 20).position)
    assert not torch.equal(found[1], found[8])


@pytest.mark.parametrize("kind", EXACT)
def test_settings_survive_copies(kind: str) -> None:
    index = EXACT[kind]("euclidean")
    index.build(torch.randn(5, 2))
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        other.build(torch.randn(5, 2))
        assert other.search(torch.randn(1, 2), 2).position.shape == (1, 2)


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: TorchIndex("dot"), ValueError, "metric"),
        (lambda: FaissIndex(metric="dot"), ValueError, "metric"),
        (lambda: FaissIndex("nonsense"), ValueError, "factory"),
        (lambda: FaissIndex(3), TypeError, "factory"),
        (lambda: FaissIndex("IVF4,Flat", nprobe=0), ValueError, "nprobe"),
        (lambda: FaissIndex("Flat", nprobe=2), ValueError, "nprobe is for an inverted file"),
        (lambda: TorchIndex(block_size=0), ValueError, "block_size"),
        (lambda: TorchIndex(dtype=torch.int8), TypeError, "dtype"),
        (lambda: TorchIndex().build(torch.ones(3)), ValueError, "features"),
        (lambda: built().search(torch.ones(3, 5), 1), ValueError, "queries"),
        (lambda: built().search(torch.ones(3, 2), 0), ValueError, "k"),
        (lambda: built().search(torch.ones(3, 2), 1, torch.ones(2).long()), ValueError, "exclude"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        make()


def built() -> NeighborIndex:
    index = TorchIndex()
    index.build(torch.ones(4, 2))
    return index


@pytest.mark.parametrize("make", [FaissIndex, TorchIndex])
@pytest.mark.parametrize(
    ("metric", "scale", "offset"),
    [
        ("cosine", 1e-30, 0.0),
        ("cosine", 1e-14, 0.0),
        ("cosine", 1e20, 0.0),
        ("cosine", 1e37, 0.0),
        ("euclidean", 1e-14, 0.0),
        ("euclidean", 1.0, 1e5),
        ("euclidean", 1e20, 0.0),
        ("euclidean", 1e17, 1e20),
    ],
)
def test_any_scale_and_a_common_offset(make: Any, metric: Any, scale: float, offset: float) -> None:
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * scale + offset
    index = make(metric=metric)
    index.build(features)
    found = index.search(features, k=2)
    assert found.position[:, 0].tolist() == list(range(20))
    if scale in (1e-14, 1.0):
        distances = torch.cdist(features.double(), features.double()).square() / 2
        if metric == "cosine":
            unit = torch.nn.functional.normalize(features.double() / scale)
            distances = 1 - unit @ unit.T
        expected = distances.gather(1, found.position).float()
        torch.testing.assert_close(found.distance, expected, rtol=1e-2, atol=1e-6)


def test_fewer_found_than_asked_for_and_nobody_excluded() -> None:
    index = FaissIndex("IVF4,Flat", "cosine", nprobe=1)
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    index.build(features)
    found = index.search(features, k=150, exclude=torch.full((200,), -1))
    assert (found.position == -1).any()
    assert found.position.shape == (200, 150)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_equally_near_ones_come_in_order(metric: Metric, device: str) -> None:
    """Of seven directions 30 copies each, in blocks of 64, and cut at every place among them."""
    features = torch.eye(7, device=device).repeat(30, 1)
    index = TorchIndex(metric, block_size=50)
    index.build(features)
    copies = torch.arange(30, device=device) * 7
    for k in (1, 4, 30, 31, 100, 210):
        distance, position = index.search(features[:5], k)
        for query in range(5):
            others = torch.arange(210, device=device)
            others = others[others % 7 != query]
            expected = torch.cat([copies + query, others])[:k]
            exact = k if metric == "cosine" else min(k, 30)  # centring rounds other distances
            assert torch.equal(position[query, :exact], expected[:exact])
            assert torch.equal(distance[query], distance[query].sort().values)


def test_a_part_has_the_distances_of_the_whole() -> None:
    """To the bit, of any number of features and queries."""
    for size, width, queries in ((5, 3, 1), (61, 8, 3), (1003, 33, 10), (3000, 64, 17)):
        generator = torch.Generator().manual_seed(size)
        features = torch.randn(size, width, generator=generator) + 3
        asked = torch.randn(queries, width, generator=generator) + 3
        for metric in ("cosine", "euclidean"):
            whole, part = TorchIndex(metric), TorchIndex(metric)
            whole.build(features)
            part.build(features[1::3], frame_of(features))
            distance, position = whole.search(asked, size)
            found = part.search(asked, size)
            for query in range(queries):
                own = position[query] % 3 == 1
                assert torch.equal(distance[query][own], found.distance[query])
                assert torch.equal(position[query][own], found.position[query] * 3 + 1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_approximate_index_may_find_fewer_than_asked_for(metric: Any) -> None:
    features = torch.cat([torch.randn(50, 4) + 20, torch.randn(50, 4) - 20])
    index = FaissIndex("IVF2,Flat", metric)
    index.build(features)
    found = index.search(features[:3], 80)
    assert found.position.min() == -1
    assert (found.distance[found.position < 0] == math.inf).all()


def test_no_distance_is_negative() -> None:
    features = torch.randn(2000, 96)
    index = FaissIndex("Flat", "cosine")
    index.build(features)
    assert index.search(features, 1).distance.min() >= 0


@pytest.mark.parametrize("make", [FaissIndex, TorchIndex])
def test_a_common_offset_that_float64_holds(make: Any) -> None:
    features = torch.randn(20, 8).double()
    index = make(metric="euclidean")
    index.build(features + 1e12)
    found = index.search(features + 1e12, 3).distance.double()
    wanted = torch.cdist(features, features).square().sort(dim=1).values[:, :3] / 2
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("make", [FaissIndex, TorchIndex])
def test_queries_that_float32_cannot_hold(make: Any, metric: Any) -> None:
    index = make(metric=metric)
    index.build(torch.eye(4, dtype=torch.float64)[:3])
    queries = torch.tensor([[0, 1.0, 0, 0.1]], dtype=torch.float64) * 1e300
    distance, position = index.search(queries, k=2)
    assert ((position >= 0) & (position < 3)).all()
    assert not distance.isnan().any()
    if metric == "cosine":
        assert position[0, 0] == 1
