"""PRISMFilter against the paper's Algorithm 1 written as loops, and the traps of its ports."""

from __future__ import annotations

import inspect
import math
from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, regularizers
from torch import Tensor

import noisydml
from noisydml import (
    GatheredLoss,
    KNNDenoiser,
    LossWrapper,
    MemoryRelabeler,
    PRISMFilter,
    noise,
)
from noisydml.pml.batch import Batch
from noisydml.pml.kinds import compares_directions, refuse_without_reference

CLASSES, WIDTH = 6, 4


def per_sample(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.square().sum(dim=1)


def make(loss: Any = per_sample, **settings: Any) -> PRISMFilter:
    settings = {"memory_size": 30, "noise_rate": 0.5, "warmup": 0, **settings}
    return PRISMFilter(loss, CLASSES, WIDTH, **settings)


class Algorithm1:
    """The paper's loop, with the decisions that it leaves open."""

    def __init__(
        self, memory_size: int, rate: Fraction, window: int, temperature: float, warmup: int | None
    ) -> None:
        self.memory: deque[tuple[np.ndarray, int]] = deque(maxlen=memory_size)
        self.rate, self.window, self.temperature, self.warmup = rate, window, temperature, warmup
        self.quantiles: list[float] = []
        self.entered = self.steps = 0

    def __call__(self, embeddings: np.ndarray, labels: list[int]) -> list[bool]:
        rows = [row / np.linalg.norm(row) for row in embeddings]
        centers = {
            k: np.mean([v for v, y in self.memory if y == k], axis=0)
            for k in {y for _, y in self.memory}
        }
        known = [y in centers for y in labels]
        p = [
            1.0 if not k else self.probability(row, y, centers)
            for row, y, k in zip(rows, labels, known, strict=True)
        ]
        keep = [True] * len(labels)
        taking_part = sorted(each for each, k in zip(p, known, strict=True) if k)
        drops = math.floor(self.rate * len(taking_part))
        if drops:
            quantile = taking_part[drops - 1]
            self.quantiles = [*self.quantiles, quantile][-self.window :]
            m = sum(self.quantiles) / len(self.quantiles)
            keep = [each > m or not k for each, k in zip(p, known, strict=True)]
            if not any(keep):
                self.quantiles = [quantile]
                keep = [each > quantile for each in p]
            if not any(keep):
                keep = [each == max(p) for each in p]
        warm = self.entered < (self.memory.maxlen or 0)
        if self.warmup is not None:
            warm = self.steps < self.warmup
        if warm:
            keep = [True] * len(labels)
        for row, y, kept in zip(rows, labels, keep, strict=True):
            if kept:
                self.memory.append((row, y))
                self.entered += 1
        self.steps += 1
        return keep

    def probability(self, row: np.ndarray, label: int, centers: dict[int, np.ndarray]) -> float:
        """Equation 7."""
        similarities = {k: row @ center / self.temperature for k, center in centers.items()}
        return 1 / sum(math.exp(s - similarities[label]) for s in similarities.values())


def random_batch(generator: torch.Generator, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Of 1 to 14 rows with wrong labels; class 5 is rare, and class 4 comes in waves."""

    def draw(stop: int, *size: int) -> Tensor:
        return torch.randint(stop, size, generator=generator)

    size = int(draw(14)) + 1
    true = draw(4, size)
    if draw(3) == 0:
        true = draw(CLASSES - 1, size)
    if draw(60) == 0:
        true[0] = 5
    embeddings = centers[true] + 0.7 * torch.randn(
        size, WIDTH, generator=generator, dtype=torch.float64
    )
    wrong = torch.rand(size, generator=generator) < 0.4
    labels = torch.where(wrong, (true + 1 + draw(4, size)) % (CLASSES - 1), true)
    return embeddings, labels


@pytest.mark.parametrize(
    ("window", "rate", "temperature", "warmup"),
    [
        (1, "0.5", 1.0, 0),
        (1, "0.3", 0.05, None),
        (30, "0.5", 1.0, 0),
        (30, "0.3", 0.05, None),
        (3, "0.9", 0.05, 7),
    ],
)
def test_algorithm_1_over_2000_steps(
    window: int, rate: str, temperature: float, warmup: int | None
) -> None:
    """Sample by sample; classes are unseen at first, and starve in a memory of 30."""
    generator = torch.Generator().manual_seed(window)
    centers = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    settings: dict[str, Any] = {"window": window, "temperature": temperature, "warmup": warmup}
    loss_fn = make(noise_rate=float(rate), **settings)
    literal = Algorithm1(30, Fraction(rate), **settings)
    dropped = starved = 0
    for step in range(2000):
        embeddings, labels = random_batch(generator, centers)
        starved += sum(y not in {k for _, k in literal.memory} for y in labels.tolist())
        expected = literal(embeddings.numpy(), labels.tolist())
        loss_fn(embeddings, labels)
        assert loss_fn.decision.keep.tolist() == expected, step
        assert int(loss_fn.num_quantiles) == len(literal.quantiles)
        dropped += expected.count(False)
    assert dropped > 1000
    assert starved > 20
    assert int(loss_fn.memory.total) == literal.entered


@pytest.mark.parametrize("score", ["pairs", "batch_positive", "memory_positive"])
def test_the_other_scores(score: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    loss_fn, by_centers = make(score=score), make()
    for _ in range(200):
        embeddings, labels = random_batch(generator, centers)
        means, counts = loss_fn.memory.centers.clone().double(), loss_fn.memory.counts.clone()
        loss_fn(embeddings, labels)
        by_centers(embeddings, labels)
        unit = torch.nn.functional.normalize(embeddings)
        if score == "pairs":
            assert torch.equal(loss_fn.decision.keep, by_centers.decision.keep)
            torch.testing.assert_close(
                loss_fn.decision.score, by_centers.decision.score, rtol=1e-5, atol=1e-7
            )
            continue
        for i, y in enumerate(labels.tolist()):
            expected = unit[i] @ means[y] if counts[y] else torch.tensor(1.0)
            if score == "batch_positive":
                expected = (unit[labels == y] @ unit[i]).mean()
            assert loss_fn.decision.score[i].item() == pytest.approx(expected.item(), abs=1e-6)
        if score == "batch_positive":
            drops = len(labels) // 2
            below = loss_fn.decision.score <= loss_fn.decision.threshold
            assert torch.equal(loss_fn.decision.keep, ~below)
            assert drops == 0 or below.any() or loss_fn.decision.keep.any()
    if score == "pairs":
        for name in ("features", "labels", "total"):
            assert torch.equal(getattr(loss_fn.memory, name), getattr(by_centers.memory, name))


# The traps -------------------------------------------------------------------------------------

EYE = torch.eye(WIDTH)


def fill(loss_fn: PRISMFilter, classes: int, times: int = 1) -> None:
    """One clean feature, the unit vector, of each of the first classes."""
    for _ in range(times):
        loss_fn.memory.enqueue(EYE[:classes], torch.arange(classes))


def test_unseen_classes_stay_out_of_the_quantile() -> None:
    loss_fn = make(window=1)
    fill(loss_fn, 2)
    labels = torch.tensor([0, 1, 5, 5, 5, 5])
    loss_fn(EYE[[0, 0, 2, 2, 3, 3]], labels)
    # Of two known samples one is dropped, not of six samples three.
    assert loss_fn.decision.keep.tolist() == [True, False, True, True, True, True]
    assert loss_fn.decision.score[2:].tolist() == [1, 1, 1, 1]
    assert loss_fn.decision.threshold < 0.5


def test_early_quantiles_do_not_shut_the_filter() -> None:
    """The trap: thresholds of 1 from the first batches, and hardly anything is kept for ever."""
    loss_fn = make(noise_rate=0.5, window=30)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    kept = []
    for _ in range(100):
        embeddings, labels = random_batch(generator, centers)
        loss_fn(embeddings, labels)
        kept.append(loss_fn.decision.keep.double().mean().item())
    assert 0.4 < np.mean(kept[50:]) < 0.75


@pytest.mark.parametrize("window", [1, 30])
@pytest.mark.parametrize(("size", "rate"), [(3, 0.3), (1, 0.9), (9, 0.1), (4, 0.0)])
def test_a_share_of_less_than_one_sample_drops_nobody(size: int, rate: float, window: int) -> None:
    loss_fn = make(noise_rate=rate, window=window)
    fill(loss_fn, 4)
    for _ in range(3):
        loss_fn(torch.randn(size, WIDTH), torch.randint(4, (size,)))
        assert loss_fn.decision.keep.all()
        assert loss_fn.decision.threshold == -math.inf
        assert loss_fn.num_quantiles == 0


def test_never_everything_dropped_and_the_window_starts_again() -> None:
    loss_fn = make(noise_rate=0.5, window=4)
    fill(loss_fn, 2)
    right = torch.tensor([[1.0, 0, 0, 0], [1, 0.1, 0, 0], [1, 0.2, 0, 0], [1, 0.3, 0, 0]])
    for _ in range(4):
        loss_fn(right, torch.zeros(4, dtype=torch.int64))  # probabilities near 1
    assert loss_fn.num_quantiles == 4
    wrong = torch.tensor([[0.9, 1.0, 0, 0], [0.8, 1.0, 0, 0], [0.7, 1, 0, 0], [0.6, 1, 0, 0]])
    loss_fn(wrong, torch.tensor([0, 0, 0, 0]))  # all below the mean of the window
    assert loss_fn.decision.keep.tolist() == [True, True, False, False]
    assert loss_fn.num_quantiles == 1
    assert loss_fn.decision.threshold == loss_fn.decision.score[2]
    assert loss_fn.quantiles[-1] == loss_fn.decision.score[2]


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.99])
@pytest.mark.parametrize("window", [1, 5])
def test_equal_probabilities_are_all_kept(rate: float, window: int) -> None:
    loss_fn = make(noise_rate=rate, window=window)
    fill(loss_fn, 2)
    for _ in range(3):
        value = loss_fn(EYE[[0] * 8], torch.zeros(8, dtype=torch.int64))
        assert loss_fn.decision.keep.all()
        assert value == 1


def test_the_memory_holds_the_latest_that_were_kept() -> None:
    """Through the wrap, by their ids; the trap is to overwrite the newest."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    loss_fn, literal = make(memory_size=17), deque(maxlen=17)
    for step in range(60):
        embeddings, labels = random_batch(generator, centers)
        ids = torch.arange(len(labels)) + 100 * step
        loss_fn(embeddings, labels, sample_ids=ids)
        literal.extend(ids[loss_fn.decision.keep].tolist())
        assert sorted(loss_fn.memory.sample_ids[loss_fn.memory.filled].tolist()) == list(literal)


def test_a_class_that_starved_leaves_no_ghost_and_comes_back() -> None:
    loss_fn = make(memory_size=4, window=1, noise_rate=0.5)
    loss_fn.memory.enqueue(-EYE[:1].repeat(4, 1), torch.tensor([3, 3, 3, 3]))
    fill(loss_fn, 2, times=2)  # class 3 is pushed out
    assert not loss_fn.memory.centers[3].any()
    # With its ghost, at -e0, the first one would be the least likely.
    loss_fn(EYE[[0, 0, 1]], torch.tensor([3, 0, 0]))
    assert loss_fn.decision.keep.tolist() == [True, True, False]
    assert loss_fn.decision.score[0] == 1
    assert loss_fn.memory.counts[3] == 1
    torch.testing.assert_close(loss_fn.memory.centers[3], EYE[0])


def test_a_batch_is_scored_with_the_memory_before_it() -> None:
    loss_fn = make()
    loss_fn(EYE[[0, 1, 1]], torch.tensor([0, 0, 1]))  # nothing is known yet
    assert loss_fn.decision.keep.all()
    assert loss_fn.decision.score.tolist() == [1, 1, 1]


# The noise rate --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5])
def test_the_noise_rate_is_estimated(rate: float) -> None:
    classes, width, batch, window = 20, 32, 64, 100
    generator = torch.Generator().manual_seed(int(rate * 10))
    centers = torch.randn(classes, width, generator=generator)
    loss_fn = PRISMFilter(per_sample, classes, width, memory_size=1000, window=window)
    wrong_ones, kept, dropped = [], [], []
    for _ in range(130):
        true = torch.randint(classes, (batch,), generator=generator)
        wrong = torch.rand(batch, generator=generator) < rate
        shift = torch.randint(1, classes, (batch,), generator=generator)
        labels = torch.where(wrong, (true + shift) % classes, true)
        embeddings = centers[true] + 0.5 * torch.randn(batch, width, generator=generator)
        loss_fn(embeddings, labels)
        wrong_ones.append(wrong)
        kept.append(wrong[loss_fn.decision.keep])
        dropped.append(wrong[~loss_fn.decision.keep])
    estimate = loss_fn.decision.noise_rate.item()
    share = torch.cat(wrong_ones[-window:]).double().mean().item()
    # Twice a mean of n numbers in [0, 1]: Hoeffding's bound at one in a million.
    n = window * batch
    assert abs(estimate - share) < 2 * math.sqrt(math.log(2e6) / (2 * n)) + 0.01
    assert estimate == 0 or rate > 0
    if rate:
        assert torch.cat(kept[-window:]).double().mean() < 0.15 * rate
        assert torch.cat(dropped[-window:]).double().mean() > 0.8


@pytest.mark.parametrize("kind", [noise.uniform, noise.pair_flip])
def test_the_judge_sees_wrong_labels_that_do_not_rank_low(kind: Any) -> None:
    classes, width, size = 20, 32, 1200
    generator = torch.Generator().manual_seed(0)
    centers, true = torch.randn(classes, width, generator=generator), torch.arange(size) % classes
    labels = torch.from_numpy(kind(true, 0.3, seed=0).labels)
    embeddings = centers[true] + 0.5 * torch.randn(size, width, generator=generator)
    loss_fn = PRISMFilter(per_sample, classes, width, memory_size=size)
    rates = []
    for _ in range(2):
        for rows in torch.randperm(size, generator=generator).split(60):
            loss_fn(embeddings[rows], labels[rows])
            rates.append(float(loss_fn.decision.noise_rate))
    similar = kind is noise.pair_flip
    assert (rates[18] < 0.1) == similar  # by the ranks alone
    assert rates[-1] == pytest.approx(0.3, abs=0.05)
    assert float(loss_fn.structured) == pytest.approx(0.3 if similar else 0, abs=0.03)
    assert make(noise_rate=0.3).recent is None


def test_nothing_is_dropped_while_the_features_tell_nothing() -> None:
    loss_fn = make(noise_rate=None, window=2)
    fill(loss_fn, 4, times=4)
    for _ in range(2):  # all labels rank last
        loss_fn(1 - 2 * EYE, torch.arange(4))
        assert 0.7 <= loss_fn.decision.noise_rate <= 1
        assert loss_fn.decision.keep.all()
        assert loss_fn.decision.threshold == -math.inf
    assert loss_fn.num_quantiles == 0
    wrong = EYE[:1] - 0.5 * EYE[3:]
    for _ in range(2):  # and now only the last one
        loss_fn(torch.cat([EYE, EYE, wrong]), torch.tensor([0, 1, 2, 3] * 2 + [3]))
    assert loss_fn.decision.noise_rate < 0.7
    assert not loss_fn.decision.keep[-1]
    assert loss_fn.decision.keep[:3].all()


def test_a_given_rate_is_reported() -> None:
    loss_fn = make(noise_rate=0.25)
    loss_fn(torch.randn(4, WIDTH), torch.zeros(4).long())
    assert loss_fn.decision.noise_rate == 0.25
    assert "noise_rate=0.25" in repr(loss_fn)


# Warm-up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [None, 0, 3])
def test_warmup(warmup: int | None) -> None:
    loss_fn = make(warmup=warmup, memory_size=20, window=1, noise_rate=0.25)
    fill(loss_fn, 2)
    first_drop = None
    for step in range(8):
        loss_fn(EYE[[0, 1, 1, 0]], torch.tensor([0, 1, 1, 1]))  # the last label is wrong
        if first_drop is None and not loss_fn.decision.keep.all():
            first_drop = step
            assert loss_fn.decision.threshold > 0
        elif first_drop is None:
            assert loss_fn.decision.threshold == -math.inf
    # None: 2 features at the start, 4 a step, full with 20 after the fifth.
    assert first_drop == {None: 5, 0: 0, 3: 3}[warmup]


# Losses ----------------------------------------------------------------------------------------


def seeded(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(4, (size,), generator=generator)
    return torch.randn(size, WIDTH, generator=generator).requires_grad_(), labels


@pytest.mark.parametrize(
    "loss",
    [
        losses.ContrastiveLoss(),
        losses.MultiSimilarityLoss(),
        losses.TripletMarginLoss(),
        # Autograd keeps what it is given: it must not be what the memory overwrites.
        losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False)),
        losses.NTXentLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
    ],
)
@pytest.mark.parametrize("memory_size", [12, 20, 100])
def test_the_loss_against_the_memory(loss: Any, memory_size: int) -> None:
    """Equation 9, on a memory kept as a list; of 12 entries it is as large as the batch."""
    loss_fn = make(loss, memory_loss=True, memory_size=memory_size)
    entries: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory_size)
    for step in range(12):
        embeddings, labels = seeded(step)
        if not compares_directions(loss):
            embeddings = torch.nn.functional.normalize(embeddings.detach()).requires_grad_()
        value = loss_fn(embeddings, labels)
        keep = loss_fn.decision.keep
        expected = loss(embeddings[keep], labels[keep])
        if entries:
            features, given = (torch.stack(column) for column in zip(*entries, strict=True))
            expected = expected + loss(
                embeddings[keep], labels[keep], ref_emb=features, ref_labels=given
            )
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        mine, wanted = (torch.autograd.grad(v, embeddings)[0] for v in (value, expected))
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
        unit = torch.nn.functional.normalize(embeddings.detach())
        entries.extend(zip(unit[keep], labels[keep], strict=True))
    assert not keep.all()


def test_a_loss_of_lengths_against_a_memory_that_has_none() -> None:
    """As long as they are 10, embeddings that equal their features would be drawn towards 0."""
    loss = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False))
    embeddings, labels = seeded(0)
    unit = torch.nn.functional.normalize(embeddings.detach())
    relabeler = MemoryRelabeler(KNNDenoiser(loss, memory_size=12), WIDTH, memory_size=12)
    for loss_fn in (make(loss, memory_loss=True), relabeler):
        with pytest.raises(ValueError, match="embeddings must have length 1, as in the memory"):
            loss_fn(embeddings, labels)
        loss_fn(unit, labels)
        loss_fn(unit.bfloat16(), labels)
    make(loss)(embeddings, labels)  # without the memory's loss
    make(losses.ContrastiveLoss(), memory_loss=True)(embeddings, labels)


def test_the_memory_loss_is_weighted_too() -> None:
    loss = losses.ContrastiveLoss()
    loss_fn = make(loss, memory_loss=True, noise_rate=0.0)
    loss_fn(*seeded(0))
    twice = [loss_fn.memory.features[:12].clone(), loss_fn.memory.labels[:12].clone()]
    embeddings, labels = seeded(1)
    from noisydml import per_sample_loss

    weight = torch.linspace(0, 1, 12)
    shares = per_sample_loss(loss, embeddings, labels)
    shares = shares + per_sample_loss(
        loss, embeddings, labels, ref_emb=twice[0], ref_labels=twice[1]
    )
    value = loss_fn(embeddings, labels, sample_weight=weight)
    torch.testing.assert_close(value, (weight * shares).mean())


def pml_losses() -> list[str]:
    return [name for name, _ in inspect.getmembers(losses, inspect.isclass)]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("name", pml_losses())
def test_memory_loss_takes_what_pml_can_compare_with_a_reference(name: str) -> None:
    from test_docs_tables import batch, build

    try:
        loss = build(name)
        embeddings, labels = batch()
        loss(embeddings, labels)
    except (TypeError, ValueError, RuntimeError):
        pytest.skip("not a loss that is called with labels")
    try:
        loss(embeddings, labels, ref_emb=embeddings.detach()[1:12], ref_labels=labels[1:12])
        # CrossBatchMemory and MultipleLosses bring, or refuse, references of their own.
        takes = isinstance(loss, losses.BaseMetricLossFunction)
    except (TypeError, ValueError):
        takes = False
    if takes:
        refuse_without_reference("memory_loss", loss)
    else:
        with pytest.raises(TypeError, match=f"memory_loss needs .* got {name}"):
            refuse_without_reference("memory_loss", loss)


def test_only_kept_samples_enter_a_cross_batch_memory() -> None:
    xbm = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=500)
    bare = losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=500)
    loss_fn = make(xbm)
    entered: list[int] = []
    for step in range(10):
        embeddings, labels = seeded(step)
        value = loss_fn(embeddings, labels)
        keep = loss_fn.decision.keep
        assert torch.equal(value, bare(embeddings[keep], labels[keep]))
        entered += labels[keep].tolist()
        assert xbm.label_memory[: len(entered)].tolist() == entered
        assert xbm.queue_idx == len(entered)
    assert len(entered) < 120


def test_only_kept_samples_reach_soft_triple() -> None:
    loss = losses.SoftTripleLoss(CLASSES, WIDTH, centers_per_class=2)
    loss_fn = make(loss)
    for step in range(5):
        embeddings, labels = seeded(step)
        value = loss_fn(embeddings, labels)
        keep = loss_fn.decision.keep
        assert torch.equal(value, loss(embeddings[keep], labels[keep]))
    assert not keep.all()
    assert len(loss_fn.parameter_groups(lr=0.1)) == 1


# Errors and state ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 2.0}, TypeError, "window must be an integer, got float"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0"),
        ({"temperature": None}, TypeError, "temperature must be a number, got NoneType"),
        ({"noise_rate": 1.0}, ValueError, r"noise_rate must be None or in \[0, 1\), got 1.0"),
        ({"noise_rate": -0.1}, ValueError, r"noise_rate must be None or in \[0, 1\), got -0.1"),
        ({"noise_rate": math.nan}, ValueError, "noise_rate must be None or in"),
        ({"noise_rate": "half"}, TypeError, "noise_rate must be a number, got str"),
        ({"score": "center"}, ValueError, "score must be one of .* got 'center'"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"warmup": True}, TypeError, "warmup must be an integer, got bool"),
        ({"memory_size": 0}, ValueError, "memory_size must be at least 1, got 0"),
        ({"memory_loss": True}, TypeError, "memory_loss needs one of PML's .* got per_sample"),
        ({"loss": 3}, TypeError, "loss must be callable, got int"),
        (
            {"loss": GatheredLoss(losses.ContrastiveLoss()), "memory_loss": True},
            TypeError,
            "memory_loss needs one of PML's .* got GatheredLoss",
        ),
    ],
)
def test_impossible_settings(settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.ones(12, 5)}, "embeddings must be as wide as embedding_size, 4, got"),
        ({"labels": torch.full((12,), CLASSES)}, r"labels must be in \[0, 6\), num_classes of PRI"),
        ({"labels": torch.full((12,), -1)}, r"labels must be in \[0, 6\)"),
        ({"ref_emb": torch.ones(3, 4), "ref_labels": torch.ones(3).long()}, "ref_emb must not be"),
    ],
)
def test_bad_arguments_change_nothing(change: dict[str, Any], message: str) -> None:
    loss_fn = make(losses.ContrastiveLoss(), memory_loss=True)
    embeddings, labels = seeded(0)
    loss_fn(embeddings, labels)
    before = {name: value.clone() for name, value in loss_fn.named_buffers()}
    with pytest.raises(ValueError, match=message):
        loss_fn(**{"embeddings": embeddings, "labels": labels, **change})
    for name, value in loss_fn.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("rate", [0.4, None])
@pytest.mark.parametrize("score", ["centers", "memory_positive"])
def test_unchecked_nan_is_dropped_and_never_remembered(score: str, rate: float | None) -> None:
    """A NaN in the memory would be in its class's center for ever."""
    loss_fn = make(score=score, noise_rate=rate, validate_args=False)
    for step in range(6):
        embeddings, labels = seeded(step)
        embeddings = embeddings.detach().clone()
        embeddings[step] = math.nan if step % 2 else math.inf
        loss_fn(embeddings, labels)
        assert not loss_fn.decision.keep[step]
        assert loss_fn.decision.keep.any()
        assert loss_fn.memory.features.isfinite().all()
        assert loss_fn.memory.centers.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_wrapper_in_another_precision(dtype: torch.dtype) -> None:
    loss_fn = make(noise_rate=None)
    loss_fn(*seeded(0))
    loss_fn.to(dtype)
    for step in range(1, 4):
        embeddings, labels = seeded(step)
        loss_fn(embeddings.to(dtype), labels)
        assert loss_fn.decision.score.dtype == loss_fn.decision.threshold.dtype == torch.float64
    assert loss_fn.memory.features.dtype == dtype


def test_inference_mode_leaves_a_state_that_can_be_trained_and_loaded() -> None:
    loss_fn = make(noise_rate=None)
    with torch.inference_mode():
        for step in range(3):
            loss_fn(*seeded(step))
    embeddings, labels = seeded(4)
    loss_fn(embeddings, labels).backward()
    loss_fn.load_state_dict(make(noise_rate=None).state_dict())
    loss_fn(embeddings, labels)
    assert embeddings.grad is not None


@pytest.mark.parametrize("weighted", [False, True])
def test_a_regulariser_of_the_loss_is_added_once_with_a_memory_loss(weighted: bool) -> None:
    """And in MemoryRelabeler."""
    x, y = 3 * torch.randn(12, 4), torch.arange(12) % 3
    weight = torch.rand(12) if weighted else None

    def value(regularizer: Any, relabels: bool) -> Tensor:
        loss = losses.ContrastiveLoss(embedding_regularizer=regularizer)
        wrapper: LossWrapper
        if relabels:
            denoiser = KNNDenoiser(loss, memory_size=12, k=2)
            wrapper = MemoryRelabeler(denoiser, 4, memory_size=12)
        else:
            wrapper = PRISMFilter(loss, 3, 4, memory_size=12, noise_rate=0.0, memory_loss=True)
        for _ in range(3):
            value = wrapper(x, y, sample_weight=weight)
        assert wrapper.decision.keep.all() or relabels
        kept = wrapper.decision.keep
        return value, (0 if regularizer is None else regularizer_of(x[kept]))

    def regularizer_of(rows: Tensor) -> Tensor:
        return rows.norm(dim=1).mean()

    for relabels in (False, True):
        plain, _ = value(None, relabels)
        regularised, term = value(regularizers.LpRegularizer(), relabels)
        torch.testing.assert_close(regularised - plain, term, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", ["centers", "pairs", "batch_positive", "memory_positive"])
def test_a_score_of_the_largest_numbers_is_a_number(score: Any) -> None:
    loss_fn = PRISMFilter(losses.ContrastiveLoss(), 2, 4, memory_size=8, score=score, warmup=0)
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    loss_fn(embeddings, labels)
    loss_fn(embeddings * 3e38, labels)
    assert loss_fn.decision.score.isfinite().all()
    loss_fn(embeddings, labels)  # against a memory of them
    assert loss_fn.decision.score.isfinite().all()


def test_with_ids_nobody_is_remembered_twice() -> None:
    loss_fn = PRISMFilter(losses.ContrastiveLoss(), 2, 4, memory_size=20)
    for _ in range(3):
        loss_fn(torch.randn(6, 4), torch.arange(6) % 2, sample_ids=torch.arange(6))
    assert loss_fn.recent is not None
    assert loss_fn.recent.sample_ids[loss_fn.recent.filled].tolist() == list(range(6))


def test_a_rate_that_the_judge_no_longer_sees_is_forgotten() -> None:
    classes, width, size = 20, 32, 1200
    centers, true = torch.randn(classes, width), torch.arange(size) % classes
    labels = torch.from_numpy(noisydml.noise.pair_flip(true, 0.3, seed=0).labels)
    embeddings = centers[true] + 0.5 * torch.randn(size, width)
    loss_fn = PRISMFilter(losses.ContrastiveLoss(), classes, width, memory_size=size)
    for told, given in ((True, labels), (False, torch.randint(classes, (size,)))):
        for rows in torch.randperm(size).split(200):
            loss_fn(embeddings[rows], given[rows])
        assert (loss_fn.structured > 0) == told


def test_rows_that_were_made_up_are_never_judged() -> None:
    labels, rows = torch.arange(8) % 2, torch.randn(8, 4)
    loss_fn = PRISMFilter(
        losses.ContrastiveLoss(), 2, 4, memory_size=8, noise_rate=0.25, window=1, warmup=1
    )
    loss_fn(rows, labels)
    decision = loss_fn.judge(Batch(rows, labels).extended(rows)).decision
    assert decision.judged.tolist() == [True] * 8 + [False] * 8


def test_statistics_keep_their_precision() -> None:
    loss_fn = PRISMFilter(losses.ContrastiveLoss(), 2, 4, memory_size=8).half()
    for statistic in (loss_fn.quantiles, loss_fn.low_ranks, loss_fn.structured):
        assert statistic.dtype == torch.float64
