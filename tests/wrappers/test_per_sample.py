"""per_sample_loss: its mean is the loss, for every loss that pytorch-metric-learning has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import literal
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers, regularizers
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor, nn

from noisydml import ConfidenceWeightedLoss, per_sample_loss

CLASSES, WIDTH = 5, 16

# How to make each loss; None: an abstract base or a mixin, not a loss.
ABSTRACT = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightRegularizerMixin",
}
CLASSIFIERS = {
    "ArcFaceLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
}
ARGUMENTS: dict[str, Callable[[], Any]] = {
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 64),
    "ManifoldLoss": lambda: losses.ManifoldLoss(l=WIDTH, K=CLASSES),
    "MultipleLosses": lambda: losses.MultipleLosses(
        [losses.ContrastiveLoss(), losses.MultiSimilarityLoss()], weights=[0.5, 2.0]
    ),
    "P2SGradLoss": lambda: losses.P2SGradLoss(WIDTH, CLASSES),
    "SelfSupervisedLoss": lambda: losses.SelfSupervisedLoss(losses.ContrastiveLoss()),
}
UNLABELLED = {"ManifoldLoss", "SelfSupervisedLoss", "VICRegLoss"}
REFUSED = {
    "DynamicSoftMarginLoss",
    "HistogramLoss",
    "P2SGradLoss",
    "PNPLoss",
    "ProxyAnchorLoss",
    "ThresholdConsistentMarginLoss",
    *UNLABELLED,
}
NO_REF = {
    "FastAPLoss", "InstanceLoss", "NPairsLoss", "RankedListLoss", "SmoothAPLoss",
    "SoftTripleLoss", *CLASSIFIERS, "CrossBatchMemory", "MultipleLosses",
}  # fmt: skip
NO_MINER = {"InstanceLoss", "NPairsLoss", "RankedListLoss"}

ALL = sorted(
    name
    for name, kind in inspect.getmembers(losses, inspect.isclass)
    if kind.__module__.startswith("pytorch_metric_learning.losses") and name not in ABSTRACT
)
SUPPORTED = [name for name in ALL if name not in REFUSED]
BUILT_IN_REDUCERS = {
    "avg_non_zero": lambda: reducers.AvgNonZeroReducer(),
    "class_weighted": lambda: reducers.ClassWeightedReducer(torch.rand(CLASSES) + 0.5),
    "mean": lambda: reducers.MeanReducer(),
    "per_anchor": lambda: reducers.PerAnchorReducer(),
    "sum": lambda: reducers.SumReducer(),
    "threshold": lambda: reducers.ThresholdReducer(low=0.05, high=10),
}


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(1)  # the same proxies every time
    if name in ARGUMENTS:
        return ARGUMENTS[name]()
    kind = getattr(losses, name)
    if name == "RankedListLoss":  # the one loss whose margins have no defaults
        return kind(margin=0.4, Tn=1, **settings)
    if name in CLASSIFIERS:
        return kind(num_classes=CLASSES, embedding_size=WIDTH, **settings)
    return kind(**settings)


def batch(size: int = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    labels = torch.arange(size) // (size // CLASSES)  # SmoothAP wants equal and sorted classes
    return torch.randn(size, WIDTH, dtype=dtype, requires_grad=True), labels


def gradients(value: Tensor, embeddings: Tensor, loss: Any) -> list[Tensor]:
    wanted = [embeddings, *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    return list(torch.autograd.grad(value, wanted, materialize_grads=True))


def assert_mean_is_loss(make_loss: Callable[[], Any], *inputs: Any, **keywords: Any) -> Tensor:
    """Value and every gradient of the mean are the loss's own; fresh losses, as some have state."""
    embeddings = inputs[0]
    theirs, ours = make_loss(), make_loss()
    if isinstance(theirs, nn.Module):
        theirs, ours = theirs.to(embeddings.dtype), ours.to(embeddings.dtype)
    torch.manual_seed(3)
    expected = theirs(*inputs, **keywords)
    torch.manual_seed(3)
    per_sample = per_sample_loss(ours, *inputs, **keywords)
    assert per_sample.shape == (len(embeddings),)
    torch.testing.assert_close(per_sample.mean(), expected.reshape(()), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(
        gradients(per_sample.mean(), embeddings, ours),
        gradients(expected.sum(), embeddings, theirs),
        rtol=1e-6,
        atol=1e-12,
    )
    return per_sample


def test_every_loss_of_pml_is_listed() -> None:
    assert set(REFUSED) <= set(ALL)
    assert len(ALL) == 38, "PML has gained or lost a loss: sort it into the lists above"


@pytest.mark.parametrize("name", SUPPORTED)
def test_mean_is_the_loss(name: str) -> None:
    assert_mean_is_loss(lambda: make(name), *batch())


@pytest.mark.parametrize("name", SUPPORTED)
def test_mean_is_the_loss_in_single_precision(name: str) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    torch.manual_seed(3)
    expected = make(name)(embeddings, labels)
    torch.manual_seed(3)
    per_sample = per_sample_loss(make(name), embeddings, labels)
    torch.testing.assert_close(per_sample.mean(), expected.reshape(()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reducer", BUILT_IN_REDUCERS)
@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in ARGUMENTS])
def test_mean_is_the_loss_with_every_reducer(name: str, reducer: str) -> None:
    def make_loss() -> Any:
        torch.manual_seed(4)
        return make(name, reducer=BUILT_IN_REDUCERS[reducer]())

    embeddings, labels = batch()
    try:
        make_loss().double()(embeddings, labels)
    except Exception:  # PML has no such combination: PerAnchorReducer and triplets, for instance
        with pytest.raises(Exception, match=r".*"):
            per_sample_loss(make_loss().double(), embeddings, labels)
        return
    assert_mean_is_loss(make_loss, embeddings, labels)


def test_divisor_and_multiple_reducers() -> None:
    def divisor() -> Any:
        return losses.MarginLoss(reducer=reducers.DivisorReducer(), learn_beta=True, nu=0.1)

    def multiple() -> Any:
        choice = {"pos_loss": reducers.SumReducer(), "neg_loss": reducers.AvgNonZeroReducer()}
        return losses.ContrastiveLoss(reducer=reducers.MultipleReducers(choice))

    assert_mean_is_loss(divisor, *batch())
    assert_mean_is_loss(multiple, *batch())


def test_a_users_own_reducer_that_is_homogeneous() -> None:
    class Norm(reducers.MeanReducer):
        def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
            return losses.pow(3).mean().pow(1 / 3)

    assert_mean_is_loss(lambda: losses.MultiSimilarityLoss(reducer=Norm()), *batch())


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in ARGUMENTS])
def test_an_embedding_regularizer_is_spread_evenly(name: str) -> None:
    def make_loss(weight: float) -> Any:
        return make(
            name, embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=weight
        )

    with_it = assert_mean_is_loss(lambda: make_loss(0.3), *batch())
    without = assert_mean_is_loss(lambda: make_loss(0.0), *batch())
    extra = (with_it - without).detach()
    torch.testing.assert_close(extra, extra[:1].expand_as(extra))
    assert extra[0] > 0.1


@pytest.mark.parametrize("name", sorted(CLASSIFIERS - REFUSED))
def test_a_weight_regularizer_is_spread_evenly(name: str) -> None:
    def make_loss(weight: float) -> Any:
        return make(name, weight_regularizer=regularizers.LpRegularizer(), weight_reg_weight=weight)

    with_it = assert_mean_is_loss(lambda: make_loss(0.3), *batch())
    without = assert_mean_is_loss(lambda: make_loss(0.0), *batch())
    extra = (with_it - without).detach()
    torch.testing.assert_close(extra, extra[:1].expand_as(extra))
    assert extra[0] > 0.01


MINERS = {
    "pairs": lambda: miners.PairMarginMiner(pos_margin=0.1, neg_margin=1.3),
    "triplets": lambda: miners.TripletMarginMiner(margin=0.3, type_of_triplets="all"),
}


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in NO_MINER])
def test_mean_is_the_loss_with_a_miner(name: str, miner: str) -> None:
    embeddings, labels = batch()
    indices = MINERS[miner]()(embeddings, labels)
    assert len(indices[0]) > 0
    assert_mean_is_loss(lambda: make(name), embeddings, labels, indices)


@pytest.mark.parametrize("ref_size", [3, 20, 55])
@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in NO_REF])
def test_mean_is_the_loss_with_a_reference_of_any_size(name: str, ref_size: int) -> None:
    embeddings, labels = batch()
    ref_emb, ref_labels = torch.randn(ref_size, WIDTH).double(), torch.arange(ref_size) % CLASSES
    assert_mean_is_loss(
        lambda: make(name), embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels
    )


@pytest.mark.parametrize("inner", losses.CrossBatchMemory.supported_losses())
def test_inside_a_cross_batch_memory(inner: str) -> None:
    ours, theirs = (
        losses.CrossBatchMemory(make(inner), WIDTH, memory_size=50).double() for _ in range(2)
    )
    for seed in range(4):  # the memory fills and wraps
        torch.manual_seed(seed)
        embeddings, labels = torch.randn(20, WIDTH).double(), torch.randint(CLASSES, (20,))
        embeddings.requires_grad_()
        torch.manual_seed(seed)
        expected = theirs(embeddings, labels)
        torch.manual_seed(seed)
        per_sample = per_sample_loss(ours, embeddings, labels)
        torch.testing.assert_close(per_sample.mean(), expected, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(ours.embedding_memory, theirs.embedding_memory)
    assert ours.has_been_filled
    assert ours.queue_idx == theirs.queue_idx


def test_multiple_losses_with_weights_and_miners() -> None:
    def make_loss() -> Any:
        return losses.MultipleLosses(
            {"ms": losses.MultiSimilarityLoss(), "triplet": losses.TripletMarginLoss()},
            miners={"ms": miners.MultiSimilarityMiner()},
            weights={"ms": 0.3, "triplet": 1.7},
        )

    assert_mean_is_loss(make_loss, *batch())


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # HistogramLoss, torch < 2.9
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_losses_without_anchors_are_refused_with_a_reason(name: str) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    expected = "takes no labels" if name in UNLABELLED else "cannot be weighted .*Filter"
    with pytest.raises(TypeError, match=f"{name} {expected}"):
        per_sample_loss(make(name), embeddings, labels)


def test_do_nothing_reducer_and_reduced_callables_are_refused() -> None:
    embeddings, labels = batch(dtype=torch.float32)
    with pytest.raises(TypeError, match="DoNothingReducer"):
        per_sample_loss(
            losses.ContrastiveLoss(reducer=reducers.DoNothingReducer()), embeddings, labels
        )
    with pytest.raises(TypeError, match=r"CrossEntropyLoss cannot .* reduction='none'"):
        per_sample_loss(nn.CrossEntropyLoss(), embeddings, labels)
    with pytest.raises(TypeError, match=r"must return one loss per sample, shape \(20,\), .* list"):
        per_sample_loss(lambda e, y: [1.0], embeddings, labels)


def test_a_regularizer_alone_is_no_reason_to_refuse() -> None:
    """One class has no negative pairs, so PML has no terms; the regulariser is still there."""
    loss = losses.TripletMarginLoss(embedding_regularizer=regularizers.LpRegularizer())
    embeddings, labels = torch.randn(4, WIDTH), torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(
        per_sample_loss(loss, embeddings, labels), loss(embeddings, labels).expand(4)
    )


def test_callables_are_passed_through() -> None:
    embeddings, labels = batch()
    loss = nn.CrossEntropyLoss(reduction="none")
    torch.testing.assert_close(
        per_sample_loss(loss, embeddings, labels), loss(embeddings, labels), rtol=0, atol=0
    )


def test_contrastive_terms_by_hand() -> None:
    """Literal: each anchor has its share of the mean over non-zero positive and negative pairs."""
    embeddings, labels = batch(10)
    x = torch.nn.functional.normalize(embeddings).detach().numpy()
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    same = (labels[:, None] == labels[None]).numpy()
    off = ~np.eye(10, dtype=bool)
    positive = np.where(same & off, distance, 0.0)
    negative = np.where(~same, np.maximum(1.2 - distance, 0), 0.0)
    expected = sum(t.sum(1) / (t > 0).sum() for t in (positive, negative)) * 10
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1.2)
    np.testing.assert_allclose(per_sample_loss(loss, embeddings, labels).detach(), expected)


def test_multi_similarity_terms_by_hand() -> None:
    """ProcSim Eq. 5, written as a loop."""
    embeddings, labels = batch(10)
    settings = (2.0, 40.0, 0.1)
    expected = literal.multi_similarity(embeddings.detach().numpy(), labels.tolist(), *settings)
    loss = losses.MultiSimilarityLoss(*settings)
    np.testing.assert_allclose(per_sample_loss(loss, embeddings, labels).detach(), expected)


def test_triplet_terms_by_hand() -> None:
    embeddings, labels = batch(10)
    x = torch.nn.functional.normalize(embeddings).detach().numpy()
    expected = np.zeros(10)
    for a in range(10):
        for p in range(10):
            for n in range(10):
                if a != p and labels[a] == labels[p] != labels[n]:
                    gap = x[a] @ x[n] - x[a] @ x[p] + 0.2
                    expected[a] += max(gap, 0)
    loss = losses.TripletMarginLoss(
        margin=0.2, distance=CosineSimilarity(), reducer=reducers.SumReducer()
    )
    np.testing.assert_allclose(per_sample_loss(loss, embeddings, labels).detach(), expected * 10)


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n not in ARGUMENTS])
def test_the_loss_object_is_left_as_it_was(name: str) -> None:
    loss, twin = make(name), make(name)
    reducer = loss.reducer
    per_sample_loss(loss, *batch(dtype=torch.float32))
    twin(*batch(dtype=torch.float32))
    assert loss.reducer is reducer
    for ours, theirs in zip(loss.modules(), twin.modules(), strict=True):
        assert not ours._forward_pre_hooks
        assert ours.__dict__.keys() == theirs.__dict__.keys()


def test_the_loss_object_is_left_as_it_was_after_an_exception() -> None:
    class Failing(reducers.MeanReducer):
        def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
            raise RuntimeError("on purpose")

    loss = losses.MultiSimilarityLoss(reducer=Failing())
    with pytest.raises(RuntimeError, match="on purpose"):
        per_sample_loss(loss, *batch())
    assert not loss.reducer._forward_pre_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", SUPPORTED)
def test_no_gradient_is_needed(name: str, mode: type) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    torch.manual_seed(3)
    expected = per_sample_loss(make(name), embeddings, labels)
    with mode():
        loss = make(name)
        torch.manual_seed(3)
        got = per_sample_loss(loss, embeddings.detach().clone(), labels.clone())
    assert not got.requires_grad
    torch.testing.assert_close(got, expected.detach())


class TimesTen(losses.MultiSimilarityLoss):
    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        return 10 * super().forward(*arguments, **keywords)


class Twice(losses.ContrastiveLoss):
    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        return super().forward(*arguments, **keywords) + super().forward(*arguments, **keywords)


class ByKeyword(losses.MultiSimilarityLoss):
    def forward(self, embeddings: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
        terms = self.compute_loss(embeddings, labels, None, embeddings, labels)
        return self.reducer(loss_dict=terms, embeddings=embeddings, labels=labels)


class HalfReduced(losses.ContrastiveLoss):
    """One sub-loss with anchors and one that it has reduced itself."""

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss", "spread"]

    def compute_loss(self, embeddings: Tensor, *arguments: Any) -> dict[str, Any]:
        spread = embeddings.square().mean()
        return {
            **super().compute_loss(embeddings, *arguments),
            "spread": {"losses": spread, "indices": None, "reduction_type": "already_reduced"},
        }


@pytest.mark.parametrize("kind", [TimesTen, Twice])
def test_a_loss_that_changes_what_its_reducer_returned_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} cannot be weighted .* its reducer"):
        per_sample_loss(kind(), *batch())


def test_a_loss_that_is_reduced_in_part_is_refused() -> None:
    with pytest.raises(TypeError, match=r"HalfReduced cannot be weighted .* reduces its terms"):
        per_sample_loss(HalfReduced(), *batch())


def test_a_reducer_called_by_keyword() -> None:
    assert_mean_is_loss(ByKeyword, *batch())


def test_a_wrapper_is_refused_without_being_called() -> None:
    embeddings, labels = batch(dtype=torch.float32)
    wrapper = ConfidenceWeightedLoss(
        losses.ContrastiveLoss(), losses.ProxyNCALoss(CLASSES, WIDTH), lam=1.0
    )
    with pytest.raises(TypeError, match="ConfidenceWeightedLoss is a wrapper"):
        per_sample_loss(wrapper, embeddings, labels)
    assert wrapper.decision is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    embeddings, labels = batch()
    expected = per_sample_loss(losses.MultiSimilarityLoss(), embeddings, labels)
    got = per_sample_loss(losses.MultiSimilarityLoss(), embeddings, labels.to(dtype))
    assert torch.equal(got, expected)


def test_an_empty_batch_gives_an_empty_tensor_with_a_graph() -> None:
    embeddings = torch.randn(0, WIDTH, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    got = per_sample_loss(losses.ContrastiveLoss(), embeddings, empty)
    assert got.shape == (0,)
    got.sum().backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "TripletMarginLoss"])
def test_batches_without_pairs(name: str, size: int) -> None:
    embeddings = torch.randn(size, WIDTH, requires_grad=True)
    labels = torch.zeros(size, dtype=torch.long)
    expected = make(name)(embeddings, labels)
    torch.testing.assert_close(per_sample_loss(make(name), embeddings, labels).mean(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_single(dtype: torch.dtype) -> None:
    embeddings, labels = batch(40, dtype)
    loss = losses.MultiSimilarityLoss()
    per_sample = per_sample_loss(loss, embeddings, labels)
    assert per_sample.dtype == torch.float32
    torch.testing.assert_close(per_sample.mean().to(dtype), loss(embeddings, labels))


REPEATING = {
    "triplets": miners.TripletMarginMiner(margin=0.3, type_of_triplets="all"),
    "distance weighted": miners.DistanceWeightedMiner(),
    "uniform histogram": miners.UniformHistogramMiner(),
}


@pytest.mark.parametrize("miner", REPEATING)
@pytest.mark.parametrize("several", [False, True])
def test_a_pair_that_is_repeated_counts_as_often_as_in_its_reducer(
    miner: str, several: bool
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 5
    tuples = REPEATING[miner](x, y)
    reducer = reducers.PerAnchorReducer()
    if several:
        both = {"pos_loss": reducer, "neg_loss": reducers.PerAnchorReducer()}
        reducer = reducers.MultipleReducers(both)
    names = ("ContrastiveLoss", "SignalToNoiseRatioContrastiveLoss")
    for name in names if several else (*names, "NTXentLoss", "IntraPairVarianceLoss"):
        loss = getattr(losses, name)(reducer=reducer)
        per_sample = per_sample_loss(loss, x, y, tuples)
        torch.testing.assert_close(per_sample.mean(), loss(x, y, tuples), msg=name)


WITHOUT_TERMS = (
    "TripletMarginLoss", "NTXentLoss", "SupConLoss", "LiftedStructureLoss", "AngularLoss",
    "MarginLoss", "TupletMarginLoss", "NPairsLoss", "ContrastiveLoss", "MultiSimilarityLoss",
    "CircleLoss", "GeneralizedLiftedStructureLoss",
)  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_TERMS)
def test_a_loss_without_terms_has_a_graph(name: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for rows, labels, tuples in (
        (1, [0], None),
        (4, [0, 0, 0, 0], None),
        (4, [0, 1, 2, 3], None),
        (4, [0, 0, 1, 1], (none, none, none)),
    ):
        x = torch.randn(rows, 3, requires_grad=True)
        per_sample = per_sample_loss(getattr(losses, name)(), x, torch.tensor(labels), tuples)
        per_sample.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", [None, losses.ContrastiveLoss])
def test_what_is_no_loss_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="loss must be"):
        per_sample_loss(loss, torch.eye(4), torch.tensor([0, 0, 1, 1]))
