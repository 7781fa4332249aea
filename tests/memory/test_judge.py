"""What the judge says of features whose wrong labels are known."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score, recall_score
from torch import Tensor

from noisydml import noise
from noisydml.memory import evidence, judge, neighbors
from noisydml.memory.index import FaissIndex
from noisydml.memory.judge import LabelJudgement, judge_labels


def gaussians(
    classes: int, per_class: int, spread: float, width: int = 32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    true = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, width, generator=generator)
    return centers[true] + spread * torch.randn(len(true), width, generator=generator), true


def digits() -> tuple[Tensor, Tensor]:
    pixels, true = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32), torch.tensor(true)


def recall(found: LabelJudgement, wrong: Tensor) -> float:
    return float(recall_score(wrong, found.probability < 0.5))


@pytest.mark.parametrize("kind", [noise.uniform, noise.pair_flip])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_rate_and_ranking_of_each_kind(kind: object, rate: float) -> None:
    features, true = gaussians(30, 20, 1.0)
    given = torch.from_numpy(kind(true, rate, seed=1).labels)  # type: ignore[operator]
    found, wrong = judge_labels(features, given), given != true
    assert abs(found.noise_rate - rate) < 0.05
    low, high = found.noise_rate_bounds
    assert low <= found.noise_rate <= high
    if rate == 0:
        assert (found.probability < 0.5).double().mean() < 0.02
        return
    assert ("particular" in found.found_by) == (kind is noise.pair_flip)
    assert average_precision_score(wrong, -found.score) > 0.98
    assert (found.suggested_labels == true)[wrong].double().mean() > 0.95
    # Calibrated: as many are wrong as the probabilities say.
    assert abs(float((1 - found.probability).sum() / wrong.sum()) - 1) < 0.2


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("classes", "per_class"), [(2, 90), (3, 60), (60, 5)])
def test_few_samples_of_wide_features(classes: int, per_class: int, rate: float) -> None:
    """Wider than there are samples: none of them is to draw its own label to itself."""
    features, true = gaussians(classes, per_class, 2.0, width=400)
    given = torch.from_numpy(noise.uniform(true, rate, seed=1).labels)
    found, wrong = judge_labels(features, given), given != true
    flagged = found.probability < 0.5
    assert abs(found.noise_rate - rate) < 0.03
    if rate == 0:
        assert not flagged.any()
    else:
        assert f1_score(wrong, flagged) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_what_similar_classes_hide_is_counted(seed: int) -> None:
    """Classes that overlap, each taken for one of three others as people would."""
    features, true = gaussians(20, 100, 3.5)
    generator = torch.Generator().manual_seed(seed)
    others = (true + torch.randint(1, 4, true.shape, generator=generator)) % 20
    wrong = torch.rand(true.shape, generator=generator) < 0.4
    found = judge_labels(features, torch.where(wrong, others, true))
    assert found.noise_rate == pytest.approx(float(wrong.double().mean()), abs=0.1)
    assert recall(found, wrong) > 0.45


@pytest.mark.parametrize("seed", range(2))
def test_hard_samples_are_not_taken_for_wrong(seed: int) -> None:
    """Classes of unequal spread, with true labels: none is wrong where features are certain."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(50).repeat_interleave(60)
    spread = torch.linspace(0.3, 1.6, 50)[true, None]
    centers = torch.randn(50, 10, generator=generator)
    features = centers[true] + spread * torch.randn(3000, 10, generator=generator)
    found, fitted = judge_labels(features, true), judge_labels(features, true, core_refutes=False)
    assert found.noise_rate < 0.04 < 0.05 < fitted.noise_rate  # of the model that fits best
    assert (found.probability < 0.5).double().mean() < 0.03
    low, high = found.noise_rate_bounds
    assert low <= found.noise_rate <= fitted.noise_rate <= high
    assert torch.equal(found.score.argsort(), fitted.score.argsort())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_a_large_class_does_not_take_the_small_ones_for_its_own(rate: float, seed: int) -> None:
    """Of the labels of the small ones most are wrong, and belong to the large one."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([2000, 200, 60, 20, 10, 10])
    true = torch.arange(6).repeat_interleave(sizes)
    features = torch.randn(6, 4, generator=generator)[true]
    features = features + 0.3 * torch.randn(len(true), 4, generator=generator)
    given = torch.from_numpy(noise.uniform(true, rate, seed=seed).labels)
    found, wrong = judge_labels(features, given), given != true
    assert abs(found.noise_rate - rate) < 0.08
    assert ((found.probability < 0.5) & ~wrong).double().mean() < 0.1
    assert recall(found, wrong) > 0.89


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_directions_in_which_classes_hardly_vary_tell_them_apart(rate: float, seed: int) -> None:
    """Three of sixteen, which are lost beside the others unless the covariance is taken as is."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(4).repeat_interleave(200)
    scale = torch.tensor([1.0] * 13 + [0.1] * 3)
    centers = torch.zeros(4, 16)
    centers[1:, 13:] = 0.4 * torch.eye(3)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    features = (centers[true] + scale * torch.randn(800, 16, generator=generator)) @ turn
    given = torch.from_numpy(noise.uniform(true, rate, seed=seed).labels)
    found, wrong = judge_labels(features, given), given != true
    assert abs(found.noise_rate - rate) < 0.05
    assert ((found.probability < 0.5) & ~wrong).double().mean() < 0.06
    assert rate == 0 or average_precision_score(wrong, -found.score) > 0.9


@pytest.mark.parametrize("size", [60, 600])
def test_permuted_labels_say_nothing(size: int) -> None:
    features, true = gaussians(6, size // 6, 0.5)
    given = true[torch.randperm(size, generator=torch.Generator().manual_seed(0))]
    found = judge_labels(features, given)
    assert math.isnan(found.noise_rate)
    assert found.noise_rate_bounds == (0, 1)
    assert found.probability.isnan().all()
    assert found.score.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_of_two_classes_two_fifths_wrong_are_told_apart(seed: int) -> None:
    """Agreement with 60 % of 700 labels is no chance, though it predicts little: 0.02 nats each."""
    features, true = gaussians(2, 350, 0.5)
    given = torch.from_numpy(noise.uniform(true, 0.4, seed=seed).labels)
    found, wrong = judge_labels(features, given), given != true
    low, high = found.noise_rate_bounds
    assert low < 0.4 < high
    assert f1_score(wrong, found.probability < 0.5) > 0.9
    shuffled = given[torch.randperm(700, generator=torch.Generator().manual_seed(seed))]
    assert math.isnan(judge_labels(features, shuffled).noise_rate)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 12])
def test_few_samples_say_nothing(size: int) -> None:
    for labels in (torch.arange(size) % 2, torch.arange(size), torch.zeros(size).long()):
        found = judge_labels(torch.randn(size, 3), labels)
        assert math.isnan(found.noise_rate)
        assert found.score.shape == (size,)
        assert found.neighbors.shape[0] == size


@pytest.fixture(scope="module")
def alone() -> float:
    """The recall of wrong labels of digits that have no copies."""
    features, true = digits()
    given = torch.from_numpy(noise.uniform(true, 0.2, seed=0).labels)
    return recall(judge_labels(features, given), given != true)


@pytest.mark.parametrize("copies", ["twice", "near", "many"])
def test_copies_hide_nothing(copies: str, alone: float) -> None:
    features, true = digits()
    given = torch.from_numpy(noise.uniform(true, 0.2, seed=0).labels)
    rows = torch.arange(len(true))
    if copies == "near":
        rows = torch.cat([rows, rows[:90]])
    elif copies == "twice":
        rows = torch.cat([rows, rows])
    else:  # what is wrong eleven times
        rows = torch.cat([rows, (given != true).nonzero().squeeze(1)[:20].repeat(10)])
    repeated = features[rows] + (0.01 * torch.randn(len(rows), 64) if copies == "near" else 0)
    found = judge_labels(repeated, given[rows])
    assert abs(recall(found, (given != true)[rows]) - alone) < 0.02
    assert int((found.copies != torch.arange(len(rows))).sum()) == len(rows) - len(true)


def test_a_class_drawn_together_is_no_copy() -> None:
    labels = torch.arange(5).repeat(20)
    found = judge_labels(torch.eye(5)[labels] + 0.01 * torch.randn(100, 5), labels)
    assert found.copies.tolist() == list(range(100))
    assert found.noise_rate < 0.01


def digits_without(unknown: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels and labels of nine digits, and of the tenth with random labels; true ones or -1."""
    features, digit = digits()
    true = torch.where(digit == unknown, -1, digit - (digit > unknown).long())
    at_random = (true < 0) | (torch.rand(len(true)) < rate)
    given = torch.where(at_random, torch.randint(9, true.shape), true)
    return features, given, true


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("unknown", [0, 8])
def test_another_class_altogether_is_none_of_them(unknown: int, rate: float) -> None:
    features, given, true = digits_without(unknown, rate)
    found = judge_labels(features, given)
    flagged, none = found.probability < 0.5, found.suggested_labels == -1
    assert abs(found.noise_rate - float((given != true).double().mean())) < 0.03
    assert (flagged & none)[true < 0].double().mean() > 0.7
    assert flagged[true == given].double().mean() < 0.02
    assert none[true >= 0].double().mean() < 0.02


@pytest.mark.parametrize(("spread", "least"), [(0.4, 0.3), (0.8, 0.8)])
def test_junk_is_none_of_the_classes(spread: float, least: float) -> None:
    """Of tight classes a third to four fifths in several draws, as labels so few decide little."""
    features, true = gaussians(10, 40, spread)
    order = torch.rand(40, 32).argsort(dim=1)
    junk, given = features[::10].gather(1, order), torch.randint(10, (40,))  # shuffled columns
    found = judge_labels(torch.cat([features, junk]), torch.cat([true, given]))
    flagged = found.probability < 0.5
    assert flagged[-40:].double().mean() > least
    assert flagged[:-40].double().mean() < 0.02
    assert (found.suggested_labels[-40:][flagged[-40:]] == -1).double().mean() > 0.8


@pytest.mark.parametrize("kind", [noise.uniform, noise.pair_flip])
@pytest.mark.parametrize(("per_class", "spread"), [(8, 0.5), (16, 0.5)])
def test_many_classes_are_compared_with_the_nearest(
    kind: object, per_class: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, true = gaussians(140, per_class, spread, width=64)
    given = torch.from_numpy(kind(true, 0.2, seed=0).labels)  # type: ignore[operator]
    found = judge_labels(features, given)
    assert abs(found.noise_rate - 0.2) < 0.02
    assert average_precision_score(given != true, -found.score) > 0.99
    monkeypatch.setattr(evidence, "_ALL", 1000)  # as if compared with all of them
    everyone = judge_labels(features, given)
    assert abs(found.noise_rate - everyone.noise_rate) < 0.01
    assert ((found.probability < 0.5) != (everyone.probability < 0.5)).double().mean() < 0.005


@pytest.mark.parametrize("cells", [4, 32])  # with enough centers in one of them, and with too few
def test_an_inverted_file_says_the_same(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, true = gaussians(300, 8, 0.5)
    given = torch.from_numpy(noise.uniform(true, 0.2, seed=0).labels)
    exact = judge_labels(features, given, folds=2)
    monkeypatch.setattr(neighbors, "_EXACT", 0)  # for the neighbours and for the nearest centers
    monkeypatch.setattr(neighbors, "inverted_file", lambda *_: FaissIndex(f"IVF{cells},Flat"))
    found = judge_labels(features, given, folds=2)
    assert not torch.equal(found.neighbors, exact.neighbors)
    assert abs(found.noise_rate - exact.noise_rate) < 0.02
    assert ((found.probability < 0.5) != (exact.probability < 0.5)).double().mean() < 0.01


def test_labels_are_names_and_unlabelled_samples_have_no_part() -> None:
    features, true = gaussians(6, 30, 0.5)
    labels = true * 10**15 + 7
    labels[::5] = -1
    found = judge_labels(features, labels)
    assert torch.equal(found.suggested_labels, true * 10**15 + 7)
    assert (found.score[::5] == 1).all()
    other = labels.clone()
    features[::5] += 100  # where they lie changes nothing but what is said of them
    assert abs(judge_labels(features, other).noise_rate - found.noise_rate) < 0.01


def test_distrust_counts() -> None:
    features, true = gaussians(4, 30, 0.5)
    given = true.clone()
    given[:20] = 1  # most of class 0
    found = judge_labels(features, given, trust=(torch.arange(120) >= 20).float())
    assert (found.probability[:20] < 0.5).all()
    assert (found.suggested_labels[:20] == 0).all()


@functools.cache
def judged_at(scale: float, width: int, metric: Any) -> LabelJudgement:
    features, true = gaussians(6, 30, 0.5, width)
    given = torch.from_numpy(noise.uniform(true, 0.2, seed=0).labels)
    return judge_labels(features * scale, given, metric=metric, folds=2)


@pytest.mark.parametrize("width", [12, 300])
@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_scale_of_the_features_is_nothing(width: int, scale: float, metric: Any) -> None:
    scaled = judged_at(scale, width, metric)
    assert torch.equal(scaled.score, judged_at(1.0, width, metric).score)
    assert math.isclose(scaled.noise_rate, 0.2, abs_tol=0.05)


@pytest.mark.parametrize("width", [12, 300])
@pytest.mark.parametrize("size", [2, 5, 40])
def test_features_that_are_all_the_same_say_nothing(width: int, size: int) -> None:
    for seed in range(3):
        row = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        found = judge_labels(row.expand(size, width), torch.arange(size) % 2)
        assert math.isnan(found.noise_rate)
        assert found.score.isfinite().all()


@pytest.mark.parametrize("directions", ["narrow", "wide"])
def test_the_own_label_has_no_part_in_who_the_neighbours_are(directions: str) -> None:
    """Whitened by few labels, a sample is drawn to others of its own: true ones look wrong then."""
    generator = torch.Generator().manual_seed(0)
    if directions == "narrow":  # with little shrinkage
        labels = torch.arange(4).repeat_interleave(60)
        features = torch.randn(240, 16, generator=generator)
        features[:, 13:] = 0.1 * features[:, 13:] + 0.4 * torch.eye(4, 3)[labels]
    else:
        labels = torch.arange(20).repeat_interleave(6)
        features = torch.randn(20, 60, generator=generator)[labels]
        features = features + torch.randn(120, 60, generator=generator)
    found = judge_labels(features, labels, folds=1)
    for sample in range(0, len(labels), len(labels) // 8):
        others = labels.clone()
        others[sample] = (labels[sample] + 1) % (labels.max() + 1)
        other = judge_labels(features, others, folds=1)
        assert torch.equal(other.neighbors[sample], found.neighbors[sample])


def test_classes_of_several_parts_in_few_columns_are_not_wrong() -> None:
    """Eight heaps in six columns, four of each class: what centers say has to count for little."""
    flagged = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        heap = torch.randint(8, (800,), generator=generator)
        features = torch.randn(8, 6, generator=generator)[heap]
        features = features + 0.7 * torch.randn(800, 6, generator=generator)
        found = judge_labels(features, heap % 2)
        flagged.append(float((found.probability < 0.5).double().mean()))
    assert sum(flagged) / 3 < 0.04


def test_it_is_deterministic_and_leaves_the_generator_alone() -> None:
    features, true = gaussians(10, 20, 1.0)
    state = torch.get_rng_state()
    first, second = judge_labels(features, true), judge_labels(features, true)
    assert torch.equal(first.score, second.score)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "rate"), [(noise.uniform, 0.0), (noise.pair_flip, 0.5)])
def test_progress_is_told_to_the_end(
    kind: object, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    features, true = gaussians(7, 50, 1.0)
    given = torch.from_numpy(kind(true, rate, seed=0).labels)  # type: ignore[operator]
    monkeypatch.setattr(judge, "_CLOSE", math.inf)  # the transition changes at the end, if any
    judge_labels(features, given, progress=lambda done, of: told.append((done, of)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]
    assert (told[-1][1] > told[0][1]) == (rate > 0)


def test_one_fold_says_about_the_same() -> None:
    features, true = gaussians(20, 40, 1.0)
    given = torch.from_numpy(noise.uniform(true, 0.3, seed=0).labels)
    rates = [judge_labels(features, given, folds=folds).noise_rate for folds in (1, 5)]
    assert np.allclose(rates, 0.3, atol=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_several_annotators_of_an_object(seed: int) -> None:
    """Equal rows of which some have another label: no copy has a say in judging the others."""
    random = np.random.default_rng(seed)
    centers, truth = random.normal(size=(100, 64)), np.repeat(np.arange(100), 3)
    objects = centers[truth] + 0.3 * random.normal(size=(300, 64))
    features, truth = np.repeat(objects, 5, axis=0), np.repeat(truth, 5)
    labels = np.where(random.random(1500) < 0.1, random.integers(0, 100, 1500), truth)
    found = judge_labels(torch.from_numpy(features).float(), torch.from_numpy(labels))
    flagged, wrong = found.probability.numpy() < 0.5, labels != truth
    assert abs(found.noise_rate - wrong.mean()) < 0.02
    assert (flagged & wrong).sum() > 0.98 * max(flagged.sum(), wrong.sum())


def test_rows_that_are_all_copies_are_judged_the_same_in_any_order() -> None:
    """Ten objects, 200 rows of each: distances between copies are 0, or what rounding leaves."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 2000)
    labels = np.where(random.random(2000) < 0.1, random.integers(0, 10, 2000), truth)
    features, wrong = torch.eye(10)[truth], torch.from_numpy(labels != truth)
    turned = torch.linalg.qr(torch.randn(10, 10)).Q
    order, names = torch.from_numpy(random.permutation(2000)), random.permutation(10)
    given = torch.from_numpy(labels)
    for rows, said, bad in (
        (features, given, wrong),
        (features @ turned, given, wrong),
        (features, torch.from_numpy(names[labels]), wrong),
        (features[order], given[order], wrong[order]),
    ):
        found = judge_labels(rows, said)
        flagged = found.probability < 0.5
        assert not flagged[~bad].any()
        assert flagged[bad].float().mean() > 0.95
        assert len(found.copies.unique()) == 10  # told, and votes all the same
        assert abs(found.noise_rate - wrong.double().mean()) < 0.01


def test_a_copy_of_more_weight_lets_its_sample_be_judged() -> None:
    """Doubtful labels, of which some have a checked copy: forty of these are wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60).repeat_interleave(5)
    features = torch.randn(60, 32, generator=generator)[truth]
    features = features + 0.2 * torch.randn(300, 32, generator=generator)
    wrong = torch.randperm(300, generator=generator)[:40]
    labels = truth.index_copy(0, wrong, (truth[wrong] + 7) % 60)
    trust = torch.cat([torch.full((300,), 0.05), torch.ones(40)])
    features, labels = torch.cat([features, features[wrong]]), torch.cat([labels, truth[wrong]])
    found = judge_labels(features, labels, trust=trust)
    assert (found.probability[wrong] < 0.5).all()


@pytest.mark.parametrize("number", [40, 60, 200])
def test_however_many_copies_there_are_they_do_not_judge_each_other(number: int) -> None:
    """A picture for "no picture", with all labels; and one digit, all of it wrong alike."""
    features, truth = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    features, copies = features.float(), torch.arange(len(truth)) < number
    blank = features.masked_fill(copies.unsqueeze(1), 8.0)
    found = judge_labels(blank, truth)
    assert found.probability[copies].mean() < 0.5
    assert (found.probability[~copies] < 0.5).double().mean() < 0.005
    alike = truth.masked_fill(copies, 3)
    found = judge_labels(torch.where(copies.unsqueeze(1), features[0], features), alike)
    assert (found.probability[copies] < 0.1).all()
    assert (found.probability[~copies] < 0.5).double().mean() < 0.005


def test_more_copies_than_neighbours_of_few_samples() -> None:
    """Then fewer speak than neighbours are asked for, and they are searched fold by fold."""
    labels = torch.cat([torch.arange(20) % 2, torch.zeros(40, dtype=torch.int64)])
    features = torch.randn(20, 16) + 3 * torch.eye(16)[labels[:20]]
    found = judge_labels(torch.cat([features, features[:1].expand(40, -1)]), labels)
    assert found.neighbors.shape == (60, 8)
    assert judge_labels(features, labels[:20], k=1).neighbors.shape == (20, 1)


def test_a_copy_without_a_label_silences_no_class() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, generator=generator)[torch.arange(120) % 2]
    features = features + torch.randn(120, 8, generator=generator)
    copies = features[:4].repeat_interleave(30, dim=0)
    labels = torch.cat([torch.arange(120) % 2, (torch.arange(4) % 2).repeat_interleave(30)])
    labels[120::30] = -1
    both = torch.cat([features, copies])
    found, other = (
        judge_labels(both, labels),
        judge_labels(both, torch.where(labels < 0, -1, 1 - labels)),
    )
    torch.testing.assert_close(
        found.probability, other.probability, rtol=1e-3, atol=1e-3, equal_nan=True
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_samples_of_features_that_mean_nothing(classes: int) -> None:
    """Held out, a label makes its class rarer: that it is any other one is no guess of worth."""
    said = 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(30, 8, generator=generator)
        said += math.isfinite(judge_labels(features, torch.arange(30) % classes).noise_rate)
    assert said <= 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_an_easy_class_does_not_answer_for_the_others(rate: float, seed: int) -> None:
    """All that is most certain is of a class far away, none of whose labels is wrong."""
    features, true = gaussians(10, 60, 1.2, width=8)
    generator = torch.Generator().manual_seed(seed)
    features = torch.cat([features, torch.randn(80, 8, generator=generator) + 15])
    given = torch.from_numpy(noise.uniform(true, rate, seed=seed).labels)
    true, given = (torch.cat([each, torch.full((80,), 10)]) for each in (true, given))
    found = judge_labels(features, given)
    low, high = found.noise_rate_bounds
    assert low <= float((given != true).double().mean()) <= high


@pytest.mark.parametrize("refutes", [False, True])
def test_what_is_flagged_is_never_suggested(refutes: bool) -> None:
    features, true = gaussians(20, 30, 1.2, width=8)
    given = torch.from_numpy(noise.pair_flip(true, 0.3, seed=1).labels)
    given[::7] = -1
    found = judge_labels(features, given, core_refutes=refutes)
    flagged = (found.probability < 0.5) & (given >= 0)
    assert flagged.any()
    assert (found.suggested_labels != given)[flagged].all()
    assert (found.suggested_labels == given)[(given >= 0) & ~flagged].all()
    right = (given >= 0) & ~flagged
    assert torch.allclose(found.support[right], found.probability[right])
    assert (found.support[flagged] <= 1 - found.probability[flagged] + 1e-6).all()
    assert (found.suggested_labels == true)[given < 0].double().mean() > 0.3


def test_what_features_say_of_a_rare_class_is_said() -> None:
    """All guesses are the large class, which is right as often as by chance; yet they tell."""
    generator = torch.Generator().manual_seed(2)
    true = (torch.rand(6000, generator=generator) < 0.05).long()
    features = torch.randn(6000, 4, generator=generator)
    features[:, :2] += 0.7 * true.unsqueeze(1)
    wrong = torch.rand(6000, generator=generator) < 0.02
    given = torch.where(wrong, 1 - true, true)
    found = judge_labels(features, given, metric="euclidean", noise_rate=0.02)
    assert math.isfinite(found.noise_rate)
    assert float(wrong[found.probability < 0.5].double().mean()) > 0.4
