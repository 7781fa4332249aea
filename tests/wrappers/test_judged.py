"""JudgeFilter, and noisydml.robust, which is one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from clear_classes import CLASSES, WIDTH, data
from fake_cuda import fake_cuda
from held_out import few_held_out
from processes import message
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from sklearn.datasets import make_circles

import noisydml
from noisydml import JudgeFilter, KNNDenoiser, PRISMFilter
from noisydml.pml.batch import Batch
from noisydml.wrappers.checks import make_batch
from noisydml.wrappers.passes import ASKED, JUDGING


def test_robust_is_a_judge_with_no_rate_and_no_tuning() -> None:
    loss_fn = noisydml.robust(losses.SoftTripleLoss(10, WIDTH), dataset_size=200)
    assert isinstance(loss_fn, JudgeFilter)
    assert len(loss_fn.memory) == len(loss_fn.reference) == 200
    assert loss_fn.memory.embedding_size is None
    assert loss_fn.start == "judge"
    loss_fn = noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200)
    with pytest.raises(ValueError, match=f"embeddings must be as wide as embedding_size, {WIDTH}"):
        loss_fn(torch.ones(2, WIDTH + 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        loss_fn(torch.ones(2, WIDTH), torch.tensor([0, 10]))
    with pytest.raises(TypeError, match="dataset_size must be given, "):
        noisydml.robust(losses.ContrastiveLoss(), 10)


def test_robust_for_a_network_from_scratch() -> None:
    loss_fn = noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200, start="train")
    assert isinstance(loss_fn, PRISMFilter)
    assert loss_fn.noise_rate is None
    assert (loss_fn.num_classes, len(loss_fn.memory)) == (10, 200)
    large = noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 1000, start="train")
    assert isinstance(large, JudgeFilter)  # of classes of 100 samples and more one center says less
    assert large.start == "train"
    with pytest.raises(TypeError, match='embedding_size must be given with start="train"'):
        noisydml.robust(losses.ContrastiveLoss(), 10, dataset_size=200, start="train")
    with pytest.raises(TypeError, match='num_classes must be given with start="train"'):
        noisydml.robust(losses.ContrastiveLoss(), dataset_size=200, start="train")
    with pytest.raises(ValueError, match="start must be"):
        noisydml.robust(losses.ContrastiveLoss(), 10, WIDTH, 200, start="scratch")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 100), "num_classes must be"),
        ((10, 0, 100), "embedding_size must be"),
        ((10, 8, 0), "dataset_size must be"),
        ((10, 8, 9), "dataset_size must be at least num_classes, 10, got 9"),
    ],
)
def test_robust_refuses(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisydml.robust(losses.ContrastiveLoss(), *sizes)


def test_robust_finds_the_wrong_labels_in_an_unchanged_loop() -> None:
    size = 300
    embeddings, labels, truth = data(size)
    loss_fn = noisydml.robust(losses.MultiSimilarityLoss(), dataset_size=size)
    torch.manual_seed(0)
    kept = torch.ones(size, dtype=torch.bool)
    for _ in range(3):
        for ids in torch.randperm(size).split(20):
            loss_fn(embeddings[ids], labels[ids])
            kept[ids] = loss_fn.decision.keep
    assert (kept == (labels == truth)).double().mean() >= 0.93
    assert abs(loss_fn.decision.noise_rate - 0.25) < 0.1


@pytest.mark.parametrize("judged_start", [True, False])
def test_who_was_in_no_pass_waits_where_the_untrained_features_told_the_labels(
    judged_start: bool,
) -> None:
    size = 300
    embeddings, labels, truth = data(size)
    start = "judge" if judged_start else "train"
    loss_fn = JudgeFilter(losses.MultiSimilarityLoss(), dataset_size=size, start=start)
    for ids in torch.arange(200).split(20):
        loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    loss_fn.end_epoch()
    ids = torch.arange(190, 210)
    loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    decision = loss_fn.decision
    assert decision.judged.tolist() == [True] * 10 + [False] * 10
    right = labels[ids[:10]] == truth[ids[:10]]
    assert decision.keep[:10].tolist() == right.tolist()
    assert decision.keep[10:].tolist() == [not judged_start] * 10
    loss_fn.end_epoch()  # now they are judged
    loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    assert loss_fn.decision.judged.all()


@pytest.mark.parametrize("classes", [10, 60])
@pytest.mark.parametrize("told", [True, False])
def test_a_fifth_of_the_first_pass_shows_whether_the_features_tell_the_classes(
    classes: int, told: bool
) -> None:
    size = 20 * classes
    centers = torch.randn(classes, 32)
    true = torch.arange(size) % classes
    features = centers[true] + 0.5 * torch.randn(size, 32)
    labels = torch.where(torch.rand(size) < 0.3, torch.randint(classes, (size,)), true)
    if not told:
        labels = labels[torch.randperm(size)]
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=size)
    for ids in torch.randperm(size).split(20)[: size // 20 // 2]:
        loss_fn(features[ids].requires_grad_(), labels[ids], sample_ids=ids)
    assert loss_fn.decision.keep.tolist() == [not told] * 20  # collects, or trains on all


@few_held_out()
def test_a_refused_refresh_leaves_the_judge_as_it_was() -> None:
    embeddings, labels, _ = data(60)
    with pytest.raises(ValueError, match="none that FAISS knows"):
        JudgeFilter(losses.ContrastiveLoss(), dataset_size=60, index="Flatt")
    loss_fn = JudgeFilter(
        losses.ContrastiveLoss(), dataset_size=60, num_classes=int(labels.max()) + 1
    )
    loss_fn.refresh(embeddings, labels)
    before = {
        name: value.clone() for name, value in loss_fn.state_dict().items() if "_extra" not in name
    }
    with pytest.raises(ValueError, match="labels must be in"):
        loss_fn.refresh(embeddings, labels + 1)
    loss_fn.index = "IVF61,Flat"  # more cells than features
    with pytest.raises(ValueError, match="IVF61,Flat"):
        loss_fn.refresh(2 - embeddings, labels)
    for name, value in before.items():
        assert torch.equal(loss_fn.state_dict()[name], value), name


@few_held_out()
def test_without_ids_features_of_another_layer_are_refused() -> None:
    """Among them no embedding can be looked up, whether or not it is as wide."""
    embeddings, labels, _ = data(200)
    for width in (WIDTH, WIDTH + 3):
        layer = torch.randn(WIDTH, width)
        loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200, embedding_size=WIDTH)
        loss_fn.refresh((embeddings @ layer).relu(), labels)
        before = copy.deepcopy(loss_fn.state_dict())
        with pytest.raises(ValueError, match="sample_ids must be given, as embeddings"):
            loss_fn(embeddings[:64].requires_grad_(), labels[:64])
        after = loss_fn.state_dict()
        assert all(torch.equal(v, after[n]) for n, v in before.items() if "_extra" not in n)
        resumed = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200, embedding_size=WIDTH)
        resumed.load_state_dict(before)
        with pytest.raises(ValueError, match="sample_ids must be given, as embeddings"):
            resumed(embeddings[:64], labels[:64])
        loss_fn(embeddings[:64], labels[:64], sample_ids=torch.arange(64))
        assert loss_fn.decision.judged.all()


@few_held_out()
def test_without_ids_the_own_embeddings_are_never_refused() -> None:
    """With half of the labels wrong, and as far from the features as augmentation brings them."""
    for seed in range(12):
        torch.manual_seed(seed)
        embeddings, labels, _ = data(200)
        labels = torch.where(torch.rand(200) < 0.5, labels.roll(1), labels)
        loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
        loss_fn.refresh(embeddings, labels)
        for rows in torch.randperm(200).split(40)[:4]:  # the fifth would end the pass
            loss_fn(embeddings[rows] + 0.2 * torch.randn(40, WIDTH), labels[rows])


@few_held_out()
def test_embeddings_are_compared_with_given_features_alone() -> None:
    """After a pass of training they are looked up among features of the network itself."""
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh(embeddings, labels)
    loss_fn(embeddings, labels)  # a whole pass
    loss_fn(torch.randn(200, WIDTH), labels)
    assert loss_fn.decision.judged.all()


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_nobody_is_dropped_where_that_would_cost_too_many_right_labels(spread: float) -> None:
    """After training on all of them: half are wrong, and features tell the classes or hardly."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(600) % CLASSES
    centers = 3 * torch.randn(CLASSES, WIDTH, generator=generator)
    embeddings = centers[truth] + spread * torch.randn(600, WIDTH, generator=generator)
    labels = torch.from_numpy(noisydml.noise.uniform(truth, 0.5, seed=0).labels)
    loss_fn = JudgeFilter(losses.MultiSimilarityLoss(), dataset_size=600, start="train")
    for _ in range(2):
        for ids in torch.arange(600).split(60):
            loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    decision = loss_fn.decision
    if spread > 1:
        assert decision.keep.all()
        assert not decision.judged.any()
        assert decision.noise_rate.isnan()
    else:
        right = labels[ids] == truth[ids]
        assert (decision.keep == right).double().mean() > 0.9
        assert decision.judged.all()


@few_held_out()
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_the_nearest_is_found_without_ids_wherever_embeddings_lie(offset: float) -> None:
    """Around a loss that compares raw embeddings."""
    embeddings, labels, _ = data(300)
    distance = LpDistance(normalize_embeddings=False)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(distance=distance), dataset_size=300)
    loss_fn.refresh(embeddings + offset, labels)
    loss_fn(embeddings[:60] + offset, labels[:60])
    without = loss_fn.decision.score
    loss_fn.reset()
    loss_fn.refresh(embeddings + offset, labels)
    loss_fn(embeddings[:60] + offset, labels[:60], sample_ids=torch.arange(60))
    assert torch.equal(without, loss_fn.decision.score)


def test_a_loss_that_compares_distances_is_judged_by_distances() -> None:
    """Rings about one center, which directions do not tell."""
    points, true = make_circles(600, noise=0.1, factor=0.4, random_state=0)
    given = noisydml.noise.uniform(true, 0.1, seed=1)
    embeddings, labels = torch.tensor(points).float(), torch.from_numpy(given.labels)
    distance = LpDistance(normalize_embeddings=False)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(distance=distance), dataset_size=600)
    loss_fn.refresh(embeddings, labels)
    loss_fn(embeddings, labels, sample_ids=torch.arange(600))
    assert (loss_fn.decision.keep.numpy() == (given.labels == true)).mean() > 0.98


def unclear(size: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of overlapping classes, given labels, of which 0.3 are wrong, and true ones."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(5).repeat(size // 5)
    centers = 1.3 * torch.eye(5, WIDTH)
    features = centers[truth] + 0.6 * torch.randn(size, WIDTH, generator=generator)
    other = (truth + torch.randint(1, 5, (size,), generator=generator)) % 5
    wrong = torch.rand(size, generator=generator) < 0.3
    return features, torch.where(wrong, other, truth), truth


def refreshed(features: torch.Tensor, labels: torch.Tensor, **settings: float) -> JudgeFilter:
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=len(labels), **settings)
    loss_fn.refresh(features, labels)
    loss_fn(features, labels, sample_ids=torch.arange(len(labels)))
    return loss_fn


def test_where_the_untrained_features_told_a_label_has_to_be_more_certain() -> None:
    features, labels, truth = unclear()
    right = labels == truth
    usual, lax = refreshed(features, labels), refreshed(features, labels, threshold=0.5)
    probability = usual.decision.probability
    torch.testing.assert_close(probability, lax.decision.probability, rtol=0, atol=0)
    assert float(lax.decision.threshold) == 0.5 < float(usual.decision.threshold) <= 0.8
    for each in (usual, lax):
        assert (each.decision.keep == (probability >= each.decision.threshold)).all()
        # By its own account it keeps what it says, and that is about so.
        kept = each.decision.keep
        assert probability[kept].sum() >= 0.85 * probability.sum()
        assert (kept & right).sum() >= 0.8 * right.sum()
    wrong_kept = [(each.decision.keep & ~right).sum() for each in (usual, lax)]
    assert wrong_kept[0] < 0.8 * wrong_kept[1]


def test_of_right_labels_the_strict_threshold_leaves_what_is_asked() -> None:
    features, labels, _ = unclear()
    loss_fn = refreshed(features, labels, threshold=0.99)  # as strict as the right ones allow
    probability, threshold = loss_fn.decision.probability, float(loss_fn.decision.threshold)
    left = probability[probability >= threshold].sum() / probability.sum()
    stricter = probability[probability > threshold].sum() / probability.sum()
    assert stricter < 0.85 <= left


def test_after_training_on_all_labels_one_half_is_enough() -> None:
    features, labels, _ = unclear()
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=len(labels), start="train")
    for _ in range(2):
        for ids in torch.arange(len(labels)).split(60):
            loss_fn(features[ids], labels[ids], sample_ids=ids)
    assert loss_fn.decision.judged.all()
    assert float(loss_fn.decision.threshold) == 0.5


@pytest.mark.parametrize("threshold", [0.4, 1.0, -1])
def test_impossible_threshold(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0.5, 1\)"):
        JudgeFilter(losses.ContrastiveLoss(), dataset_size=9, threshold=threshold)


@few_held_out()
def test_the_strictness_is_state() -> None:
    features, labels, _ = unclear()
    loss_fn = refreshed(features, labels)
    other = JudgeFilter(losses.ContrastiveLoss(), dataset_size=len(labels))
    other.load_state_dict(loss_fn.state_dict())
    assert float(other.current_threshold) == float(loss_fn.current_threshold) > 0.5
    other.reset()
    assert float(other.current_threshold) == 0.5


@few_held_out()
def test_an_audit_trusts_the_probability_and_not_what_was_left_out() -> None:
    features, labels, _ = unclear()
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=len(labels))
    loss_fn.refresh(features, labels)
    audit = noisydml.LabelAudit(loss_fn, dataset_size=len(labels), decay=0.0)
    loss_fn(features, labels, sample_ids=torch.arange(len(labels)))
    torch.testing.assert_close(audit.trust, loss_fn.decision.probability, rtol=0, atol=0)
    assert (audit.trust < 0.5).sum() < loss_fn.decision.keep.logical_not().sum()


def half_wrong(size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features that tell their classes, labels of which a third are wrong, and which ones."""
    truth = torch.arange(size) % classes
    features = 3 * torch.eye(32)[truth] + 0.6 * torch.randn(size, 32)
    wrong = torch.rand(size) < 0.3
    other = (truth + torch.randint(1, classes, (size,))) % classes
    return features, torch.where(wrong, other, truth), wrong


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_several_calls_on_a_batch_are_one_step_of_the_first_pass(calls: int) -> None:
    """As of optimisers that evaluate a step again, and of networks with several heads."""
    features, labels, wrong = half_wrong(400, 20)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    for seen, ids in enumerate(torch.randperm(400).split(20)):
        for _ in range(calls):
            loss_fn(features[ids] + 0.01 * torch.randn(20, 32), labels[ids], sample_ids=ids)
        if seen < 19:
            assert loss_fn.status() == f"collecting, waiting for {380 - 20 * seen} of 400 samples"
    loss_fn(features[:40], labels[:40], sample_ids=torch.arange(40))
    assert torch.equal(loss_fn.decision.keep, ~wrong[:40])
    assert (loss_fn.first_probability >= 0).all()


def test_a_pass_of_small_batches_drawn_with_replacement_goes_on() -> None:
    features, labels, _ = half_wrong(400, 20)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    for _ in range(199):
        ids = torch.randint(400, (2,))
        loss_fn(features[ids], labels[ids], sample_ids=ids)
    assert loss_fn.status() == "collecting, waiting for 2 of 400 samples"


def test_what_judges_is_the_geometry_of_the_innermost_loss() -> None:
    loss = losses.ContrastiveLoss(distance=LpDistance(normalize_embeddings=False))
    for inner in (loss, noisydml.GatheredLoss(loss), noisydml.RegularizedLoss(loss, sum_of, 0.1)):
        assert JudgeFilter(inner, dataset_size=10).memory.metric == "euclidean"


def sum_of(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings.sum(dim=1)


def passes(
    loss_fn: JudgeFilter, features: torch.Tensor, labels: torch.Tensor, with_ids: bool
) -> list[torch.Tensor]:
    """What is kept of all samples in each of four passes in random order."""
    found = []
    for _ in range(4):
        keep = torch.zeros(len(labels), dtype=torch.bool)
        for ids in torch.randperm(len(labels)).split(100):
            loss_fn(features[ids], labels[ids], sample_ids=ids if with_ids else None)
            keep[ids] = loss_fn.decision.keep
        found.append(keep)
    return found


def test_without_ids_no_sample_takes_over_what_was_said_of_another() -> None:
    features, labels, wrong = half_wrong(1000, 10)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=1000)
    loss_fn.refresh(features, labels)
    for keep in passes(loss_fn, features, labels, with_ids=False):
        assert (keep == ~wrong).float().mean() > 0.99


def test_a_corrected_label_is_judged_by_itself() -> None:
    features, labels, wrong = half_wrong(1000, 10)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=1000)
    loss_fn.refresh(features, labels)
    truth = torch.arange(1000) % 10
    first, *others = passes(loss_fn, features, truth, with_ids=True)
    assert not first[wrong].any()  # nobody has seen these labels yet
    for keep in others:
        assert keep.float().mean() > 0.99


@pytest.mark.parametrize("before", ["a step that collects", "features that tell nothing"])
def test_what_comes_before_training_is_the_untrained_network(before: str) -> None:
    features, labels, wrong = half_wrong(400, 20)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    if before == "a step that collects":
        loss_fn(features[:32], labels[:32], sample_ids=torch.arange(32))
    else:
        loss_fn.refresh(torch.randn(400, 8), labels)
    loss_fn.refresh(features, labels)
    assert (loss_fn.first_probability >= 0).all()
    assert ((loss_fn.first_probability < 0.5) == wrong).float().mean() > 0.99
    loss_fn(features[:32], labels[:32], sample_ids=torch.arange(32))
    loss_fn.refresh(features.flip(0), labels.flip(0), torch.arange(400).flip(0))
    first = loss_fn.first_probability.clone()
    loss_fn.refresh(torch.randn(400, 8), labels)  # of a trained network
    assert torch.equal(loss_fn.first_probability, first)


def test_reset_forgets_the_width() -> None:
    features, labels, _ = half_wrong(40, 4)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=80)
    loss_fn(features, labels)
    loss_fn.reset()
    loss_fn(features[:, :5], labels)


def test_a_refresh_in_parts_says_something_of_each() -> None:
    features, labels, wrong = half_wrong(400, 20)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    for ids in torch.randperm(400).split(200):
        loss_fn.refresh(features[ids], labels[ids], ids)
    loss_fn(features, labels, sample_ids=torch.arange(400))
    assert loss_fn.decision.judged.all()
    assert (loss_fn.decision.keep == ~wrong).float().mean() > 0.97


@pytest.mark.parametrize("calls", [1, 2])
def test_a_pass_over_fewer_samples_than_were_announced_is_over(calls: int) -> None:
    """After 32 samples that were seen, however often each batch is called."""
    features, labels, _ = half_wrong(400, 20)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    for ids in [*torch.arange(240).split(16), *torch.arange(32).split(16)]:
        assert loss_fn.status()
        for _ in range(calls):
            loss_fn(features[ids], labels[ids], sample_ids=ids)
    loss_fn(features[:16], labels[:16], sample_ids=torch.arange(16))
    assert not loss_fn.status()


@few_held_out()
@pytest.mark.parametrize("size", [16, 32])
def test_small_batches_are_compared_together(size: int) -> None:
    """With features of another layer, of as many numbers."""
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh((embeddings @ torch.randn(WIDTH, WIDTH)).relu(), labels)
    told = [
        message(lambda rows=rows: loss_fn(embeddings[rows], labels[rows]))
        for rows in torch.randperm(200).split(size)
    ]
    assert any("sample_ids must be given, as embeddings are no nearer" in each for each in told)


def test_on_another_device_nothing_has_to_be_moved_before_the_first_step() -> None:
    with fake_cuda() as device:
        loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200, embedding_size=WIDTH)
        loss_fn.counters.set(phase=JUDGING, unsure=ASKED)  # as after a refresh
        labels = torch.zeros(64, dtype=torch.int64, device=device)
        checks = loss_fn.own_checks(make_batch(torch.randn(64, WIDTH, device=device), labels))
        assert all(check.bad.device == device for check in checks)


@few_held_out()
def test_a_refresh_in_another_order_is_noticed() -> None:
    """As from a loader that shuffles, with ids in the training loop."""
    features, labels, _ = half_wrong(1000, 10)
    order = torch.randperm(1000)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=1000)
    loss_fn.refresh(features[order], labels[order])
    with pytest.raises(ValueError, match="labels must be those that refresh was given"):
        loss_fn(features[:64], labels[:64], sample_ids=torch.arange(64))
    loss_fn.refresh(features[order], labels[order], order)
    loss_fn(features[:64], labels[:64], sample_ids=torch.arange(64))
    loss_fn(features[:64], labels[:64] + 1, sample_ids=torch.arange(64))  # corrected, later on


@few_held_out()
@pytest.mark.parametrize("sizes", [[500, 500], [300, 300, 300], [500, 80, 60, 40, 20]])
def test_another_order_is_noticed_where_many_labels_are_the_same_by_chance(
    sizes: list[int],
) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    size = len(labels)
    features = 3 * torch.eye(8)[labels] + torch.randn(size, 8)
    order, ids = torch.randperm(size), torch.randperm(size)[:256]
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=size)
    loss_fn.refresh(features[order], labels[order])
    with pytest.raises(ValueError, match="labels must be those that refresh was given"):
        loss_fn(features[ids], labels[ids], sample_ids=ids)
    loss_fn.refresh(features, labels)
    corrected = torch.where(torch.arange(256) % 5 == 0, 0, labels[ids])
    loss_fn(features[ids], corrected, sample_ids=ids)


def test_a_refresh_begins_with_its_samples() -> None:
    """Those that are gone have no features any more, be they collected before."""
    features, labels, wrong = half_wrong(600, 10)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=600)
    passes(loss_fn, features, labels, with_ids=True)
    clean = wrong.logical_not().nonzero().squeeze(1)
    loss_fn.refresh(features[clean], labels[clean], clean)
    for ids in clean.split(50):
        loss_fn(features[ids], labels[ids], sample_ids=ids)
    loss_fn.end_epoch()
    there = loss_fn.reference.labels >= 0
    assert torch.equal(there.nonzero().squeeze(1), clean)
    assert loss_fn.noise_rate < 0.02


@few_held_out()
def test_one_corrected_label_among_many_of_a_class_is_no_other_order() -> None:
    labels = (torch.arange(400) < 8).long()
    features = 3 * torch.eye(8)[labels] + torch.randn(400, 8)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    loss_fn.refresh(features, labels)
    ids = torch.arange(100, 132)
    corrected = labels[ids]
    corrected[0] = 1
    loss_fn(features[ids], corrected, sample_ids=ids)


@few_held_out()
def test_a_refresh_leaves_the_width_of_embeddings() -> None:
    features, labels, _ = half_wrong(300, 10)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=300)
    passes(loss_fn, features, labels, with_ids=True)
    loss_fn.refresh(torch.randn(300, 24), labels)  # of another layer
    with pytest.raises(ValueError, match="embeddings must be as wide"):
        loss_fn(torch.randn(20, 24), labels[:20], sample_ids=torch.arange(20))


@pytest.mark.parametrize("wrapper", [JudgeFilter, KNNDenoiser])
def test_a_sampler_may_bring_some_samples_twice(wrapper: Any) -> None:
    """As that of ranks does, so that all have as many."""
    size = {"dataset_size" if wrapper is JudgeFilter else "memory_size": 40}
    loss_fn, ids = wrapper(losses.ContrastiveLoss(), **size), torch.arange(42) % 40
    features = torch.randn(40, 8)
    loss_fn.refresh(features[ids], ids % 4, ids)


@pytest.mark.parametrize("wrapper", [JudgeFilter, KNNDenoiser])
def test_a_sample_is_given_to_refresh_once(wrapper: Any) -> None:
    size = {"dataset_size" if wrapper is JudgeFilter else "memory_size": 40}
    loss_fn = wrapper(losses.ContrastiveLoss(), **size)
    labels = torch.arange(40) % 4
    with pytest.raises(ValueError, match="sample_ids must tell the samples apart"):
        loss_fn.refresh(torch.randn(40, 8), labels, labels)  # labels in the place of ids


def test_a_batch_of_more_samples_than_there_are() -> None:
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=20)  # of batches, not of samples
    with pytest.raises(ValueError, match="dataset_size must be the number of samples, got 20 and"):
        loss_fn(torch.randn(32, 4), torch.arange(32) % 4)


@pytest.mark.parametrize("views", [2, 3])
def test_without_ids_two_features_of_a_sample_are_no_two_witnesses(views: int) -> None:
    """Two views of it, or a sampler that draws it again: its wrong label vouches for itself."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(600) % 10
    features = torch.randn(10, 16, generator=generator)[truth]
    features = features + 0.7 * torch.randn(600, 16, generator=generator)
    wrong = torch.rand(600, generator=generator) < 0.3
    labels = torch.where(wrong, (truth + 1 + torch.arange(600) // 10 % 9) % 10, truth)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=600 * views)
    seen = features.repeat(views, 1) + 0.2 * torch.randn(600 * views, 16, generator=generator)
    given, order = labels.repeat(views), torch.randperm(600 * views, generator=generator)
    for rows in order.split(50):
        loss_fn(seen[rows], given[rows])
    loss_fn(features, labels)
    keep = loss_fn.decision.keep
    assert keep[wrong].float().mean() < 0.1
    assert keep[~wrong].float().mean() > 0.95
    assert abs(float(loss_fn.noise_rate) - 0.3) < 0.05


@few_held_out()
def test_a_second_refresh_is_compared_anew() -> None:
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh(embeddings, labels)
    loss_fn(embeddings[:150], labels[:150])
    loss_fn.refresh(-embeddings, labels)
    with pytest.raises(ValueError, match="sample_ids must be given, as embeddings are no nearer"):
        loss_fn(embeddings[:64], labels[:64])


def test_no_row_that_was_made_up_is_taken_for_the_first_sample() -> None:
    embeddings, labels, truth = data(200)
    wrong = int((labels != truth).nonzero()[0])
    embeddings[0], labels[0] = embeddings[wrong], labels[wrong]
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh(embeddings, labels)
    some = (labels == labels[0]).nonzero().squeeze(1)
    batch = Batch(embeddings[some], labels[some], sample_ids=some)
    decision = loss_fn.judge(batch.extended(embeddings[some])).decision
    assert not decision.keep[0]
    assert decision.keep[len(some) :].all()


def test_a_pass_that_begins_again_counts_its_first_batch() -> None:
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=400)
    for ids in [*torch.arange(192).split(16), *torch.arange(32).split(16)]:
        loss_fn(embeddings[ids], labels[ids], sample_ids=ids)
    assert not loss_fn.status()
    assert loss_fn.counters["seen"] == 16


@few_held_out()
def test_features_of_another_layer_are_no_reference() -> None:
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh(embeddings, labels)
    loss_fn.refresh(embeddings.repeat(1, 2), labels)
    assert not loss_fn.reference.filled.any()


@few_held_out()
def test_nothing_supports_the_label_of_who_was_not_judged() -> None:
    embeddings, labels, _ = data(200)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=200)
    loss_fn.refresh(embeddings[:100], labels[:100])
    loss_fn(embeddings, labels, sample_ids=torch.arange(200))
    assert (loss_fn.decision.support > 0).tolist() == [True] * 100 + [False] * 100
    assert torch.equal(loss_fn.decision.suggested_labels[100:], labels[100:])


def test_the_rate_is_that_of_the_probabilities() -> None:
    """The last features say far more than the first ones, which told it; both count."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(600) % 6
    features = 3 * torch.eye(6)[truth] + torch.randn(600, 6, generator=generator)
    labels = torch.from_numpy(noisydml.noise.uniform(truth, 0.3, seed=0).labels)
    weak = features @ torch.randn(6, 2, generator=generator)
    loss_fn = JudgeFilter(losses.ContrastiveLoss(), dataset_size=600)
    loss_fn.refresh(features, labels)
    for ids in torch.randperm(600, generator=generator).repeat(2).split(60):
        loss_fn(weak[ids], labels[ids], sample_ids=ids)
    rate = float(loss_fn.noise_rate)
    assert math.isclose(rate, float((1 - loss_fn.probability).mean()))
    assert abs(rate - 0.3) < 0.06
