"""KNNDenoiser against Algorithm 1 of N2D2 written as a loop with brute-force neighbours."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from literal import neighbor_vote
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from noisydml import KNNDenoiser, LossWrapper, SelectedInteractions, decision_summary
from noisydml.memory.index import FaissIndex, TorchIndex

SAMPLES, WIDTH, CLASSES = 90, 6, 6


class LiteralDenoiser:
    """One sample after the other, with lists; ``reference`` maps a sample to what votes."""

    def __init__(self, size: int, k: int, sharpness: float | None, ids: bool) -> None:
        self.size, self.k, self.sharpness, self.ids = size, k, sharpness, ids
        self.collected: dict[int, tuple[Tensor, int]] = {}
        self.order = 0
        self.seen = 0
        self.reference: dict[int, tuple[Tensor, int]] = {}

    def judge(self, feature: Tensor, label: int, sample: int) -> tuple[float, int]:
        unit = feature.double() / feature.double().norm()
        others = [
            (0.5 * (unit - v).square().sum().item(), key, other)
            for key, (v, other) in self.reference.items()
        ]
        others.sort(key=lambda entry: entry[0])
        if self.ids:
            others = [entry for entry in others if entry[1] != sample][: self.k]
            rest = [y for key, (_, y) in self.reference.items() if key != sample]
            alone = label not in rest
        else:
            others = others[: self.k + 3]
            copies = 0  # the nearest, as long as they have the label, and three at most
            while copies < min(3, len(others)) and others[copies][2] == label:
                copies += 1
            others = others[copies:]
            alone = [y for _, y in self.reference.values()].count(label) < 2
        if alone:
            return 1.0, label
        weights = None
        if self.sharpness is not None:
            mean = sum(entry[0] for entry in others) / len(others)
            weights = [math.exp(-self.sharpness * entry[0] / mean) for entry in others]
        score, majority, *_ = neighbor_vote([entry[2] for entry in others], label, weights)
        return float(score), majority

    def collect(self, feature: Tensor, label: int, sample: int) -> None:
        key = sample if self.ids else self.order % self.size
        self.collected[key] = (feature.double() / feature.double().norm(), label)
        self.order += 1

    def end_batch(self, size: int) -> None:
        self.seen += size
        if self.seen >= self.size:
            self.reference, self.seen = dict(self.collected), 0


def batches(epochs: int, seed: int, size: int = 13) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings that drift, labels of which two in seven are wrong, and ids."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    true = torch.arange(SAMPLES) % CLASSES
    given = torch.where(torch.arange(SAMPLES) % 7 < 2, (true + 1) % CLASSES, true)
    found = []
    for epoch in range(epochs):
        for ids in torch.randperm(SAMPLES, generator=generator).split(size):
            noise = 0.4 * torch.randn(len(ids), WIDTH, generator=generator)
            found.append((centers[true[ids]] + noise + 0.1 * epoch, given[ids], ids))
    return found


@pytest.mark.parametrize("index", [None, "torch", "IVF1,Flat"])
@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without"])
@pytest.mark.parametrize("vote", ["count", "weighted"])
@pytest.mark.parametrize("k", [1, 4, 20, 200])
def test_decisions_are_those_of_algorithm_1(k: int, vote: Any, ids: bool, index: Any) -> None:
    loss_fn = KNNDenoiser(
        losses.ContrastiveLoss(), memory_size=SAMPLES, k=k, vote=vote, index=index
    )
    literal = LiteralDenoiser(SAMPLES, k, 2.0 if vote == "weighted" else None, ids)
    dropped = 0
    for embeddings, labels, sample_ids in batches(epochs=4, seed=k):
        rows = list(zip(embeddings, labels.tolist(), sample_ids.tolist(), strict=True))
        expected = [literal.judge(*row) for row in rows] if literal.reference else []
        loss_fn(embeddings, labels, sample_ids=sample_ids if ids else None)
        decision = loss_fn.decision
        if not expected:
            assert decision.keep.all()
            assert decision.suggested_labels is None
        for i, (score, majority) in enumerate(expected):
            torch.testing.assert_close(decision.score[i].item(), score, rtol=1e-3, atol=1e-5)
            if abs(score - 0.5) > 1e-4 or vote == "count":
                assert bool(decision.keep[i]) == (score >= 0.5)
            if vote == "count":
                assert decision.suggested_labels[i] == majority
        dropped += int((~decision.keep).sum())
        for row in rows:
            literal.collect(*row)
        literal.end_batch(len(rows))
    if k < SAMPLES or vote == "weighted":  # among all samples every class has equally many
        assert 30 < dropped < 230


def test_dropped_samples_stay_in_the_reference_with_their_given_labels() -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES, k=20)
    given = torch.empty(SAMPLES, dtype=torch.long)
    for embeddings, labels, ids in batches(epochs=3, seed=0):
        loss_fn(embeddings, labels, sample_ids=ids)
        given[ids] = labels
    assert not loss_fn.decision.keep.all()
    assert torch.equal(loss_fn.reference.labels, given)


def test_an_epoch_ends_by_itself_after_memory_size_samples() -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20, k=3)
    for step in range(4):
        waits = f"training on all labels, waiting for {20 - 6 * step} of 20 samples"
        assert decision_summary(loss_fn).endswith(waits if step else "not called yet, " + waits)
        assert waits in repr(loss_fn)
        loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
        assert (loss_fn.reference.total > 0) == (step == 3)
    assert "waiting" not in repr(loss_fn) + decision_summary(loss_fn)
    assert loss_fn.counters["seen"] == 0
    loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
    assert loss_fn.decision.suggested_labels is not None


def test_end_epoch_takes_what_there_is() -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=1000, k=3)
    loss_fn.end_epoch()  # nothing has been seen: nothing happens
    assert loss_fn.reference.total == 0
    loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
    loss_fn.end_epoch()
    assert loss_fn.reference.filled.sum() == 6
    loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
    assert loss_fn.decision.support.max() > 0


@pytest.mark.parametrize("with_ids", [True, False])
def test_refresh_replaces_the_reference(with_ids: bool) -> None:
    features, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    order = torch.randperm(20)
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20, k=4)
    if with_ids:
        loss_fn.refresh(features[order], labels[order], order)
    else:
        loss_fn.refresh(features, labels)
    assert torch.equal(loss_fn.reference.labels, labels)
    wrong = (labels + 1) % 4
    loss_fn(features, wrong, sample_ids=torch.arange(20))
    assert not loss_fn.decision.keep.any()
    assert torch.equal(loss_fn.decision.suggested_labels, labels)


def test_refresh_counts_as_an_epoch() -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20, k=4)
    for _ in range(3):
        loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
    before = torch.randn(20, WIDTH)
    loss_fn.refresh(before, torch.arange(20) % 3)
    loss_fn(torch.randn(6, WIDTH), torch.arange(6) % 3)
    expected = torch.nn.functional.normalize(before)
    torch.testing.assert_close(loss_fn.reference.features, expected)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"features": torch.ones(4)}, ValueError, "features"),
        ({"features": torch.ones(4, 2).int()}, TypeError, "features"),
        ({"labels": torch.ones(3).long()}, ValueError, "labels"),
        ({"labels": torch.ones(4)}, TypeError, "labels"),
        ({"sample_ids": torch.tensor([0, 1, 2, 9])}, ValueError, r"sample_ids .* \[0, 9\)"),
        ({"sample_ids": torch.tensor([0, 1, 2, -1])}, ValueError, "sample_ids"),
        ({"sample_ids": torch.arange(3)}, ValueError, "sample_ids"),
        ({"features": torch.ones(10, 2), "labels": torch.ones(10).long()}, ValueError, "features"),
    ],
)
def test_refresh_refuses(change: dict[str, Any], error: type[Exception], name: str) -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=9)
    before = copy.deepcopy(loss_fn.state_dict())
    with pytest.raises(error, match=name):
        loss_fn.refresh(**{"features": torch.ones(4, 2), "labels": torch.arange(4), **change})
    assert before.keys() == loss_fn.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in loss_fn.state_dict().items())


def test_ids_in_every_batch_or_in_none() -> None:
    for first in (None, torch.arange(6)):
        loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20)
        embeddings, labels = torch.randn(6, WIDTH), torch.arange(6) % 3
        loss_fn(embeddings, labels, sample_ids=first)
        second = torch.arange(6) if first is None else None
        with pytest.raises(ValueError, match="sample_ids must be given in every batch or in none"):
            loss_fn(embeddings, labels, sample_ids=second)
        loss_fn(embeddings, labels, sample_ids=first)


def test_the_only_sample_of_a_class_cannot_be_judged() -> None:
    features, labels = torch.eye(WIDTH)[[0, *[1] * 9]], torch.tensor([7, *[1] * 9])
    features = features + 0.01 * torch.randn(10, WIDTH)
    for sample_ids in (torch.arange(10), None):
        loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=10, k=3)
        loss_fn(features, labels, sample_ids=sample_ids)
        loss_fn(features, labels, sample_ids=sample_ids)
        assert loss_fn.decision.keep.all()
        assert loss_fn.decision.score[0] == 1
        assert loss_fn.decision.suggested_labels[0] == 7
        assert loss_fn.decision.support[0] == 0
        new = torch.tensor([3, *[1] * 9])  # nor one of a class that the reference has never seen
        loss_fn(features, new, sample_ids=sample_ids)
        assert loss_fn.decision.score[0] == 1


@pytest.mark.parametrize(
    ("per_class", "of_counts", "of_weights"), [(3, 5, 5), (40, 40, 8), (2000, 200, 200)]
)
def test_k_comes_from_what_the_reference_holds(
    per_class: int, of_counts: int, of_weights: int
) -> None:
    asked: list[int] = []

    class Spy(TorchIndex):
        def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> Any:
            asked.append(k)
            return super().search(queries, k, exclude)

    labels = torch.arange(per_class * 4) % 4
    for vote, expected in (("count", of_counts), ("weighted", of_weights)):
        loss_fn = KNNDenoiser(
            losses.ContrastiveLoss(), memory_size=len(labels), vote=vote, index=Spy()
        )
        loss_fn.refresh(torch.randn(len(labels), WIDTH), labels)
        loss_fn(torch.randn(3, WIDTH), torch.arange(3), sample_ids=torch.arange(3))
        assert asked[-1] == expected


def test_warmup_drops_nobody() -> None:
    features, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20, k=4, warmup=2)
    loss_fn.refresh(features, labels)
    wrong = (labels[:6] + 1) % 4
    for step in range(3):
        loss_fn(features[:6], wrong, sample_ids=torch.arange(6))
        assert loss_fn.decision.keep.all() == (step < 2)


def test_euclidean_features_are_not_normalised() -> None:
    # By direction sample 4 is among the zeros, by distance among the ones.
    features = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.0, 9.0], [0.0, 8.0], [9.0, 7.0]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    for metric, suggestion in (("cosine", 0), ("euclidean", 1)):
        loss_fn = KNNDenoiser(
            losses.ContrastiveLoss(), memory_size=5, k=2, metric=metric, vote="count"
        )
        loss_fn.refresh(features, labels)
        loss_fn(features, labels, sample_ids=torch.arange(5))
        assert loss_fn.decision.suggested_labels[4] == suggestion


@pytest.mark.parametrize("stop", [0, 3, 9, 14, 20])
@pytest.mark.parametrize("with_ids", [True, False])
def test_resume_in_any_epoch(with_ids: bool, stop: int) -> None:
    """Also where the width of the memory is not known yet, and where the index must be rebuilt."""

    def steps(loss_fn: KNNDenoiser, part: list[Any]) -> list[Tensor]:
        values = []
        for embeddings, labels, ids in part:
            values.append(loss_fn(embeddings, labels, sample_ids=ids if with_ids else None))
            values.append(loss_fn.decision.weight.double().sum())
        return values

    everything = batches(epochs=4, seed=1)
    expected = steps(KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES), everything)
    first = KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES)
    got = steps(first, everything[:stop])
    second = KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES)
    steps(second, batches(epochs=3, seed=8))  # what it holds before must not matter
    second.load_state_dict(first.state_dict())
    got += steps(second, everything[stop:])
    assert torch.equal(torch.stack(got).double(), torch.stack(expected).double())


def test_an_index_given_with_another_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="index must have the metric 'cosine'"):
        KNNDenoiser(losses.ContrastiveLoss(), memory_size=9, index=FaissIndex(metric="euclidean"))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"memory_size": 0}, ValueError),
        ({"memory_size": 2.5}, TypeError),
        ({"k": 0}, ValueError),
        ({"k": "many"}, TypeError),
        ({"threshold": 1.5}, ValueError),
        ({"threshold": "low"}, TypeError),
        ({"vote": "loud"}, ValueError),
        ({"sharpness": 0}, ValueError),
        ({"warmup": -1}, ValueError),
        ({"metric": "dot"}, ValueError),
        ({"index": "no such index"}, ValueError),
        ({"index": 3}, TypeError),
    ],
)
def test_impossible_settings(setting: dict[str, Any], error: type[Exception]) -> None:
    name = "factory|index" if "index" in setting else next(iter(setting))
    with pytest.raises(error, match=name):
        KNNDenoiser(losses.ContrastiveLoss(), **{"memory_size": 9, **setting})


def test_negative_labels_and_other_widths_are_refused() -> None:
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=9)
    loss_fn(torch.randn(3, WIDTH), torch.arange(3))
    with pytest.raises(ValueError, match="labels must not be negative"):
        loss_fn(torch.randn(3, WIDTH), torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match="as wide as those before, 6, got 7"):
        loss_fn(torch.randn(3, 7), torch.arange(3))


@pytest.mark.parametrize("nested", [False, True])
def test_without_a_width_weights_can_be_averaged_and_states_loaded(nested: bool) -> None:
    """The average is made before the first batch says how wide the features are."""

    def make() -> LossWrapper:
        inner = KNNDenoiser(losses.ContrastiveLoss(), memory_size=12, k=3)
        return SelectedInteractions(inner) if nested else inner

    loss_fn, ids = make(), torch.arange(12)
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), loss_fn])
    averages = [AveragedModel(model), AveragedModel(model, use_buffers=True)]
    for _ in range(3):
        loss_fn(model[0](torch.randn(12, WIDTH)), ids % 3, sample_ids=ids)
        for averaged in averages:
            averaged.update_parameters(model)
    knn = loss_fn.loss if nested else loss_fn
    assert knn.decision.suggested_labels is not None
    resumed = make()
    resumed.load_state_dict(loss_fn.state_dict())
    x = torch.randn(12, WIDTH)
    assert torch.equal(resumed(x, ids % 3, sample_ids=ids), loss_fn(x, ids % 3, sample_ids=ids))
    assert torch.equal(resumed.decision.score, loss_fn.decision.score)
    resumed.load_state_dict(make().state_dict())  # of a run that had not begun
    assert (resumed.loss if nested else resumed).memory.embedding_size is None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"features": torch.full((4, 3), math.nan)}, "features"),
        ({"features": torch.full((4, 3), math.inf)}, "features"),
        ({"features": torch.ones(4, 5)}, "features"),
        ({"labels": torch.tensor([0, 1, -1, 1])}, "labels"),
        ({"sample_ids": torch.tensor([0, 1, 2, 9])}, "sample_ids"),
        ({"features": torch.ones(4, 3).to_sparse()}, "features"),
        ({"features": torch.ones(2, 3), "labels": torch.arange(2)}, "IVF3,Flat"),
    ],
)
@pytest.mark.parametrize("embedding_size", [3, None])
def test_a_refused_refresh_leaves_the_reference(
    changes: dict[str, Any], name: str, embedding_size: int | None
) -> None:
    """One whose index cannot be made, here of two samples for three cells, is refused, too."""
    settings: dict[str, Any] = {"embedding_size": embedding_size, "index": "IVF3,Flat"}
    wrapper = KNNDenoiser(losses.ContrastiveLoss(), memory_size=6, k=2, **settings)
    good = {"features": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}
    wrapper.refresh(**good)
    batch = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 0])
    with torch.no_grad():
        wrapper(*batch)
    score = wrapper.decision.score
    before = {key: value.clone() for key, value in wrapper.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match=name):
        wrapper.refresh(**{**good, **changes})
    for key, value in wrapper.state_dict().items():
        assert torch.equal(value, before[key]), key
    with torch.no_grad():
        wrapper(*batch)
    assert torch.equal(wrapper.decision.score, score)


def test_a_loaded_reference_is_the_one_that_votes() -> None:
    labels, ids = torch.arange(20) % 2, torch.arange(10)
    embeddings = torch.eye(2)[labels] + 0.1 * torch.rand(20, 2)
    settings: Any = {"memory_size": 20, "embedding_size": 2, "k": 3}
    loss_fn, other = (KNNDenoiser(losses.ContrastiveLoss(), **settings) for _ in range(2))
    loss_fn.refresh(embeddings, 1 - labels)
    other.refresh(embeddings, labels)
    loss_fn(embeddings[:10], labels[:10], sample_ids=ids)
    assert not loss_fn.decision.keep.any()
    loss_fn.load_state_dict(other.state_dict())
    loss_fn(embeddings[:10], labels[:10], sample_ids=ids)
    assert loss_fn.decision.keep.all()


def test_who_cannot_be_judged_has_no_clear_majority() -> None:
    features, labels = torch.eye(4)[[0, *[1] * 9]], torch.tensor([7, *[1] * 9])
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=10, k=3)
    loss_fn.refresh(features, labels)
    loss_fn(features, labels, sample_ids=torch.arange(10))
    assert loss_fn.decision.runner_up.tolist() == [1.0, *[0.0] * 9]


def test_a_copy_judges_as_the_original() -> None:
    features, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    labels[3] = 0
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=20, k=4)
    loss_fn.refresh(features, labels)
    loss_fn(features[:9], labels[:9], sample_ids=torch.arange(9))  # within a pass
    other = copy.deepcopy(loss_fn)
    other(features[:9], labels[:9], sample_ids=torch.arange(9))
    assert torch.equal(other.decision.keep, loss_fn.decision.keep)
