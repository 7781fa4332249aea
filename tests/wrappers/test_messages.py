"""What every wrapper accepts for a count, and that a refusal speaks of what the caller wrote."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from held_out import few_held_out
from pytorch_metric_learning import losses
from torch import Tensor, nn

from noisydml import (
    ConfidenceWeightedLoss,
    GatheredLoss,
    GroundTruthFilter,
    JudgeFilter,
    KNNDenoiser,
    LabelAudit,
    LabelIssues,
    MemoryRelabeler,
    PRISMFilter,
    PrototypicalMixer,
    SmallLossFilter,
    SuperLoss,
    find_label_issues,
    functional,
    noise,
    robust,
)
from noisydml.language import top_classes
from noisydml.memory import FaissIndex, TorchIndex

SAMPLES, CLASSES, WIDTH = 48, 4, 8
LABELS = torch.arange(SAMPLES) % CLASSES
IDS = torch.arange(SAMPLES)
NOBODY = torch.zeros(SAMPLES, dtype=torch.bool)


def embeddings() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return nn.functional.one_hot(LABELS, WIDTH) + 0.1 * torch.rand(
        SAMPLES, WIDTH, generator=generator
    )


n = np.int64
COUNTED: dict[str, Callable[[], Any]] = {
    "robust": lambda: robust(losses.ContrastiveLoss(), LABELS.numpy().max() + 1, n(8), n(SAMPLES)),
    "JudgeFilter": lambda: JudgeFilter(
        losses.ContrastiveLoss(), dataset_size=n(SAMPLES), k=np.int32(5), index=FaissIndex()
    ),
    "KNNDenoiser": lambda: KNNDenoiser(
        losses.ContrastiveLoss(), memory_size=n(SAMPLES), k=np.uint8(5), warmup=n(1),
        index=FaissIndex("IVF4,Flat", nprobe=n(2)),
    ),
    "KNNDenoiser, torch": lambda: KNNDenoiser(
        losses.ContrastiveLoss(), memory_size=n(SAMPLES), k=n(5), index=TorchIndex(block_size=n(9))
    ),
    "MemoryRelabeler": lambda: MemoryRelabeler(
        KNNDenoiser(losses.ContrastiveLoss(), memory_size=n(SAMPLES)), n(8), memory_size=n(60)
    ),
    "PRISMFilter": lambda: PRISMFilter(
        losses.ContrastiveLoss(), n(4), n(8), memory_size=n(60), window=n(3), warmup=n(1)
    ),
    "SmallLossFilter": lambda: SmallLossFilter(
        losses.ContrastiveLoss(), noise_rate=np.float32(0.2), ramp=n(2),
        score_loss=losses.ProxyNCALoss(4, n(8)),
    ),
    "ConfidenceWeightedLoss": lambda: ConfidenceWeightedLoss(
        losses.ContrastiveLoss(), losses.ProxyNCALoss(4, 8), lam=np.float32(0.1), warmup=n(1),
        threshold=np.float64(1),
    ),
    "SuperLoss": lambda: SuperLoss(losses.ContrastiveLoss(), lam=n(1), warmup=n(1)),
    "PrototypicalMixer": lambda: PrototypicalMixer(
        None, n(4), n(8), memory_size=n(SAMPLES), warmup=n(1), cycles=n(2), max_retrieved=n(3),
        seed=n(7),
    ),
}  # fmt: skip


@few_held_out()
@pytest.mark.parametrize("name", COUNTED)
def test_integers_of_numpy_are_counts(name: str) -> None:
    loss_fn = COUNTED[name]()
    audit = LabelAudit(loss_fn, np.int64(SAMPLES))
    for _ in range(3):
        loss_fn(embeddings(), LABELS, sample_ids=IDS)
    repr(loss_fn)
    assert len(audit.result().score) == SAMPLES
    again = COUNTED[name]()
    again.load_state_dict(loss_fn.state_dict())
    torch.manual_seed(0)
    first = loss_fn(embeddings(), LABELS, sample_ids=IDS)
    torch.manual_seed(0)
    assert torch.equal(again(embeddings(), LABELS, sample_ids=IDS), first)


@few_held_out()
def test_integers_of_numpy_are_counts_elsewhere(tmp_path: Any) -> None:
    issues = find_label_issues(embeddings(), LABELS, k=np.int64(5))
    issues.with_neighbors(embeddings(), np.int64(3)).save(tmp_path / "issues.npz")
    LabelIssues.load(tmp_path / "issues.npz").to_html(
        tmp_path / "page.html", top=np.int64(3), image_size=np.int64(16)
    )
    issues.summary(np.int64(2))
    assert top_classes(torch.rand(3, 4), np.int64(2)).shape == (3, 2)
    points = np.random.default_rng(0).normal(size=(SAMPLES, 3))
    noise.small_cluster(LABELS, 0.3, points, images_per_cluster=np.int64(2), seed=np.int64(1))


NARROW: dict[str, Callable[[], Any]] = {
    "ProxyNCALoss": lambda: losses.ProxyNCALoss(CLASSES, 5),
    "ProxyAnchorLoss": lambda: losses.ProxyAnchorLoss(CLASSES, 5),
    "SoftTripleLoss": lambda: losses.SoftTripleLoss(CLASSES, 5),
    "ArcFaceLoss": lambda: losses.ArcFaceLoss(CLASSES, 5),
    "NormalizedSoftmaxLoss": lambda: losses.NormalizedSoftmaxLoss(CLASSES, 5),
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, 64),
    "MultipleLosses": lambda: losses.MultipleLosses(
        [losses.ContrastiveLoss(), losses.ProxyNCALoss(CLASSES, 5)]
    ),
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "JudgeFilter": lambda loss: JudgeFilter(loss, dataset_size=SAMPLES, start="train"),
    "GroundTruthFilter": lambda loss: GroundTruthFilter(loss, NOBODY),
    "a nest": lambda loss: GroundTruthFilter(GatheredLoss(loss), NOBODY),
}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("training", [True, False])
def test_the_width_of_the_wrapped_loss(name: str, around: str, training: bool) -> None:
    loss_fn = AROUND[around](NARROW[name]()).train(training)
    before = copy.deepcopy(loss_fn.state_dict())
    with pytest.raises(ValueError, match="as wide as the wrapped loss is made for, 5, got 8"):
        loss_fn(embeddings(), LABELS, sample_ids=IDS)
    for key, value in loss_fn.state_dict().items():
        same = torch.equal(value, before[key]) if torch.is_tensor(value) else value == before[key]
        assert same, key
    loss_fn(embeddings()[:, :5], LABELS, sample_ids=IDS)


def test_the_width_behind_a_head() -> None:
    proxies = losses.ProxyNCALoss(CLASSES, 5)
    mixer = PrototypicalMixer(proxies, CLASSES, WIDTH, nn.Linear(WIDTH, 5), memory_size=SAMPLES)
    mixer(embeddings(), LABELS)
    for head in (nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.ReLU())):
        with pytest.raises(ValueError, match="head must take features of width feature_size, 8, g"):
            PrototypicalMixer(None, CLASSES, WIDTH, head, memory_size=SAMPLES)
    lazy = nn.LazyLinear(3)
    PrototypicalMixer(None, CLASSES, WIDTH, lazy, memory_size=SAMPLES)


@pytest.mark.parametrize("make", [robust, KNNDenoiser])
def test_who_has_said_how_wide_embeddings_are(make: Any) -> None:
    size = {"dataset_size" if make is robust else "memory_size": SAMPLES}
    loss_fn = make(losses.ContrastiveLoss(), embedding_size=5, **size)
    with pytest.raises(ValueError, match="embeddings must be as wide as embedding_size, 5, got 8"):
        loss_fn(embeddings(), LABELS)
    if make is KNNDenoiser:
        with pytest.raises(ValueError, match="features must be as wide as embedding_size, 5, got"):
            loss_fn.refresh(embeddings(), LABELS)
    loss_fn = make(losses.ContrastiveLoss(), **size)
    loss_fn(embeddings(), LABELS)
    with pytest.raises(ValueError, match="embeddings must be as wide as those before, 8, got 5"):
        loss_fn(embeddings()[:, :5], LABELS)
    twice = [x.repeat(2, *[1] * (x.ndim - 1)) for x in (embeddings(), LABELS)]
    (name,) = size
    with pytest.raises(ValueError, match=f"features must have at most 48 rows, {name} .*got 96"):
        loss_fn.refresh(*twice)


@pytest.mark.parametrize("value", [float("nan"), torch.tensor(float("nan")), torch.tensor([1j])])
def test_what_a_callable_threshold_returns(value: Any) -> None:
    loss_fn = ConfidenceWeightedLoss(
        losses.ContrastiveLoss(), losses.ProxyNCALoss(CLASSES, WIDTH), lam=1,
        threshold=lambda _: value,
    )  # fmt: skip
    message = "threshold must return a number(, got NaN| or a 0-dim tensor, got dtype)"
    with pytest.raises((TypeError, ValueError), match=message):
        loss_fn(embeddings(), LABELS)
    assert int(loss_fn.step) == 0


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("IVF99,Flat", "Number of training points (48) should be at least"),
        ("HNSW32,PQ4", "Number of training points (48)"),
        ("PQ3", "multiple of the number of subquantizers"),
        ("PCA16,Flat", "cannot output 16 dimensions from 8"),
        ("LSH", "metric == METRIC_L2"),
    ],
)
def test_an_index_that_faiss_cannot_make(index: str, reason: str) -> None:
    wanted = rf"index factory '{index}' cannot hold 48 features .*{re.escape(reason)}"
    with pytest.raises(ValueError, match=wanted) as caught:
        find_label_issues(embeddings(), LABELS, index=index)
    assert isinstance(caught.value.__cause__, RuntimeError)
    loss_fn = KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES, index=index)
    with pytest.raises(ValueError, match=wanted):
        loss_fn.refresh(embeddings(), LABELS)


def test_odd_settings_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="k must be an integer, got ndarray"):
        KNNDenoiser(losses.ContrastiveLoss(), memory_size=9, k=np.array([5, 6]))  # type: ignore[arg-type]
    for threshold in ("high", None):
        with pytest.raises(TypeError, match="threshold must be a number"):
            find_label_issues(embeddings(), LABELS, threshold=threshold)  # type: ignore[arg-type]
    index = FaissIndex(metric="euclidean")
    with pytest.raises(ValueError, match="'cosine', whatever metric is given here, got 'euclid"):
        find_label_issues(embeddings(), LABELS, metric="euclidean", index=index)
    for weights in (["a"] * SAMPLES, [[1], [1, 2]], np.array([object()] * SAMPLES), "a"):
        with pytest.raises(TypeError, match="sample_weight must hold 48 numbers"):
            find_label_issues(embeddings(), LABELS, sample_weight=weights)
    sparse = torch.ones(SAMPLES).to_sparse()
    with pytest.raises(TypeError, match="sample_weight must be a dense tensor"):
        find_label_issues(embeddings(), LABELS, sample_weight=sparse)


def test_sizes_have_the_names_that_the_caller_gave_them() -> None:
    for size in (1e3, 0, None, "40"):
        with pytest.raises((TypeError, ValueError), match="dataset_size must be"):
            JudgeFilter(losses.ContrastiveLoss(), dataset_size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_classes must be an integer, got NoneType"):
        PRISMFilter(losses.ContrastiveLoss(), None, 6, memory_size=40)  # type: ignore[arg-type]
    for loss_fn in (
        JudgeFilter(losses.ContrastiveLoss(), dataset_size=SAMPLES),
        KNNDenoiser(losses.ContrastiveLoss(), memory_size=SAMPLES),
    ):
        with pytest.raises(ValueError, match="features must have at least one column"):
            loss_fn.refresh(embeddings()[:, :0], LABELS)
    with pytest.raises(TypeError, match=r"step must be a torch\.Tensor, got int"):
        functional.forget_rate(5, 0.3, 10)  # type: ignore[arg-type]
