"""The judge's mathematics against slow literal forms."""

import math

import pytest
import torch
from sklearn.decomposition import PCA

from noisydml.functional import (
    leave_one_out_similarity,
    principal_components,
    within_class_whitening,
)
from noisydml.functional.class_evidence import (
    held_out_likelihood,
    known_part,
    near_identical,
    pair_cosine,
    size_adjustment,
    vote_shares,
    without_copies,
)
from noisydml.functional.judge import (
    agreement,
    mean_log_odds,
    rate_of_core,
    shift_to_mean,
    strict_threshold,
)


def test_principal_components_are_those_of_scikit_learn() -> None:
    scales = torch.linspace(5, 0.1, 60)
    features = torch.randn(300, 60) * scales + 3
    found = principal_components(features, 8)
    expected = torch.from_numpy(PCA(8, svd_solver="full").fit_transform(features.numpy()))
    assert found.shape == (300, 8)
    # The same plane: distances agree, whatever the signs and the order of the columns.
    torch.testing.assert_close(torch.pdist(found), torch.pdist(expected), rtol=1e-2, atol=1e-2)
    narrow = principal_components(features[:, :5], 8)
    torch.testing.assert_close(narrow, features[:, :5] - features[:, :5].mean(dim=0))


@pytest.mark.parametrize("shrinkage", [0.0, 0.5, 1.0, None])
def test_whitening_against_sample_by_sample(shrinkage: float | None) -> None:
    features, labels = torch.randn(80, 6) @ torch.randn(6, 6), torch.arange(80) % 3
    weights = torch.rand(80)
    covariance = torch.zeros(6, 6)
    for c in range(3):
        rows, w = features[labels == c], weights[labels == c]
        mean = (rows * w[:, None]).sum(0) / w.sum()
        for row, weight in zip(rows, w, strict=True):
            covariance += weight * torch.outer(row - mean, row - mean)
    covariance /= weights.sum()
    part = 120 / (120 + 80) if shrinkage is None else shrinkage  # 20 samples a column
    covariance = (1 - part) * covariance + part * covariance.trace() / 6 * torch.eye(6)
    matrix = within_class_whitening(features, labels, weights, 3, shrinkage)
    torch.testing.assert_close(matrix.T @ covariance @ matrix, torch.eye(6), rtol=1e-3, atol=1e-3)


def test_whitening_without_spread_is_the_identity() -> None:
    features = torch.ones(4, 3)
    matrix = within_class_whitening(features, torch.zeros(4).long(), torch.ones(4), 1)
    torch.testing.assert_close(matrix, torch.eye(3))


def test_likelihood_of_held_out_labels_against_sample_by_sample() -> None:
    similarity, votes = torch.rand(6, 5), torch.rand(6, 5) + 0.01
    labels = torch.randint(5, (6,))
    found = held_out_likelihood(similarity, votes, labels)
    assert found.shape == (8 * 10, 6)
    place = 0
    for temperature in (0.05, 0.1, 0.2, 0.4):
        for part in (0.3, 1.0):
            for rate in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
                for i in range(6):
                    near = [math.exp(s / temperature) for s in similarity[i].tolist()]
                    each = [s * v**part for s, v in zip(near, votes[i].tolist(), strict=True)]
                    right = each[labels[i]] / sum(each)
                    expected = (1 - rate) * right + rate / 4 * (1 - right)
                    assert math.isclose(found[place, i], math.log(expected), abs_tol=1e-4)
                place += 1


def test_votes_are_shared_with_those_who_have_none() -> None:
    votes = torch.rand(7, 9)
    counted = votes * torch.rand(7, 9)  # as far as they may be trusted
    classes = torch.randint(6, (7, 9))
    ballots = torch.zeros(7, 7).scatter_add_(1, classes, counted)
    shares = vote_shares(ballots, votes, 6)
    torch.testing.assert_close(shares[:, :6].sum(dim=1), torch.ones(7))
    for i in range(7):
        fiftieth = 0.02 * float(votes[i].sum())
        for c in range(6):
            mine = float(counted[i, classes[i] == c].sum())
            expected = (mine + fiftieth / 6) / (float(counted[i].sum()) + fiftieth)
            assert math.isclose(shares[i, c], expected, abs_tol=1e-6)
    # Of four classes out of a hundred: the last is the mean of the 96 that the others may be.
    some = vote_shares(
        torch.cat([ballots[:, :4], ballots[:, 4:].sum(1, keepdim=True)], 1), votes, 100
    )
    torch.testing.assert_close(some[:, :4].sum(dim=1) + 96 * some[:, 4], torch.ones(7))


def test_agreement_is_that_beyond_permuted_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    guesses = torch.randint(3, (600,), generator=generator)
    labels = torch.where(torch.rand(600, generator=generator) < 0.3, guesses, guesses * 0 + 7)
    labels = torch.where(torch.rand(600, generator=generator) < 0.4, 1, labels)
    agreed = [
        float((guesses == labels[torch.randperm(600, generator=generator)]).sum())
        for _ in range(2000)
    ]
    mean, spread = torch.tensor(agreed).mean(), torch.tensor(agreed).std()
    found = agreement(guesses, labels)
    exact = (float((guesses == labels).sum()) - float(mean)) / float(spread)
    assert 0 < found < 1.1 * exact  # rather too few standard errors than too many
    assert found > 0.7 * exact
    assert agreement(labels[:0], labels[:0]) == 0
    assert agreement(torch.zeros(4).long(), torch.zeros(4).long()) == 0


def test_core_refutes_who_expects_more_than_there_are() -> None:
    core, error, part = rate_of_core(0.05, 0.3, 0.9, 400)
    assert math.isclose(core, 1 - 0.95 / 0.9)
    assert math.isclose(error, 2 * math.sqrt(0.05 * 0.95 / 400))
    assert part == 1 / 3
    assert rate_of_core(0.2, 0.3, 0.9, 4000)[2] == pytest.approx((1 - 0.8 / 0.92) / 0.3)
    assert rate_of_core(0.05, 0.3, 0.59, 400)[2] == 1  # too uncertain
    assert rate_of_core(0.2, 0.3, 1.0, 40)[2] == 1  # too few


@pytest.mark.parametrize("number", [1, 5, 1000])
def test_core_of_which_nothing_is_expected_refutes_nobody(number: int) -> None:
    """A label is right by 1 exactly where the features are less sure: rounding, of many classes."""
    core, _, part = rate_of_core(0.0, 0.0, 0.9, number)
    assert core < 0
    assert part == 1


def test_similarity_leaves_the_sample_out() -> None:
    features = torch.nn.functional.normalize(torch.randn(40, 5))
    labels, weights = torch.arange(40) % 4, torch.rand(40)
    sums = torch.zeros(4, 5).index_add_(0, labels, features * weights[:, None])
    similarity, own = leave_one_out_similarity(features, sums, labels, weights)
    some = torch.tensor([[0, 2]]).expand(40, 2)
    chosen, _ = leave_one_out_similarity(features, sums, labels, weights, some)
    torch.testing.assert_close(chosen, similarity[:, [0, 2]])
    for i in range(40):
        others = (labels == labels[i]) & (torch.arange(40) != i)
        center = (features[others] * weights[others, None]).sum(0)
        expected = torch.cosine_similarity(features[i], center, dim=0)
        torch.testing.assert_close(own[i], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            similarity[i], torch.cosine_similarity(features[i : i + 1], sums), rtol=1e-4, atol=1e-5
        )


def test_a_class_of_one_has_no_similarity() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 4))
    labels, weights = torch.tensor([0, 1, 1]), torch.full((3,), 0.3)
    sums = torch.zeros(2, 4).index_add_(0, labels, features * weights[:, None])
    _, own = leave_one_out_similarity(features, sums, labels, weights)
    assert own[0] == 0
    assert own[1] != 0


@pytest.mark.parametrize("mean", [0.01, 0.5, 0.99])
def test_shift_has_the_mean_and_keeps_the_order(mean: float) -> None:
    probability, weights = torch.rand(50), torch.rand(50)
    shifted = shift_to_mean(probability, mean, weights)
    weighted = (shifted * weights).sum() / weights.double().sum()
    torch.testing.assert_close(weighted.item(), mean, rtol=0, atol=1e-6)
    assert torch.equal(shifted.argsort(), probability.argsort())


@pytest.mark.parametrize("kept", [0.2, 0.7, 0.85, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_strict_threshold_is_the_highest_that_keeps_enough(kept: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(50, generator=generator, dtype=torch.float64)
    probability[::7] = probability[3]  # some are equal
    right = math.fsum(probability.tolist())
    candidates = [0.5, 0.8, *(p for p in probability.tolist() if 0.5 <= p <= 0.8)]
    enough = [
        t
        for t in candidates
        if math.fsum(p for p in probability.tolist() if p >= t) >= (kept - 1e-12) * right
    ]
    expected = max(enough, default=0.5)
    assert strict_threshold(probability, kept, 0.5, 0.8).item() == expected


def test_strict_threshold_of_nothing_is_the_least() -> None:
    assert strict_threshold(torch.zeros(0), 0.85, 0.5, 0.8).item() == 0.5


def test_mean_log_odds_is_the_geometric_mean_of_the_odds() -> None:
    first, second = torch.rand(2, 50, dtype=torch.float64)
    found = mean_log_odds(first, second)
    for p, q, both in zip(first.tolist(), second.tolist(), found.tolist(), strict=True):
        odds = math.sqrt(p / (1 - p) * q / (1 - q))
        assert both == pytest.approx(odds / (1 + odds))
    certain = torch.tensor([0.0, 1.0, 1.5, -0.5], dtype=torch.float64)  # by rounding
    expected = [1e-6, 1 - 1e-6, 1 - 1e-6, 1e-6]
    assert mean_log_odds(certain, certain).tolist() == pytest.approx(expected, rel=1e-3)


def test_pair_cosine_is_the_mean_over_all_pairs_of_a_class() -> None:
    labels = torch.arange(6).repeat_interleave(7)
    vectors = torch.nn.functional.normalize(torch.randn(42, 5).double() + torch.randn(6, 5)[labels])
    sums = torch.zeros(6, 5).double().index_add_(0, labels, vectors)
    cosine = vectors @ vectors.T
    pairs = (labels == labels.unsqueeze(1)).fill_diagonal_(False)
    found = pair_cosine(sums.norm(dim=1), torch.bincount(labels).double())
    torch.testing.assert_close(found, cosine[pairs].mean())
    one = pair_cosine(torch.ones(3), torch.ones(3))  # classes of one have no pairs
    assert one == pytest.approx(0.02)


def test_what_is_known_of_a_mean_is_its_share_in_the_variance() -> None:
    truth = 0.5 * torch.randn(4000, 20)  # of 4,000 classes, of variance 0.25; samples have 1
    for number in (1, 3, 10):
        samples = truth + 0.75**0.5 * torch.randn(number, 4000, 20)
        share = truth.var() / samples.mean(dim=0).var()
        found = known_part(torch.tensor(float(number)), torch.tensor(0.25))
        torch.testing.assert_close(found, share, atol=0.02, rtol=0)


@pytest.mark.parametrize("cosine", [0.1, 0.5, 0.9])
def test_adjusted_similarities_are_densities_around_what_is_known_of_the_means(
    cosine: float,
) -> None:
    sizes = torch.tensor([1.0, 4.0, 30.0, 1e6], dtype=torch.float64)
    part = known_part(sizes, torch.tensor(cosine))
    length = (cosine + (1 - cosine) / sizes).sqrt()  # of the mean of so many samples
    similarity = torch.rand(50, 4, dtype=torch.float64)
    # The squared distance of a sample of length 1 from r times that mean.
    far = 1 - 2 * part * length * similarity + (part * length).square()
    factor, offset = size_adjustment(sizes, torch.tensor(cosine))
    found = similarity * factor - offset
    usual = known_part(sizes.mean(), torch.tensor(cosine))
    expected = -far / (2 * (usual * cosine).sqrt())
    torch.testing.assert_close(found.diff(dim=1), expected.diff(dim=1), atol=1e-6, rtol=1e-6)


def test_classes_of_one_size_need_no_adjustment() -> None:
    factor, offset = size_adjustment(torch.full((5,), 20.0), torch.tensor(0.3))
    assert factor.tolist() == [1.0] * 5
    assert offset.tolist() == [0.0] * 5


def test_without_copies_is_a_center_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1)
    labels, weights = torch.arange(12) % 3, torch.rand(12, generator=generator)
    rows[4], rows[5] = rows[0], rows[0]  # with the labels 1 and 2; class 3 has a copy alone
    rows, labels = torch.cat([rows, rows[:1]]), torch.cat([labels, torch.tensor([3])])
    weights = torch.cat([weights, torch.tensor([0.5])])
    sums = torch.stack([(rows * weights.unsqueeze(1))[labels == c].sum(dim=0) for c in range(4)])
    copies = torch.tensor([[0.0, weights[4], weights[5], 0.5]])
    lengths = torch.linalg.vector_norm(sums, dim=1)
    similarity = (rows[:1] @ sums.T) / lengths
    others = sums - copies.T * rows[0]
    expected = torch.nn.functional.cosine_similarity(rows[:1], others[:3])
    found = without_copies(similarity, lengths, copies)[0]
    torch.testing.assert_close(found[:3], expected, rtol=1e-4, atol=1e-5)
    assert found[0] == similarity[0, 0]
    assert found[3] == 0


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_equal_rows_are_copies_where_nearly_all_are(rounding: float) -> None:
    rows = torch.eye(5).repeat(20, 1) + rounding * torch.randn(100, 5)
    directions = torch.nn.functional.normalize(rows)
    distance = (1 - directions @ directions.T).clamp_min(0).fill_diagonal_(9)
    distance, near = distance.sort(dim=1, stable=True)
    found = near_identical(directions, distance[:, :30], near[:, :30])
    assert torch.equal(found, torch.arange(5).repeat(20))


def test_whitening_takes_labels_of_any_integer_dtype() -> None:
    features, labels, ones = torch.randn(20, 3), torch.arange(20) % 4, torch.ones(20)
    expected = within_class_whitening(features, labels, ones, 4)
    for dtype in (torch.uint8, torch.int16):
        assert torch.equal(within_class_whitening(features, labels.to(dtype), ones, 4), expected)


def test_a_class_of_one_sample_and_its_copies_has_no_similarity() -> None:
    features = torch.nn.functional.normalize(torch.randn(1, 64)).repeat(7, 1)
    sums = (features / 7).sum(dim=0, keepdim=True)
    _, own = leave_one_out_similarity(features, sums, torch.zeros(7).long(), torch.ones(7))
    assert own.tolist() == [0] * 7


def test_classes_of_little_weight_say_nothing_of_pairs() -> None:
    lengths, sizes = torch.tensor([2.5, 0.5, 1.0]), torch.tensor([4.0, 0.5, 1.2])
    assert pair_cosine(lengths, sizes) == pair_cosine(lengths[:1], sizes[:1])


def test_components_of_numbers_whose_squares_overflow() -> None:
    features = torch.randn(60, 40) * torch.linspace(1, 5, 40)
    found = principal_components(features * 1e30, 3) / 1e30
    torch.testing.assert_close(found, principal_components(features, 3), rtol=1e-3, atol=1e-3)


def test_whitening_without_shrinkage_of_a_column_that_never_varies() -> None:
    features, labels = torch.randn(50, 4), torch.arange(50) % 2
    features[:, 3] = 7
    matrix = within_class_whitening(features, labels, torch.ones(50), 2, shrinkage=0.0)
    assert matrix.isfinite().all()
