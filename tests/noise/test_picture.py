"""Hierarchies as text and as pictures."""

from __future__ import annotations

import pytest

from noisydml.noise import ClassHierarchy

TREE = ClassHierarchy.from_paths(
    ["pet/cat/long hair/persian", "pet/cat/manx", "pet/dog/beagle", "pet/fish"],
    classes=["persian", "manx", "beagle", "fish"],
)


def test_render() -> None:
    assert TREE.render() == "\n".join(
        ["pet", "├── cat", "│   ├── persian", "│   └── manx", "├── beagle", "└── fish"]
    )


def test_render_unfolded() -> None:
    assert TREE.render(fold=False) == "\n".join(
        [
            "pet",
            "├── cat",
            "│   ├── long hair",
            "│   │   └── persian",
            "│   └── manx",
            "├── dog",
            "│   └── beagle",
            "└── fish",
        ]
    )


def test_render_without_classes() -> None:
    assert TREE.render(classes=False) == "pet (2)\n└── cat (2)"


def test_render_of_one_class() -> None:
    assert ClassHierarchy.from_paths(["a/b"]).render() == "a\n└── b"


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ax = TREE.plot()
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(at) == {"pet", "cat", "persian", "manx", "beagle", "fish"}
    assert at["pet"][0] < at["cat"][0] < at["manx"][0]
    assert at["persian"][1] > at["cat"][1] > at["manx"][1] > at["beagle"][1] > at["fish"][1]
    ax.figure.canvas.draw()
    pyplot.close(ax.figure)

    figure, own = pyplot.subplots()
    assert TREE.plot(own, classes=False, fold=False) is own
    assert {text.get_text() for text in own.texts} == {
        "pet (1)",
        "cat (1)",
        "long hair (1)",
        "dog (1)",
    }
    pyplot.close(figure)
