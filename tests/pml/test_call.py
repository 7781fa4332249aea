"""Calls of pytorch-metric-learning's losses; their samples' parts are in test_per_sample.py."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.reducers import ClassWeightedReducer
from torch import nn

from noisydml import GroundTruthFilter, pml
from noisydml.pml.batch import Batch

CLASSES, WIDTH = 4, 8


def batch(size: int = 12, **settings: torch.Tensor) -> Batch:
    return Batch(torch.randn(size, WIDTH), torch.arange(size) % CLASSES, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"softmax_scale": 7.5},
        {"reducer": reducers.SumReducer()},
        {"distance": CosineSimilarity()},
        {"distance": LpDistance(normalize_embeddings=False, power=2)},
        {"distance": LpDistance(power=1)},
    ],
    ids=str,
)
def test_sample_losses_are_pml_s_terms(settings: dict[str, object]) -> None:
    """By noisydml's own Proxy-NCA where the settings allow it, through PML elsewhere."""
    loss, data = losses.ProxyNCALoss(CLASSES, WIDTH, **settings), batch()
    got = pml.sample_losses(loss, data)
    expected = loss(data.embeddings, data.labels)
    torch.testing.assert_close(got.mean(), expected)
    torch.testing.assert_close(got, pml.split(loss, data).per_sample)


def test_a_sample_far_from_its_proxy_is_the_most_suspicious_not_the_least() -> None:
    """PML drops a row whose probability rounds to 0, so its loss would be 0."""
    loss = losses.ProxyNCALoss(2, 2, softmax_scale=100)
    loss.proxies.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    data = Batch(torch.tensor([[1.0, 0.0], [-1.0, 0.1]]), torch.tensor([0, 0]))
    good, bad = pml.sample_losses(loss, data).tolist()
    assert good < 1e-6
    assert bad == pytest.approx(398, abs=2)
    assert pml.split(loss, data).per_sample[1] == 0  # PML's own account


def test_weights_multiply_terms_and_leave_regularizers_alone() -> None:
    from pytorch_metric_learning.regularizers import LpRegularizer

    loss = losses.MultiSimilarityLoss(embedding_regularizer=LpRegularizer())
    weight = torch.rand(12)
    data = batch(sample_weight=weight)
    terms = pml.split(loss, data)
    assert terms.unweighted > 1
    expected = (weight * terms.per_sample).mean() + terms.unweighted
    torch.testing.assert_close(pml.call(loss, data), expected)
    torch.testing.assert_close(terms.per_sample.mean() + terms.unweighted, terms.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: losses.ProxyNCALoss(5, 7), (5, 7)),
        (lambda: losses.NormalizedSoftmaxLoss(5, 7), (5, 7)),
        (lambda: losses.ArcFaceLoss(5, 7), (5, 7)),
        (lambda: losses.SubCenterArcFaceLoss(num_classes=5, embedding_size=7), (5, 7)),
        (lambda: losses.SoftTripleLoss(5, 7), (5, 7)),
        (lambda: losses.ProxyAnchorLoss(np.int64(5), 7), (5, 7)),
        (lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 7), (None, 7)),
        (lambda: losses.MultipleLosses([losses.ProxyNCALoss(5, 7)]), (5, 7)),
        (lambda: losses.MarginLoss(num_classes=5), (5, None)),
        (lambda: losses.MarginLoss(), (None, None)),
        (lambda: losses.P2SGradLoss(7, 5), (5, 7)),
        (lambda: losses.ContrastiveLoss(reducer=ClassWeightedReducer(torch.ones(5))), (5, None)),
        (lambda: losses.ContrastiveLoss(), (None, None)),
        (lambda: nn.CrossEntropyLoss(reduction="none"), (None, None)),
        (lambda: lambda e, y: e.sum(dim=1), (None, None)),
    ],
)
def test_embedding_shape(make, expected) -> None:  # type: ignore[no-untyped-def]
    assert pml.embedding_shape(make()) == expected


def test_unsaved_state_of_nested_losses() -> None:
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 16)
    both = losses.MultipleLosses([memory, losses.DynamicSoftMarginLoss()])
    state = pml.UnsavedState(both)
    assert state
    data = batch(10)
    memory(data.embeddings, data.labels)
    saved = state.get_extra_state()
    assert saved[0] == {"queue_idx": 10, "has_been_filled": False}
    assert set(saved[1]) == {"hist_"}

    fresh = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 16)
    other = losses.DynamicSoftMarginLoss()
    pml.UnsavedState(losses.MultipleLosses([fresh, other])).set_extra_state(saved)
    assert fresh.queue_idx == 10
    with pytest.raises(ValueError, match="a list of the states of 1 losses"):
        pml.UnsavedState(fresh).refuse_values({"_extra_state": saved}, "")
    assert not pml.UnsavedState(losses.ContrastiveLoss())


def test_multiple_losses_take_no_reference() -> None:
    loss = losses.MultipleLosses([losses.ContrastiveLoss()])
    data = batch(ref_emb=torch.randn(3, WIDTH), ref_labels=torch.arange(3))
    with pytest.raises(TypeError, match="ref_emb"):
        pml.split(loss, data)
    with pytest.raises(TypeError, match="ref_emb"):
        pml.call(loss, data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_loss_keeps_the_dtype_of_its_proxies_and_memory(dtype: torch.dtype) -> None:
    for loss in (
        losses.SoftTripleLoss(CLASSES, WIDTH),
        losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, 16),
        losses.MultipleLosses([losses.ProxyNCALoss(CLASSES, WIDTH)]),
    ):
        data = batch()
        data = Batch(data.embeddings.to(dtype), data.labels, sample_weight=torch.rand(12))
        pml.call(loss, data)
        state = [*loss.parameters(), *loss.buffers()]
        assert {t.dtype for t in state if t.is_floating_point()} == {torch.float32}


def test_parameters_in_bfloat16_that_no_kernel_takes() -> None:
    data = batch()
    learned = losses.MarginLoss(learn_beta=True, num_classes=CLASSES)
    for loss in (losses.ProxyNCALoss(CLASSES, WIDTH), learned):
        for embeddings in (data.embeddings, data.embeddings.bfloat16()):
            with pytest.raises(TypeError, match="LpDistance must have parameters in float32"):
                pml.call(loss.to(torch.bfloat16), Batch(embeddings, data.labels))


def test_plain_modules_get_the_embeddings_as_they_are() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, CLASSES)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.linear(embeddings), labels, reduction="none")

    head, data = Head(), batch()
    assert torch.equal(pml.call(head, data), head(data.embeddings, data.labels).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.TripletMarginLoss(),
        lambda: losses.MarginLoss(learn_beta=True, num_classes=CLASSES),
        lambda: losses.MultiSimilarityLoss(),
    ],
)
def test_the_reference_has_the_dtype_of_the_embeddings(make, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    data = batch()
    half = data.embeddings.to(dtype)
    value = pml.call(make(), Batch(half, data.labels, ref_emb=half.flip(0), ref_labels=data.labels))
    assert value.isfinite()


def test_a_batch_compared_with_itself_stays_itself() -> None:
    """PML leaves out self-comparisons where ref_emb is the very same tensor."""
    loss, data = losses.NCALoss(), batch()
    itself = Batch(data.embeddings, data.labels, ref_emb=data.embeddings, ref_labels=data.labels)
    assert torch.equal(pml.call(loss, itself), loss(data.embeddings, data.labels))


def test_refusals_look_inside_containers() -> None:
    anchors = losses.MultipleLosses([losses.ProxyAnchorLoss(CLASSES, WIDTH)])
    with pytest.raises(TypeError, match="ProxyAnchorLoss cannot be weighted"):
        pml.refuse_unweightable(anchors)
    with pytest.raises(TypeError, match="VICRegLoss takes no labels"):
        pml.refuse_unlabelled(losses.MultipleLosses({"a": losses.VICRegLoss()}))


class Waiting(losses.ContrastiveLoss):
    """Two threads have both begun a call before either of them computes anything."""

    both = threading.Barrier(2)

    def compute_loss(self, *arguments: Any) -> Any:
        self.both.wait(timeout=60)
        return super().compute_loss(*arguments)


def test_two_threads_may_share_a_loss() -> None:
    loss, batches = Waiting(), [batch(), batch(16)]
    expected = [pml.split(losses.ContrastiveLoss(), each).per_sample for each in batches]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda each: pml.split(loss, each).per_sample, batches))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_pml_refuses_its_memory_around_a_wrapper() -> None:
    wrapper = GroundTruthFilter(losses.ContrastiveLoss(), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(Exception, match="not supported for GroundTruthFilter"):
        losses.CrossBatchMemory(wrapper, WIDTH)


def test_losses_that_came_later_need_not_be_there() -> None:
    """PML 2.6 has no SmoothAPLoss, and neither 2.7 nor 2.8."""
    script = """
from pytorch_metric_learning import losses
del losses.SmoothAPLoss, losses.ThresholdConsistentMarginLoss
import noisydml, torch
loss_fn = noisydml.KNNDenoiser(losses.ContrastiveLoss(), memory_size=4)
noisydml.PrototypicalMixer(losses.SupConLoss(), 2, 3, memory_size=4)
print(loss_fn(torch.eye(3), torch.arange(3)).shape)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert printed.stdout == "torch.Size([])\n"


def test_of_several_losses_the_fewest_classes_count() -> None:
    several = losses.MultipleLosses([losses.ProxyNCALoss(5, 7), losses.ProxyNCALoss(3, 7)])
    assert pml.embedding_shape(several) == (3, 7)
