"""Figures: what is drawn is what was given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

import noisydml
from noisydml import Decision, LabelIssues, plot
from noisydml.audit.pictures import png

mpl.use("Agg")

SCORES = torch.tensor([0.1, 0.2, 0.25, 0.8, 0.9, 1.0])
WRONG = torch.tensor([1, 1, 0, 0, 0, 0]).bool()


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    plt.close("all")  # those of the docstrings, which run in the same process
    yield
    plt.close("all")


def decision(**parts: Any) -> Decision:
    return Decision(keep=SCORES > 0.5, weight=(SCORES > 0.5).float(), **parts)


def bars(ax: Any) -> list[list[float]]:
    return [[bar.get_height() for bar in container] for container in ax.containers]


def words(ax: Any) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def issues(suggestions: bool = True) -> LabelIssues:
    given = torch.tensor([0, 1, 2, 0])
    return LabelIssues(
        torch.tensor([2, 0, 1]),
        torch.tensor([0.25, 0.3, 0.1, float("nan")]).double(),
        given,
        (given + 1) % 3 if suggestions else None,
        torch.ones(4) if suggestions else None,
        0.75,
    )


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, torch.Tensor.bfloat16])
def test_histogram_of_numbers(kind: Any) -> None:
    values = kind(SCORES if kind is torch.Tensor.bfloat16 else SCORES.tolist())
    figure, own = plt.subplots()
    ax = plot.score_histogram(values, bins=3, ax=own)
    assert ax is own
    assert bars(ax) == [[3, 0, 3]]
    assert not ax.get_lines()
    assert words(ax) == []
    assert plt.get_fignums() == [figure.number]


def test_histogram_of_a_decision() -> None:
    ax = plot.score_histogram(
        decision(score=SCORES, threshold=torch.tensor(0.5)), is_noisy=WRONG, bins=3
    )
    assert bars(ax) == [[1, 0, 3], [2, 0, 0]]
    assert list(ax.get_lines()[0].get_xdata()) == [0.5, 0.5]
    assert words(ax) == ["right labels", "wrong labels", "threshold 0.5"]
    ax = plot.score_histogram(decision(score=SCORES, threshold=torch.tensor(0.5)), threshold=0.75)
    assert list(ax.get_lines()[0].get_xdata()) == [0.75, 0.75]
    ax = plot.score_histogram(decision(score=SCORES, threshold=torch.tensor(-torch.inf)))
    assert not ax.get_lines()


def test_histogram_of_issues() -> None:
    """The one that was never judged is left out."""
    assert bars(plot.score_histogram(issues(), bins=2)) == [[1, 2]]


def test_bad_scores() -> None:
    with pytest.raises(ValueError, match="scores must be a decision that has some"):
        plot.score_histogram(decision())
    with pytest.raises(ValueError, match=r"scores must have 1 dimension, got shape \(2, 2\)"):
        plot.score_histogram(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"is_noisy must have shape \(6,\), got \(5,\)"):
        plot.score_histogram(SCORES, is_noisy=WRONG[:5])
    with pytest.raises(ValueError, match="bins"):
        plot.score_histogram(SCORES, bins=0)
    assert plt.get_fignums() == []


def test_noise_rate() -> None:
    rates = [None, 0.5, torch.tensor(0.25), decision(), decision(noise_rate=torch.tensor(0.125))]
    ax = plot.noise_rate(rates, true_rate=0.2, label="PRISM")
    curve, line = ax.get_lines()
    assert list(curve.get_xdata()) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(curve.get_ydata(), [np.nan, 0.5, 0.25, np.nan, 0.125])
    assert list(line.get_ydata()) == [0.2, 0.2]
    assert words(ax) == ["PRISM", "true rate"]
    assert plot.noise_rate([0.1], ax=ax) is ax
    assert len(ax.get_lines()) == 3
    assert words(plot.noise_rate([0.1])) == []


def test_contact_sheet(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    sheet = plot.contact_sheet(issues(), pictures, rows=2, columns=2, title="Look")
    assert [axis.get_title() for axis in sheet.axes] == ["2 → 0?", "0 → 1?", "1 → 2?", ""]
    shown = [axis.get_images() for axis in sheet.axes]
    assert [len(images) for images in shown] == [1, 1, 1, 0]
    for (image,), i in zip(shown, (2, 0, 1), strict=False):
        assert np.array_equal(image.get_array(), pictures[i])
    assert sheet.get_suptitle() == "Look"

    for i, picture in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(png(picture))
    sheet = plot.contact_sheet(
        issues(suggestions=False),
        lambda i: tmp_path / f"{i}.png",
        class_names=iter("abc"),
        rows=1,
        columns=2,
    )
    assert [axis.get_title() for axis in sheet.axes] == ["c?", "a?"]
    image = sheet.axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image[:, :, :3] * 255, pictures[2], atol=1e-3)

    floats = plot.contact_sheet(issues(), pictures / 255, rows=1, columns=1)
    assert np.array_equal(floats.axes[0].get_images()[0].get_array(), pictures[2])
    named = replace(issues(), classes=("ant", "bee", "fly"))
    assert plot.contact_sheet(named, pictures).axes[0].get_title() == "fly → ant?"
    with pytest.raises(ValueError, match="images that are floats must be in"):
        plot.contact_sheet(issues(), pictures / 2.0)
    with pytest.raises(ValueError, match="images must have 4 entries"):
        plot.contact_sheet(issues(), pictures[:3])
    with pytest.raises(ValueError, match="class_names must name every label, got none for 2"):
        plot.contact_sheet(issues(), pictures, class_names={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="columns"):
        plot.contact_sheet(issues(), pictures, columns=0)


def test_hierarchy_is_that_of_the_tree() -> None:
    tree = noisydml.noise.ClassHierarchy.from_dict({"animal": ["cat", "dog"], "car": None})
    figure, (left, right) = plt.subplots(1, 2)
    assert plot.hierarchy(tree, classes=False, ax=left) is left
    tree.plot(right, classes=False)
    texts = [[text.get_text() for text in ax.texts] for ax in (left, right)]
    assert texts[0] == texts[1] != []
    assert plt.get_fignums() == [figure.number]


WITHOUT = """
import sys
import noisydml
assert "matplotlib" not in sys.modules
from noisydml import plot
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
tree = noisydml.noise.ClassHierarchy.from_dict({"a": ["b", "c"]})
for draw in (lambda: plot.score_histogram([1.0]), lambda: plot.hierarchy(tree), tree.plot):
    try:
        draw()
    except ImportError as error:
        wanted = 'needs matplotlib: pip install ".[plot]" in a clone of noisydml, or pip install m'
        assert wanted in str(error), error
    else:
        raise AssertionError
"""


@pytest.mark.slow
def test_matplotlib_is_imported_when_used() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


@pytest.mark.parametrize("scores", [[1.0, 1 - 1e-15], [1e17] * 5, [0.0] * 3])
def test_scores_that_are_equal_but_for_rounding(scores: list[float]) -> None:
    bars = plot.score_histogram(torch.tensor(scores, dtype=torch.float64)).containers[0]
    assert sum(bar.get_height() for bar in bars) == len(scores)


def test_what_cannot_be_drawn_is_refused_by_name() -> None:
    scores = torch.tensor([0.1, 0.5, 0.9])
    for mask in (["False", "False", "True"], [2, 7, 0], [0.5, 1, 0]):
        with pytest.raises(ValueError, match="is_noisy must hold bools"):
            plot.score_histogram(scores, is_noisy=mask)
    plot.score_histogram(scores, is_noisy=[1, 0, 0])
    with pytest.raises(TypeError, match="issues must be LabelIssues, got Tensor"):
        plot.contact_sheet(torch.arange(3), np.zeros((3, 8, 8), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tree must be a ClassHierarchy, as"):
        plot.hierarchy({"a": [0, 1]})  # type: ignore[arg-type]
