"""Wrong labels found offline: the table, and how good it is."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_out import few_held_out
from sklearn.datasets import load_digits, load_iris, make_circles, make_moons
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from noisydml import LabelIssues, find_label_issues, noise
from noisydml.functional import within_class_whitening

NAN = float("nan")


def spoilt_digits(rate: float, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    pixels, true = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(true))[: round(rate * len(true))]
    given = true.copy()
    given[wrong] = (true[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return torch.tensor(pixels, dtype=torch.float32), torch.tensor(given), given != true


def test_issues_are_those_below_the_threshold() -> None:
    embeddings = torch.randn(90, 4) + 3 * torch.eye(4)[torch.arange(90) % 4]
    labels = torch.where(torch.arange(90) < 9, torch.randint(4, (90,)), torch.arange(90) % 4)
    labels[11] = 17
    for threshold in (0.1, 0.5, 0.9):
        result = find_label_issues(embeddings, labels, threshold=threshold)
        flagged = [i for i in range(90) if result.probability[i] < threshold]
        assert sorted(result.issues.tolist()) == flagged
        assert result.score[result.issues].diff().ge(0).all()
    assert result.score[11] == 1  # the only one of its class


@cache
@few_held_out()
def issues_of_digits(rate: float | None) -> LabelIssues:
    pixels, given, _ = spoilt_digits(0.2, seed=0)
    return find_label_issues(pixels, given, noise_rate=rate)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_a_rate_that_is_known_counts(rate: float) -> None:
    """It decides how many are issues, and leaves the order in which they are suspected."""
    estimated, told = issues_of_digits(None), issues_of_digits(rate)
    assert told.noise_rate == rate
    assert len(told) / len(told.score) == pytest.approx(rate, abs=0.03)
    assert told.score[estimated.score.argsort()].diff().ge(0).all()
    assert f"About {100 * rate:.1f} % of all labels are wrong, as was said." in told.summary()


def clear(wrong: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """600 samples of three classes far apart; of the labels some are wrong."""
    true = np.arange(600) % 3
    embeddings = 10 * np.eye(3)[true] + np.random.default_rng(0).normal(size=(600, 3))
    given = true.copy()
    given[np.arange(wrong) * 19] = (true[np.arange(wrong) * 19] + 1) % 3
    return embeddings, given


@few_held_out()
@pytest.mark.parametrize("rate", [0, 0.01, 0.05, 0.1, 0.3, 0.45, 0.99])
def test_a_rate_that_is_known_is_the_share_of_the_issues(rate: float, tmp_path: Path) -> None:
    """Also where all probabilities are near 0 or 1; of those that can be judged."""
    embeddings, given = clear()
    given[-10:], given[-11] = -1, 7  # without a label, and the only one of its class
    told = find_label_issues(embeddings, given, noise_rate=rate, threshold=0.01)
    assert len(told) == round(rate * 589)
    judged = torch.from_numpy((given >= 0) & (given != 7)).nonzero().squeeze(1)
    lowest = judged[told.score[judged].argsort(stable=True)]
    assert torch.equal(told.issues, lowest[: len(told)])  # of equal ones the first
    assert len(told.rows()) == len(told)
    assert told.summary().startswith(f"{len(told)} of 589 labels are most likely wrong")
    assert "Labels that have not been judged: 1." in told.summary()
    told.save(tmp_path / "told")
    assert torch.equal(LabelIssues.load(tmp_path / "told").issues, told.issues)
    nothing = find_label_issues(np.ones((40, 2)), [0, 1] * 20, noise_rate=rate)
    assert len(nothing) == 0


def test_the_only_sample_of_its_class_is_not_judged() -> None:
    """As one of a name that was mistyped is, and a copy of it cannot be right as well."""
    embeddings, given = clear(wrong=0)
    names = np.array(["ant", "bee", "fly"], dtype=object)[given]
    names[0] = "atn"
    embeddings = np.concatenate([embeddings, embeddings[:1]])
    found = find_label_issues(embeddings, [*names, "ant"])
    assert found.probability is not None
    assert found.probability.isnan().tolist() == [True] + [False] * 600
    assert found.score[0] == 1
    assert found.summary().startswith("0 of 600 labels are most likely wrong")
    assert "Labels that have not been judged: 1." in found.summary()
    assert [row["sample_id"] for row in found.rows()] == [0, 600]
    assert math.isnan(found.rows()[0]["probability"])


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_the_quality_on_digits(rate: float) -> None:
    """What the documentation states, less a margin; with nothing said about the rate."""
    pixels, given, is_noisy = spoilt_digits(rate, seed=0)
    result = find_label_issues(pixels, given)
    flagged = np.zeros(len(given), dtype=bool)
    flagged[result.issues] = True
    assert f1_score(is_noisy, flagged) > 0.96
    assert average_precision_score(is_noisy, -result.score) > 0.99
    assert abs(result.noise_rate - rate) < 0.02
    true = torch.tensor(load_digits(return_X_y=True)[1])
    right = (result.suggested_labels == true)[torch.from_numpy(is_noisy)]
    assert right.double().mean() > 0.95


def test_five_samples_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(500).repeat_interleave(5)
    centers = torch.randn(500, 64, generator=generator)
    embeddings = centers[true] + 0.5 * torch.randn(2500, 64, generator=generator)
    wrong = torch.randperm(2500, generator=generator)[:500]
    given = true.clone()
    given[wrong] = (true[wrong] + torch.randint(1, 500, (500,), generator=generator)) % 500
    flagged = torch.zeros(2500, dtype=torch.bool)
    flagged[find_label_issues(embeddings, given).issues] = True
    assert f1_score(given != true, flagged) > 0.95


@pytest.mark.parametrize("metric", [None, "euclidean"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("shape", [partial(make_circles, factor=0.4), make_moons])
def test_classes_that_only_distances_tell(shape: Any, rate: float, seed: int, metric: Any) -> None:
    """Rings about one center, and moons within one another."""
    points, true = shape(600, noise=0.1, random_state=seed)
    given = noise.uniform(true, rate, seed=seed + 1).labels
    found = find_label_issues(points, given, metric=metric)
    if rate == 0:
        assert len(found) == 0
    else:
        flagged = np.isin(np.arange(600), found.issues.numpy())
        assert f1_score(given != true, flagged) > 0.9


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_a_table_of_four_columns(rate: float) -> None:
    """Irises: with the length of a row most of what tells two kinds apart is lost."""
    table, true = load_iris(return_X_y=True)
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    scores = []
    for seed in range(3):
        given = noise.uniform(true, rate, seed=seed).labels
        found = find_label_issues(table, given)
        flagged = np.isin(np.arange(len(true)), found.issues.numpy())
        if rate == 0:
            assert not flagged.any()
        else:
            scores.append(f1_score(given != true, flagged))
    assert rate == 0 or np.mean(scores) > 0.8


@few_held_out()
@pytest.mark.parametrize("width", [16, 64, 300])
def test_directions_of_embeddings_are_compared(width: int) -> None:
    """Whose lengths vary, as a network's do, and mean nothing."""
    generator = torch.Generator().manual_seed(width)
    given = torch.arange(40).repeat_interleave(20)
    embeddings = 3 * torch.randn(40, width, generator=generator)[given] / width**0.5
    embeddings += torch.randn(800, width, generator=generator) / width**0.5
    embeddings *= torch.rand(800, 1, generator=generator) + 0.5
    given[:200] = given[:200].roll(30)
    found = find_label_issues(embeddings, given)
    expected = find_label_issues(embeddings, given, metric="cosine")
    assert torch.equal(found.score, expected.score)
    other = find_label_issues(embeddings, given, metric="euclidean")
    assert not torch.equal(found.score, other.score)


@few_held_out()
@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e36])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_unit_of_embeddings_does_not_count(metric: Any, scale: float) -> None:
    points, labels = make_moons(300, noise=0.2, random_state=0)
    embeddings = torch.tensor(points, dtype=torch.float32)
    expected = find_label_issues(embeddings, labels, metric=metric)
    found = find_label_issues(embeddings * scale, labels, metric=metric)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="that float32 holds"):
        find_label_issues(embeddings / embeddings.max() * 3e38, labels, metric="euclidean")


def test_clean_labels_of_separate_classes_have_no_issues() -> None:
    embeddings = torch.eye(5).repeat(20, 1) + 0.01 * torch.randn(100, 5)  # drawn together
    result = find_label_issues(embeddings, torch.arange(5).repeat(20))
    assert len(result.issues) == 0
    assert result.noise_rate < 0.01
    assert result.rows() == []
    assert result.summary().startswith("0 of 100 labels are most likely wrong (0.0 %).")


def test_what_it_takes() -> None:
    embeddings, labels = np.random.default_rng(0).normal(size=(30, 4)), [0, 1, 2] * 10
    result = find_label_issues(embeddings, labels)
    for index in ("torch", "Flat", "IVF2,Flat"):
        other = find_label_issues(torch.tensor(embeddings), torch.tensor(labels), index=index)
        if index != "IVF2,Flat":
            torch.testing.assert_close(other.score, result.score, rtol=1e-4, atol=1e-5)
        assert other.score.isfinite().all()
    assert find_label_issues(embeddings.astype(np.float16), labels, metric="euclidean").issues.ndim


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_few_samples(size: int) -> None:
    result = find_label_issues(torch.randn(size, 3), torch.zeros(size, dtype=torch.long))
    assert result.score.tolist() == [1.0] * size
    assert len(result.issues) == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "name"),
    [
        ((torch.randn(4), torch.arange(4)), {}, ValueError, "embeddings"),
        ((torch.ones(4, 2).int(), torch.arange(4)), {}, TypeError, "embeddings"),
        ((torch.full((4, 2), float("nan")), torch.arange(4)), {}, ValueError, "embeddings"),
        ((torch.randn(4, 2), torch.arange(3)), {}, ValueError, "labels"),
        ((torch.randn(4, 2), torch.rand(4)), {}, TypeError, "labels"),
        ((torch.randn(4, 2), torch.tensor([0, 1, -2, 0])), {}, ValueError, "labels"),
        ((torch.randn(4, 2), torch.arange(4)), {"k": 0}, ValueError, "k"),
        ((torch.randn(4, 2), torch.arange(4)), {"threshold": 2}, ValueError, "threshold"),
        ((torch.randn(4, 2), torch.arange(4)), {"noise_rate": 1}, ValueError, "noise_rate"),
        ((torch.randn(4, 2), torch.arange(4)), {"noise_rate": "a"}, TypeError, "noise_rate"),
        ((torch.randn(4, 2), torch.arange(4)), {"metric": "l7"}, ValueError, "metric"),
    ],
)
def test_bad_arguments(
    arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        find_label_issues(*arguments, **settings)


def example(suggestions: bool) -> LabelIssues:
    return LabelIssues(
        issues=torch.tensor([2, 0]),
        score=torch.tensor([0.4, 1.0, 0.123456]).double(),
        given_labels=torch.tensor([5, 6, 7]),
        suggested_labels=torch.tensor([6, 6, 5]) if suggestions else None,
        support=torch.tensor([0.5, 1.0, 0.75]).double() if suggestions else None,
        noise_rate=2 / 3,
    )


def test_the_table(tmp_path: Path) -> None:
    example(True).to_csv(tmp_path / "issues.csv")
    with (tmp_path / "issues.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row.values()) for row in rows] == [
        ["2", "7", "5", "0.1235", "0.7500"],
        ["0", "5", "6", "0.4000", "0.5000"],
    ]
    example(False).to_csv(tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().splitlines() == [
        "sample_id,given_label,score",
        "2,7,0.1235",
        "0,5,0.4000",
    ]


def test_labels_are_written_in_full_and_apart(tmp_path: Path) -> None:
    given = torch.tensor([0, 1, 2, 3])
    issues = replace(
        example(False),
        issues=given,
        score=torch.full((4,), 0.12345),
        given_labels=given,
        classes=(0.123456789, "1", 1, "1 (int)"),
    )
    issues.to_csv(tmp_path / "issues.csv")
    words = ["0.123456789", "1 (str)", "1 (int) (int)", "1 (int) (str)"]
    expected = [f"{i},{word},0.1235" for i, word in enumerate(words)]
    assert (tmp_path / "issues.csv").read_text().splitlines()[1:] == expected
    assert words[2] in issues.summary()
    assert [row["given_label"] for row in issues.rows()] == list(issues.classes)


def crowd(size: int, classes: int) -> LabelIssues:
    """One group of copies, whose labels take turns; the last is an issue."""
    return LabelIssues(
        issues=torch.tensor([size - 1]),
        score=torch.ones(size, dtype=torch.float64),
        given_labels=torch.arange(size) % classes,
        suggested_labels=torch.arange(size) % classes,
        support=torch.ones(size, dtype=torch.float64),
        noise_rate=0.5,
        contradictions=(torch.arange(size),),
    )


def test_few_of_many_copies_are_told(tmp_path: Path) -> None:
    first, second = crowd(50, 2).rows()[:2]
    assert first["sample_id"] == 49
    assert first["contradicts"] == list(range(0, 40, 2))
    assert second["contradicts"] == list(range(1, 41, 2))
    assert first["contradicts_more"] == second["contradicts_more"] == 5
    assert "contradicts_more" not in crowd(40, 2).rows()[0]
    crowd(50, 2).to_csv(tmp_path / "issues.csv")
    lines = (tmp_path / "issues.csv").read_text().splitlines()
    assert lines[0].endswith(",contradicts,contradicts_more")
    assert lines[1].endswith(" 36 38,5")
    for row in crowd(90, 4).rows():
        others = [i for i in range(90) if (i - row["sample_id"]) % 4]
        assert row["contradicts"] == others[:20]
        assert row["contradicts_more"] == len(others) - 20


@pytest.mark.parametrize("classes", [2, 30_000])
def test_a_large_group_of_copies_costs_little(tmp_path: Path, classes: int) -> None:
    issues = crowd(30_000, classes)  # of which there are 450 million pairs
    issues.to_csv(tmp_path / "issues.csv")
    issues.to_html(tmp_path / "page.html")
    for file in tmp_path.iterdir():
        assert file.stat().st_size < 15_000_000
    assert len(issues._repr_html_() + issues.summary()) < 10_000


def test_the_summary() -> None:
    lines = example(True).summary().splitlines()
    assert lines[0] == "2 of 3 labels are most likely wrong (66.7 %)."
    assert lines[2].split() == ["2", "7", "5", "0.1235", "0.7500"]
    assert len(example(True).summary(top=1).splitlines()) == 3
    assert len(example(True).summary(top=0).splitlines()) == 1
    with pytest.raises(ValueError, match="top"):
        example(True).summary(top=-1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_neighbors_are_the_nearest(metric: Any) -> None:
    labels = torch.arange(90) % 2
    embeddings = torch.randn(90, 3) + 2 * torch.eye(3)[labels]
    labels[:10] = 1 - labels[:10]
    labels[40:50] = -1
    points = torch.nn.functional.normalize(embeddings) if metric == "cosine" else embeddings
    issues = find_label_issues(embeddings, labels, k=20, metric=metric, threshold=0.9)
    assert len(issues.issues) > 5
    given = labels >= 0
    whitening = within_class_whitening(points, labels.clamp_min(0), given.float(), 2)
    seen = (points - points.mean(dim=0)) @ whitening
    if metric == "euclidean":  # as from a point three spreads above the mean
        seen = torch.nn.functional.pad(seen, (0, 1), value=3.0)
    assert torch.equal(issues.neighbors, nearest(seen, given, "cosine")[issues.issues])
    others = issues.with_neighbors(embeddings, metric=metric).neighbors
    assert torch.equal(others, nearest(embeddings, given | True, metric)[issues.issues])
    assert issues.with_neighbors(embeddings, 3, metric=metric).neighbors.shape == (len(issues), 3)


def nearest(points: torch.Tensor, among: torch.Tensor, metric: str) -> torch.Tensor:
    points = torch.nn.functional.normalize(points) if metric == "cosine" else points
    distance = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    return distance.masked_fill(~among, torch.inf).argsort(dim=1)[:, :8]


def named() -> LabelIssues:
    """Six samples: two issues, one suggestion for none of the classes, one without a label."""
    return LabelIssues(
        issues=torch.tensor([2, 0]),
        score=torch.tensor([0.4, 1.0, 0.1, NAN, 0.9, 0.8], dtype=torch.float64),
        given_labels=torch.tensor([0, 1, 2, -1, 1, 0]),
        suggested_labels=torch.tensor([1, 1, -1, 2, 1, 0]),
        support=torch.tensor([0.5, 1.0, 0.75, 0.25, 1.0, 1.0], dtype=torch.float64),
        noise_rate=0.3,
        probability=torch.tensor([0.25, 1.0, 0.125, NAN, 0.9, 0.8], dtype=torch.float64),
        noise_rate_bounds=(0.1, 0.4),
        found_by="by the votes of neighbours",
        contradictions=(torch.tensor([0, 4]),),
        classes=("ant", "bee", "=fly"),
    )


def test_names_are_in_the_table() -> None:
    rows = named().rows()
    assert rows == [
        {
            "sample_id": 2, "given_label": "=fly", "suggested_label": None, "score": 0.1,
            "support": 0.75, "probability": 0.125, "contradicts": [],
        },
        {
            "sample_id": 0, "given_label": "ant", "suggested_label": "bee", "score": 0.4,
            "support": 0.5, "probability": 0.25, "contradicts": [4],
        },
        {
            "sample_id": 4, "given_label": "bee", "suggested_label": "bee", "score": 0.9,
            "support": 1.0, "probability": 0.9, "contradicts": [0],
        },
    ]  # fmt: skip
    assert named().suggestions() == [
        {"sample_id": 3, "suggested_label": "=fly", "support": 0.25},
    ]
    assert example(False).suggestions() == []


def test_the_summary_says_the_rate_and_how_it_was_found() -> None:
    lines = named().summary().splitlines()
    vague = (
        "They may be far fewer: by features that tell the classes badly right labels look wrong, "
        "too. Check some of them first."
    )
    assert lines[:5] == [
        "2 of 5 labels are most likely wrong (40.0 %).",
        "About 30.0 % of all labels are wrong (between 10.0 and 40.0 %), "
        "by the votes of neighbours.",
        vague,
        "Samples without a known label: 1, of which 1 with a suggestion.",
        "Groups of samples that are the same but have different labels: 1, with one wrong label at "
        "least in each.",
    ]
    assert lines[6].split() == ["2", "=fly", "none", "of", "these", "0.1000", "0.7500", "0.1250"]
    nearer = {"noise_rate_bounds": (0.15, 0.4)}
    few = {"noise_rate": 0.05, "noise_rate_bounds": (0.0, 0.1)}
    nothing = {"issues": torch.tensor([]).long()}
    for changes in (nearer, few, nothing):
        assert vague not in replace(named(), **changes).summary()
    unknown = replace(named(), noise_rate=NAN, noise_rate_bounds=None, found_by="")
    assert unknown.summary().splitlines()[1] == "How many are wrong in all: nothing can be said."
    nobody = replace(named(), score=torch.full((6,), NAN), issues=torch.tensor([]).long())
    assert nobody.summary(0).startswith("No label has been judged: nothing can be said.\n")
    some = replace(example(True), score=torch.tensor([0.4, NAN, 0.1]))
    assert some.summary(0).splitlines()[1:] == ["Labels that have not been judged: 1."]


def test_right_labels_that_features_tell_badly_are_said_to_be_uncertain() -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.arange(4).repeat_interleave(100)
    centers = torch.randn(4, 8, generator=generator)
    for spread, said in ((0.1, False), (1.5, True)):
        features = centers[true] + spread * torch.randn(400, 8, generator=generator)
        summary = find_label_issues(features, true).summary()
        assert ("They may be far fewer" in summary) == said, summary


def test_what_a_session_shows() -> None:
    assert len(named()) == 2
    assert repr(named()) == "LabelIssues(2 of 6, noise_rate=0.3)"
    shown = replace(named(), classes=("<b>", "bee", "fly"))._repr_html_()
    assert shown.count("<tr>") == 4
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "none of these" in shown


def test_a_data_frame() -> None:
    pytest.importorskip("pandas")
    frame = named().to_pandas()
    assert list(frame.columns) == list(named().rows()[0])
    assert frame["given_label"].tolist() == ["=fly", "ant", "bee"]
    assert len(find_label_issues(torch.eye(2), [0, 1]).to_pandas()) == 0


def test_labels_in_a_data_frame_stay_what_they_are() -> None:
    pytest.importorskip("pandas")
    large = 2**53 + 1
    some = replace(example(True), suggested_labels=torch.tensor([-1, 6, large]))
    column = some.to_pandas()["suggested_label"]
    assert column.dtype == "Int64"
    assert column[0] == large
    assert column.isna().tolist() == [False, True]
    for classes in (("ant", "bee", "fly"), (False, True, "x"), (-1, large, 2), (0.5, "b", 3)):
        column = replace(named(), classes=classes).to_pandas()["suggested_label"]
        assert column.tolist() == [None, classes[1], classes[1]]
        assert type(column[1]) is type(classes[1])
    assert example(True).to_pandas()["suggested_label"].dtype == np.int64


def test_the_table_of_names(tmp_path: Path) -> None:
    named().to_csv(tmp_path / "issues.csv")
    assert (tmp_path / "issues.csv").read_text().splitlines() == [
        "sample_id,given_label,suggested_label,score,support,probability,contradicts",
        "2,=fly,,0.1000,0.7500,0.1250,",
        "0,ant,bee,0.4000,0.5000,0.2500,4",
        "4,bee,bee,0.9000,1.0000,0.9000,0",
    ]


def test_corrected_labels() -> None:
    labels, leave_out = named().corrected_labels()
    assert labels.tolist() == ["bee", "bee", "=fly", None, "bee", "ant"]
    assert leave_out.tolist() == [2, 3]
    labels, leave_out = named().corrected_labels(min_support=0.2)
    assert labels.tolist() == ["bee", "bee", "=fly", "=fly", "bee", "ant"]
    assert leave_out.tolist() == [2]
    labels, leave_out = example(True).corrected_labels()
    assert labels.dtype == leave_out.dtype == np.int64
    assert labels.tolist() == [6, 6, 5]
    assert leave_out.tolist() == []
    labels, leave_out = example(False).corrected_labels()
    assert labels.tolist() == [5, 6, 7]
    assert leave_out.tolist() == [0, 2]
    same = replace(example(True), suggested_labels=torch.tensor([5, 6, 7]))
    assert same.corrected_labels()[1].tolist() == [0, 2]
    with pytest.raises(ValueError, match="min_support must be in"):
        named().corrected_labels(min_support=50)


@pytest.mark.parametrize("issues", [named(), example(True), example(False)])
def test_what_is_saved_is_loaded(tmp_path: Path, issues: LabelIssues) -> None:
    names = ("a\0", "\ud800", 2**80, 0.1, True, "1", 1, b"\xff")
    for each in (issues, replace(issues, classes=names, noise_rate=NAN)):
        each.save(tmp_path / "issues")
        loaded = LabelIssues.load(tmp_path / "issues")
        for name, value in vars(each).items():
            found = getattr(loaded, name)
            if isinstance(value, Tensor):
                assert value.dtype == found.dtype
            if isinstance(value, float):
                value, found = torch.tensor(value), torch.tensor(found)
            if name == "classes" and value is not None:
                assert [type(x) for x in found] == [type(x) for x in value]
            if name == "contradictions" or isinstance(value, Tensor):
                torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)
            else:
                assert found == value
    assert list(tmp_path.iterdir()) == [tmp_path / "issues"]


def test_what_is_of_numpy_is_saved(tmp_path: Path) -> None:
    embeddings, given = clear()
    told = find_label_issues(embeddings, given, noise_rate=np.float32(0.1))
    assert type(told.noise_rate) is float
    for issues in (
        told,
        replace(told, neighbors=told.neighbors.numpy()),
        replace(told, noise_rate=np.float32(0.5), noise_rate_bounds=(np.float32(0), np.int64(1))),
    ):
        issues.save(tmp_path / "issues")
        loaded = LabelIssues.load(tmp_path / "issues")
        assert torch.equal(loaded.neighbors, told.neighbors)
        assert loaded.noise_rate == issues.noise_rate
        assert loaded.noise_rate_bounds == issues.noise_rate_bounds


def test_files_that_are_no_issues(tmp_path: Path) -> None:
    path = tmp_path / "issues.npz"
    with pytest.raises(FileNotFoundError):
        LabelIssues.load(path)
    named().save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"written by LabelIssues.save, got .*issues\.npz"):
            LabelIssues.load(path)
    np.savez(path, score=np.ones(3))
    with pytest.raises(ValueError, match=r"written by LabelIssues\.save"):
        LabelIssues.load(path)
    with pytest.raises(TypeError, match="classes must be strings or numbers to be saved, got date"):
        replace(named(), classes=(np.datetime64(1, "D"),)).save(path)


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "issues"
    path.write_text("before")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    hostile = replace(named(), classes=("\ud800", "b", "c"))  # no UTF-8
    with pytest.raises(ValueError, match=r"classes must have names that UTF-8 can .* got '.ud800'"):
        hostile.to_csv(path)
    with pytest.raises(ZeroDivisionError):
        named().to_html(path, texts=lambda i: str(1 / (i - 4)))
    assert path.read_text() == "before"
    named().to_csv(tmp_path / "link")
    assert path.read_text().startswith("sample_id")
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2
    named().to_csv("/dev/null")
    with pytest.raises(FileNotFoundError):
        named().to_csv(tmp_path / "nowhere" / "issues")


@few_held_out()
@pytest.mark.parametrize("heaviest", [1e7, 1e20, 1e38, 1e39, 1e300])
def test_weights_of_any_size(heaviest: float) -> None:
    embeddings, given = clear()
    expected = find_label_issues(embeddings, given, sample_weight=np.full(600, 1e6))
    found = find_label_issues(embeddings, given, sample_weight=np.full(600, heaviest))
    assert torch.equal(found.issues, expected.issues)
    assert found.noise_rate == pytest.approx(expected.noise_rate, abs=1e-3)
    masked = np.ma.masked_array(np.ones(600), given == 0)
    with pytest.raises(ValueError, match="sample_weight must be finite, got a masked entry"):
        find_label_issues(embeddings, given, sample_weight=masked)


@few_held_out()
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbors_of_parts(metric: Any, tmp_path: Path) -> None:
    embeddings, given = clear()
    issues = find_label_issues(embeddings, given)
    expected = issues.with_neighbors(embeddings, metric=metric).neighbors
    np.save(tmp_path / "all.npy", embeddings)
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    for value in (mapped, [mapped[:50], torch.from_numpy(embeddings[50:])]):
        assert torch.equal(issues.with_neighbors(value, metric=metric).neighbors, expected)
    with pytest.raises(ValueError, match="embeddings must have 600 rows, one per sample, got 50"):
        issues.with_neighbors(embeddings[:50])
    with pytest.raises(ValueError, match="metric must be one of"):
        issues.with_neighbors(embeddings, metric="l7")


def test_embeddings_too_far_apart_for_distances_are_compared_by_directions() -> None:
    labels = torch.arange(60) % 3
    embeddings = (torch.eye(3)[labels] + 0.1 * torch.rand(60, 3)) * 2e38
    with pytest.raises(ValueError, match="embeddings must be numbers that float32 holds"):
        find_label_issues(embeddings, labels, metric="euclidean")
    found = find_label_issues(embeddings, labels)
    assert torch.equal(found.score, find_label_issues(embeddings, labels, metric="cosine").score)


def test_neighbors_of_directions_that_only_float64_tells_apart() -> None:
    features = torch.randn(40, 3).double()
    issues = find_label_issues(features, torch.arange(40) % 2, metric="cosine")
    near = replace(issues, issues=torch.arange(40)).with_neighbors(1e6 + features, k=3).neighbors
    unit = torch.nn.functional.normalize(1e6 + features)
    far = torch.cdist(unit - unit[0], unit - unit[0]).fill_diagonal_(torch.inf)
    assert torch.equal(near, far.argsort(dim=1)[:, :3])


@few_held_out()
def test_tables_of_unlike_lengths_are_refused(tmp_path: Path) -> None:
    issues = find_label_issues(torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10))
    replace(issues, given_labels=issues.given_labels[:-1]).save(tmp_path / "issues")
    with pytest.raises(ValueError, match=r"written by LabelIssues\.save"):
        LabelIssues.load(tmp_path / "issues")
