"""Semantic noise: against the paper's walk, sample by sample."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisydml.noise import ClassHierarchy, semantic

# Uneven depths, single children, a root with a class of its own and one that is a chain.
PATHS = [
    "bird/owl/barn owl",
    "bird/owl/snowy owl",
    "bird/finch/true finch/goldfinch",
    "bird/finch/true finch/siskin",
    "bird/finch/true finch/chaffinch",
    "bird/finch/bunting/snow bunting",
    "bird/crane",
    "bird/water bird/duck/mallard",
    "bird/water bird/duck/sea duck/eider",
    "bird/parrot/macaw/blue macaw",
]
TREE = ClassHierarchy.from_paths(PATHS)


class Node:
    """A node with pointers, to walk on as the paper says."""

    def __init__(self, name: str, parent: Node | None) -> None:
        self.name, self.parent = name, parent
        self.children: list[Node] = []


def grow(paths: list[str]) -> dict[str, Node]:
    """The taxonomy of these classes, and no others, by the path to each node."""
    nodes: dict[str, Node] = {}
    for path in paths:
        steps = path.split("/")
        for depth in range(1, len(steps) + 1):
            name, above = "/".join(steps[:depth]), "/".join(steps[: depth - 1])
            if name not in nodes:
                nodes[name] = Node(name, nodes.get(above))
                if above:
                    nodes[above].children.append(nodes[name])
    return nodes


def leaves(node: Node) -> list[str]:
    if not node.children:
        return [node.name]
    return [name for child in node.children for name in leaves(child)]


def literal(nodes: dict[str, Node], path: str, rng: np.random.Generator) -> str:
    """Section 3.6, one sample: up to a node with several children, down another of them."""
    came_from, node = nodes[path], nodes[path].parent
    assert node is not None
    while len(node.children) == 1:
        came_from, node = node, node.parent
        assert node is not None
    others = [child for child in node.children if child is not came_from]
    below = leaves(others[rng.integers(len(others))])
    return below[rng.integers(len(below))]


def probabilities(nodes: dict[str, Node], path: str) -> dict[str, float]:
    """The same walk, with all its outcomes."""
    came_from, node = nodes[path], nodes[path].parent
    assert node is not None
    while len(node.children) == 1:
        came_from, node = node, node.parent
        assert node is not None
    others = [child for child in node.children if child is not came_from]
    found: Counter[str] = Counter()
    for child in others:
        for leaf in leaves(child):
            found[leaf] += 1 / len(others) / len(leaves(child))
    return dict(found)


@pytest.mark.parametrize("present", [range(10), range(1, 10), [0, 2, 5, 9], [3, 4, 8], [6, 7]])
def test_distribution_is_that_of_the_walk(present: list[int]) -> None:
    labels = np.tile(np.array(present), 4000)
    noisy = semantic(labels, 1.0, TREE, seed=3)
    nodes = grow([PATHS[i] for i in present])
    rng = np.random.default_rng(0)
    for i in present:
        drawn = Counter(PATHS[j] for j in noisy.labels[labels == i])
        expected = probabilities(nodes, PATHS[i])
        assert set(drawn) == set(expected)
        walked = Counter(literal(nodes, PATHS[i], rng) for _ in range(4000))
        if len(expected) > 1:
            order = sorted(expected)
            counts = [drawn[name] for name in order]
            goal = [4000 * expected[name] for name in order]
            assert stats.chisquare(counts, goal).pvalue > 1e-3
            table = [counts, [walked[name] for name in order]]
            assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_worked_example() -> None:
    """A mallard becomes an eider; an owl the other owl; a bunting any true finch."""
    rows = semantic(np.tile(np.arange(10), 3000), 1.0, TREE).transition_matrix()
    assert rows[7, 8] == 1
    assert rows[0, 1] == 1
    np.testing.assert_allclose(rows[5], [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0, 0], atol=0.05)
    # The crane's siblings are owl, finch, water bird and parrot: a quarter each.
    quarter = rows[6]
    for group in ([0, 1], [2, 3, 4, 5], [7, 8], [9]):
        assert abs(quarter[group].sum() - 0.25) < 0.04


@given(
    paths=st.lists(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(tuple),
        min_size=2,
        max_size=25,
        unique=True,
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_no_label_leaves_its_subtree(paths: list[tuple[str, ...]], seed: int) -> None:
    """The wrong class is below the first ancestor that branches, and in another branch of it."""
    routes = [(*path, f"class {i}") for i, path in enumerate(paths)]
    tree = ClassHierarchy.from_paths(routes)
    labels = np.repeat(np.arange(len(paths)), 3)
    noisy = semantic(labels, 1.0, tree, seed=seed)
    nodes = grow(["/".join(tree.path(name)) for name in tree.classes])
    for original, given_label in zip(labels, noisy.labels, strict=True):
        outcomes = probabilities(nodes, "/".join(tree.path(tree.classes[original])))
        assert "/".join(tree.path(tree.classes[given_label])) in outcomes


def test_categories() -> None:
    """Stanford Online Products: any other class of the category."""
    categories = ["sofa"] * 3 + ["lamp"] * 2 + ["fan"] * 4
    noisy = semantic(np.tile(np.arange(9), 3000), 0.6, ClassHierarchy.from_categories(categories))
    counts = noisy.transition_matrix(counts=True)
    for i in range(9):
        inside = [j for j in range(9) if categories[j] == categories[i] and j != i]
        assert counts[i, inside].sum() == 1800
        if len(inside) > 1:
            assert stats.chisquare(counts[i, inside]).pvalue > 1e-3


def test_a_group_of_one_class_looks_further_up() -> None:
    tree = ClassHierarchy.from_paths(["pet/cat/manx", "pet/fish/koi", "car/sedan"])
    rows = semantic(np.tile([0, 1, 2], 50), 1.0, tree).transition_matrix()
    assert rows[0, 1] == 1
    assert rows[1, 0] == 1
    assert rows[2, 2] == 0


def test_folding_changes_nothing() -> None:
    labels = np.tile(np.arange(10), 20)
    before, after = (semantic(labels, 0.5, tree, seed=2) for tree in (TREE, TREE.fold()))
    assert np.array_equal(before.labels, after.labels)


def test_labels_keep_the_numbers_of_the_hierarchy() -> None:
    noisy = semantic([3, 3, 4, 4], 0.5, TREE)
    assert set(noisy.labels) == {3, 4}


@pytest.mark.parametrize("label", [-2, 10])
def test_refuses_labels_outside_the_hierarchy(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\), the classes of the hier"):
        semantic([0, label], 0.5, TREE)


def test_refuses_what_is_no_hierarchy() -> None:
    with pytest.raises(TypeError, match="hierarchy must be a ClassHierarchy, got dict"):
        semantic([0, 1], 0.5, {"a": ["b"]})  # type: ignore[arg-type]


def test_frozen() -> None:
    assert (
        "".join(map(str, semantic(np.arange(20) % 10, 0.5, TREE, seed=7).labels))
        == "01222517861033436879"
    )
