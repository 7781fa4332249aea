"""Class hierarchies: the forms they come in, what holds for every tree, text and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisydml.noise import ClassHierarchy

PETS = {"pet": {"cat": ["manx", "persian"], "dog": {"hound": {"beagle": None}}, "fish": {}}}


def paths_of(tree: ClassHierarchy) -> list[tuple[str, ...]]:
    return [tree.path(name) for name in tree.classes]


routes = st.lists(
    st.lists(st.sampled_from("abc"), min_size=0, max_size=5).map(tuple), min_size=1, max_size=30
).map(lambda found: [("top", *path, f"class {i}") for i, path in enumerate(found)])


@given(routes)
@settings(max_examples=200, deadline=None)
def test_nodes_are_in_depth_first_order(paths: list[tuple[str, ...]]) -> None:
    tree = ClassHierarchy.from_paths(paths)
    n = len(tree.names)
    assert paths_of(tree) == paths
    assert tree.parents[0] == -1
    assert (tree.parents[1:] < np.arange(1, n)).all()
    for node in range(n):
        below = {node}
        for other in range(node + 1, n):
            if int(tree.parents[other]) in below:
                below.add(other)
        assert below == set(range(node, tree.ends[node]))
    assert set(tree.leaves) == set(range(n)) - set(tree.parents)
    assert tree.depth == max(map(len, paths)) - 1
    assert tree.depths()[tree.leaves].tolist() == [len(path) - 1 for path in paths]


@given(routes)
@settings(max_examples=200, deadline=None)
def test_fold(paths: list[tuple[str, ...]]) -> None:
    tree = ClassHierarchy.from_paths(paths, classes=[path[-1] for path in paths])
    folded = tree.fold()
    assert folded.classes == tree.classes
    n_children = np.bincount(folded.parents[1:], minlength=len(folded.names))
    inner = np.flatnonzero(n_children)
    assert (n_children[inner] > 1).all() or len(folded.classes) == 1
    assert folded.names[0] == tree.names[0]
    for name in tree.classes:
        steps = iter(tree.path(name))
        assert all(step in steps for step in folded.path(name))  # in the order of the long path
    assert folded.fold().names == folded.names
    # Who shares the first branching ancestor stays the same.
    assert groups(folded) == groups(tree)


def groups(tree: ClassHierarchy) -> set[frozenset[str]]:
    """The classes below each node that branches."""
    names = np.array(tree.classes)
    found = set()
    for node in range(len(tree.names)):
        inside = (tree.leaves >= node) & (tree.leaves < tree.ends[node])
        if inside.sum() > 1:
            found.add(frozenset(names[inside].tolist()))
    return found


@given(routes, st.data())
@settings(max_examples=100, deadline=None)
def test_restrict(paths: list[tuple[str, ...]], data: st.DataObject) -> None:
    tree = ClassHierarchy.from_paths(paths)
    some = data.draw(
        st.lists(st.integers(0, len(paths) - 1), min_size=1, unique=True), label="classes"
    )
    part = tree.restrict(some)
    assert part.classes == tuple(tree.classes[i] for i in some)
    assert paths_of(part) == [paths[i] for i in some]
    whole = ClassHierarchy.from_paths([paths[i] for i in some])
    assert sorted(part.names) == sorted(whole.names)


def test_all_forms_give_the_same_tree() -> None:
    by_dict = ClassHierarchy.from_dict(PETS)
    by_paths = ClassHierarchy.from_paths(
        ["pet/cat/manx", "pet/cat/persian", "pet/dog/hound/beagle", "pet/fish"],
        classes=["manx", "persian", "beagle", "fish"],
    )
    by_parents = ClassHierarchy.from_parents(
        [
            ("cat", "pet"),
            ("manx", "cat"),
            ("persian", "cat"),
            ("dog", "pet"),
            ("hound", "dog"),
            ("beagle", "hound"),
            ("fish", "pet"),
        ]
    )
    for tree in (by_paths, by_parents):
        assert tree.classes == by_dict.classes == ("manx", "persian", "beagle", "fish")
        assert tree.names == by_dict.names
        assert np.array_equal(tree.parents, by_dict.parents)
        assert np.array_equal(tree.leaves, by_dict.leaves)
    assert repr(by_dict) == "ClassHierarchy(4 classes, 8 nodes, depth 3)"


def test_classes_choose_and_order_the_labels() -> None:
    wanted = ["fish", "manx"]
    by_dict = ClassHierarchy.from_dict(PETS, classes=wanted)
    by_parents = ClassHierarchy.from_parents(
        [("manx", "cat"), ("cat", "pet"), ("fish", "pet"), ("dog", "pet")], classes=wanted
    )
    for tree in (by_dict, by_parents):
        assert tree.classes == ("fish", "manx")
        assert paths_of(tree) == [("pet", "fish"), ("pet", "cat", "manx")]
        assert "dog" not in tree.names


def test_a_root_is_added_only_where_there_is_none() -> None:
    assert ClassHierarchy.from_paths(["a/b", "a/c"]).names[0] == "a"
    assert ClassHierarchy.from_paths(["a/b", "c/d"]).names[0] == "root"
    assert ClassHierarchy.from_paths(["b", "c"]).path("b") == ("root", "b")
    assert ClassHierarchy.from_dict({"a": ["b"], "c": ["d"]}).path("d") == ("root", "c", "d")


def test_names_of_nodes_may_repeat() -> None:
    tree = ClassHierarchy.from_paths(["Greek/character01", "Latin/character01"])
    assert tree.classes == ("Greek/character01", "Latin/character01")
    assert len(tree.names) == 5
    assert ClassHierarchy.from_paths(["a|b", "a|c"], sep="|").path("a|c") == ("a", "c")


def test_categories() -> None:
    tree = ClassHierarchy.from_categories([3, 1, 3], classes=["x", "y", "z"])
    assert paths_of(tree) == [("root", "3", "x"), ("root", "1", "y"), ("root", "3", "z")]
    one = ClassHierarchy.from_categories(["lamp", "lamp"])
    assert paths_of(one) == [("lamp", "0"), ("lamp", "1")]


def test_one_class() -> None:
    tree = ClassHierarchy.from_paths(["a/b/c"])
    assert paths_of(tree) == [("a", "b", "c")]
    assert tree.fold().names == ("a", "c")
    assert ClassHierarchy.from_dict({"a": None}).path("a") == ("root", "a")


def test_fold_of_a_root_with_an_only_child() -> None:
    tree = ClassHierarchy.from_dict({"thing": {"animal": {"bird": ["owl", "crane"]}}})
    assert tree.fold().names == ("thing", "owl", "crane")


def test_many_classes() -> None:
    """No recursion, no square of anything."""
    deep = ClassHierarchy.from_paths(["/".join(["x"] * 3000) + f"/{i}" for i in range(2)])
    assert deep.depth == 3000
    assert len(deep.fold().names) == 3


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ClassHierarchy.from_parents([]), ValueError, "pairs must have at least one pair"),
    (
        lambda: ClassHierarchy.from_parents(["ab"]),  # type: ignore[list-item]
        TypeError,
        r"pairs must hold pairs \(child, parent\) of strings, got 'ab'",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", 1)]),  # type: ignore[list-item]
        TypeError,
        "pairs must hold pairs",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b"), ("a", "c")]),
        ValueError,
        "pairs must name one parent a child, got 'b' and 'c' for 'a'",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b"), ("b", "a")]),
        ValueError,
        "pairs must form a tree, got a cycle",
    ),
    (
        lambda: ClassHierarchy.from_parents([("x", "a"), ("a", "b"), ("b", "a")]),
        ValueError,
        "classes must have one common root, got a cycle",
    ),
    (
        lambda: ClassHierarchy.from_parents([("x", "a"), ("a", "b"), ("b", "a"), ("y", "r")]),
        ValueError,
        "classes must have one common root, got a cycle above 'x'",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b"), ("c", "d")]),
        ValueError,
        "classes must have one common root, got 'b', 'd'",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b"), ("b", "c")], ["b"]),
        ValueError,
        "classes must be leaves, got 'b', which has children; give the class a leaf of its own",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b")], ["z"]),
        ValueError,
        "classes must be in pairs, got 'z'",
    ),
    (
        lambda: ClassHierarchy.from_parents([("a", "b")], ["a", "a"]),
        ValueError,
        "classes must all differ, got 'a' twice",
    ),
    (lambda: ClassHierarchy.from_dict([]), TypeError, "tree must be a dictionary, got list"),  # type: ignore[arg-type]
    (lambda: ClassHierarchy.from_dict({}), ValueError, "at least one class, got none"),
    (
        lambda: ClassHierarchy.from_dict({"a": {"b": 3}}),
        TypeError,
        "tree must hold dictionaries, lists or None, got int below a/b",
    ),
    (
        lambda: ClassHierarchy.from_dict({"a": "b"}),
        TypeError,
        "tree must hold dictionaries, lists or None, got str below a",
    ),
    (lambda: ClassHierarchy.from_dict({"a": [1]}), TypeError, r"paths must hold strings"),
    (
        lambda: ClassHierarchy.from_dict({"a": ["x"], "b": ["x"]}),
        ValueError,
        "classes must all differ, got 'x' twice",
    ),
    (
        lambda: ClassHierarchy.from_dict({"a": ["x"], "b": ["x"]}, ["x"]),
        ValueError,
        "tree must have leaves of different names; use from_paths",
    ),
    (
        lambda: ClassHierarchy.from_dict({"a": ["x"]}, ["a"]),
        ValueError,
        "classes must be leaves of the tree, got 'a'",
    ),
    (lambda: ClassHierarchy.from_paths("a/b"), TypeError, "paths must be a sequence, got str"),
    (lambda: ClassHierarchy.from_paths([1, 2]), TypeError, "paths must hold strings or sequences"),
    (lambda: ClassHierarchy.from_categories(5), TypeError, "categories must be a sequence, got i"),
    (
        lambda: ClassHierarchy.from_categories(["l", "m"], [10, 11]),  # type: ignore[list-item]
        TypeError,
        "classes must hold strings, got 10",
    ),
    (
        lambda: ClassHierarchy.from_parents([("x", "y")], []),
        ValueError,
        "classes must have at least one name, got none",
    ),
    (lambda: ClassHierarchy.from_paths([]), ValueError, "at least one class, got none"),
    (lambda: ClassHierarchy.from_paths([()]), ValueError, "at least one name each"),
    (lambda: ClassHierarchy.from_paths([(1, 2)]), TypeError, r"paths must hold strings, got \(1"),  # type: ignore[list-item]
    (
        lambda: ClassHierarchy.from_paths(["a/b", "a/b/c"]),
        ValueError,
        "paths must end in leaves, got 'a/b', which other paths lead through",
    ),
    (lambda: ClassHierarchy.from_paths(["a/b", "a/b"]), ValueError, "got 'a/b' twice"),
    (
        lambda: ClassHierarchy.from_paths(["a/b"], ["x", "y"]),
        ValueError,
        "classes must have 1 names, one per path, got 2",
    ),
    (
        lambda: ClassHierarchy.from_categories(["a"], ["x", "y"]),
        ValueError,
        "classes must have 1 names, one per category, got 2",
    ),
    (lambda: ClassHierarchy.from_categories([]), ValueError, "at least one class, got none"),
    (lambda: ClassHierarchy.from_dict(PETS).path("cat"), ValueError, "name must be one of the cl"),
    (lambda: ClassHierarchy.from_dict(PETS).restrict([]), ValueError, "at least one class"),
    (lambda: ClassHierarchy.from_dict(PETS).restrict([0, 0]), ValueError, "'manx' twice"),
    (lambda: ClassHierarchy.from_dict(PETS).restrict([4]), ValueError, r"must be in \[0, 4\)"),
    (lambda: ClassHierarchy.from_dict(PETS).restrict([-1]), ValueError, r"must be in \[0, 4\)"),
    (lambda: ClassHierarchy.from_dict(PETS).restrict(["manx"]), TypeError, "hold integers"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_same_class_on_two_paths_is_refused() -> None:
    with pytest.raises(ValueError, match="paths must all differ, got 'a/b' twice"):
        ClassHierarchy.from_paths(["a/b", "a/b"], classes=["x", "y"])


FAMILY = ClassHierarchy.from_paths(
    ["pet/cat/long hair/persian", "pet/cat/manx", "pet/dog/beagle", "pet/fish"],
    classes=["persian", "manx", "beagle", "fish"],
)


def test_render() -> None:
    assert FAMILY.render() == "\n".join(
        ["pet", "├── cat", "│   ├── persian", "│   └── manx", "├── beagle", "└── fish"]
    )


def test_render_unfolded() -> None:
    assert FAMILY.render(fold=False) == "\n".join(
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
    assert FAMILY.render(classes=False) == "pet (2)\n└── cat (2)"


def test_render_of_one_class() -> None:
    assert ClassHierarchy.from_paths(["a/b"]).render() == "a\n└── b"


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ax = FAMILY.plot()
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(at) == {"pet", "cat", "persian", "manx", "beagle", "fish"}
    assert at["pet"][0] < at["cat"][0] < at["manx"][0]
    assert at["persian"][1] > at["cat"][1] > at["manx"][1] > at["beagle"][1] > at["fish"][1]
    ax.figure.canvas.draw()
    pyplot.close(ax.figure)

    figure, own = pyplot.subplots()
    assert FAMILY.plot(own, classes=False, fold=False) is own
    assert {text.get_text() for text in own.texts} == {
        "pet (1)",
        "cat (1)",
        "long hair (1)",
        "dog (1)",
    }
    pyplot.close(figure)


def test_categories_that_are_none() -> None:
    for value in ({"sofa_1": "sofa", "mug_1": "mug"}, {"sofa", "mug"}):
        with pytest.raises(TypeError, match="categories must be a sequence"):
            ClassHierarchy.from_categories(value)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="paths must be a sequence"):
            ClassHierarchy.from_paths(value)  # type: ignore[arg-type]
    for kind in (np.array, pd.Series, list):
        for values in ([0, 1, 0], [0.0, 1.0, 0.0], ["a", "b", "a"]):
            tree = ClassHierarchy.from_categories(kind(values))  # type: ignore[operator]
            assert repr(tree) == "ClassHierarchy(3 classes, 6 nodes, depth 2)"
    for missing in (None, float("nan"), np.float32("nan"), pd.NA, pd.NaT):
        with pytest.raises(ValueError, match="categories must not be missing"):
            ClassHierarchy.from_categories(["sofa", missing, missing])
    for paths in (["a/x", ""], ["a//x", "a/y"]):
        with pytest.raises(ValueError, match="paths must not have empty names"):
            ClassHierarchy.from_paths(paths)


def test_names_may_hold_what_separates_paths() -> None:
    tree = ClassHierarchy.from_categories(["car", "car/SUV"], ["SUV/X5", "X5"])
    assert tree.classes == ("SUV/X5", "X5")
