"""The nodes of a class hierarchy, from the forms in which hierarchies come."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from noisydml.noise.checks import Integers
from noisydml.noise.wordnet import WordNetMatches


class Nodes(NamedTuple):
    """A tree whose nodes are in any order, not yet checked.

    Args:
        names: (V,) names of the nodes.
        parents: (V,) node above each node, -1 for a root.
        classes: (C,) names of the classes.
        leaves: (C,) node of each class.
    """

    names: Sequence[str]
    parents: Sequence[int]
    classes: Sequence[str]
    leaves: Sequence[int]


def of_parents(pairs: Iterable[tuple[str, str]], classes: Sequence[str] | None) -> Nodes:
    """From pairs (child, parent); the classes are leaves, all of them by default."""
    parent_of: dict[str, str] = {}
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            raise TypeError(f"pairs must hold pairs (child, parent) of strings, got {pair!r}")
        child, parent = pair
        if parent_of.setdefault(child, parent) != parent:
            raise ValueError(
                f"pairs must name one parent a child, got {parent_of[child]!r} and {parent!r} "
                f"for {child!r}"
            )
    if not parent_of:
        raise ValueError("pairs must have at least one pair, got none")
    names = list(dict.fromkeys(name for pair in parent_of.items() for name in pair))
    node = {name: i for i, name in enumerate(names)}
    parents = [node[parent_of[name]] if name in parent_of else -1 for name in names]
    inner = set(parent_of.values())
    if classes is None:
        classes = [name for name in names if name not in inner]
    for name in classes:
        if name not in node:
            raise ValueError(f"classes must be in pairs, got {name!r}")
        if name in inner:
            raise ValueError(
                f"classes must be leaves, got {name!r}, which has children; give the class a "
                f"leaf of its own below {name!r}"
            )
    if not classes:
        raise ValueError(f"pairs must form a tree, got a cycle at {names[0]!r}")
    return Nodes(names, parents, classes, [node[name] for name in classes])


def leaf_paths(tree: Mapping[str, Any], classes: Sequence[str] | None) -> list[tuple[str, ...]]:
    """The path to each class of nested dictionaries; all leaves by default."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"tree must be a dictionary, got {type(tree).__name__}")
    paths: list[tuple[str, ...]] = []
    todo: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while todo:
        path, children = todo.pop()
        if path and (children is None or (_is_group(children) and not children)):
            paths.append(path)
            continue
        if not _is_group(children):
            raise TypeError(
                "tree must hold dictionaries, lists or None, got "
                f"{type(children).__name__}{' below ' + '/'.join(path) if path else ''}"
            )
        below = children.items() if isinstance(children, Mapping) else ((c, None) for c in children)
        todo += [((*path, name), grandchildren) for name, grandchildren in reversed(list(below))]
    if classes is None:
        return paths
    leaf = {path[-1]: path for path in paths}
    for name in classes:
        if name not in leaf:
            raise ValueError(f"classes must be leaves of the tree, got {name!r}")
    if len(leaf) < len(paths):
        raise ValueError("tree must have leaves of different names; use from_paths")
    return [leaf[name] for name in classes]


def of_paths(
    paths: Sequence[str | Sequence[str]], classes: Sequence[str] | None, sep: str
) -> Nodes:
    """From the path to each class, strings or sequences of names."""
    if isinstance(paths, str):
        raise TypeError("paths must be a sequence of paths, got str")
    routes = [tuple(path.split(sep)) if isinstance(path, str) else tuple(path) for path in paths]
    for route in routes:
        if not route:
            raise ValueError("paths must have at least one name each, got an empty path")
        if not all(isinstance(name, str) for name in route):
            raise TypeError(f"paths must hold strings, got {route!r}")
    classes = [sep.join(route) for route in routes] if classes is None else classes
    require_length(classes, len(routes), "path")
    require_different("classes", classes)
    require_different("paths", [sep.join(route) for route in routes])
    if len({route[0] for route in routes}) > 1 or any(len(route) == 1 for route in routes):
        routes = [("root", *route) for route in routes]

    node: dict[tuple[str, ...], int] = {}
    parents: list[int] = []
    for route in routes:
        for depth in range(1, len(route) + 1):
            if route[:depth] not in node:
                node[route[:depth]] = len(parents)
                parents.append(node[route[: depth - 1]] if depth > 1 else -1)
    inner = set(parents)
    for route in routes:
        if node[route] in inner:
            raise ValueError(
                f"paths must end in leaves, got {sep.join(route)!r}, which other paths lead "
                "through; give the class a leaf of its own there"
            )
    return Nodes([route[-1] for route in node], parents, classes, [node[r] for r in routes])


def of_matches(found: WordNetMatches) -> Nodes:
    """From the synsets found for the names: a leaf for every name below its synset."""
    place = {found.root: 0}
    names, parents, leaves = [found.label(found.root)], [-1], []
    for match in found.matches:
        parent = 0
        for synset in found.path(match)[1:]:
            if synset not in place:
                place[synset] = len(names)
                names.append(found.label(synset))
                parents.append(parent)
            parent = place[synset]
        leaves.append(len(names))
        names.append(match.name)
        parents.append(parent)
    return Nodes(names, parents, [match.name for match in found.matches], leaves)


def require_length(classes: Sequence[str], length: int, per: str) -> None:
    """Raise unless there is a name for every class."""
    if len(classes) != length:
        raise ValueError(f"classes must have {length} names, one per {per}, got {len(classes)}")


def require_different(argument: str, names: Sequence[str]) -> None:
    """Raise if a name is there twice."""
    if len(set(names)) < len(names):
        twice = next(a for a, b in itertools.pairwise(sorted(names)) if a == b)
        raise ValueError(f"{argument} must all differ, got {twice!r} twice")


def depth_first(tree: Nodes) -> tuple[list[int], Integers, Integers]:
    """Check the tree and number its nodes, without those that lead to no class.

    Returns:
        The nodes in depth-first order, the new number of the parent of each, -1 for the root, and
        one more than the new number of the last node below each.
    """
    if not len(tree.classes):
        raise ValueError("classes must have at least one class, got none")
    require_different("classes", tree.classes)
    children, roots = _children(tree)
    if len(roots) != 1:
        found = ", ".join(repr(tree.names[node]) for node in roots[:5]) or "a cycle"
        raise ValueError(f"classes must have one common root, got {found}")
    order: list[int] = []
    todo = roots
    while todo:
        node = todo.pop()
        order.append(node)
        todo += reversed(children[node])
    place = {node: i for i, node in enumerate(order)}
    lost = [name for name, leaf in zip(tree.classes, tree.leaves, strict=True) if leaf not in place]
    if lost:
        raise ValueError(f"classes must have one common root, got a cycle above {lost[0]!r}")
    parents = [place.get(tree.parents[node], -1) for node in order]
    ends = list(range(1, len(order) + 1))
    for i in range(len(order) - 1, 0, -1):
        ends[parents[i]] = max(ends[parents[i]], ends[i])
    return order, np.array(parents, dtype=np.int64), np.array(ends, dtype=np.int64)


def _children(tree: Nodes) -> tuple[list[list[int]], list[int]]:
    """The children of each node, and the roots, of nodes that lead to a class."""
    needed = [False] * len(tree.names)
    for leaf in tree.leaves:
        node = leaf
        while node >= 0 and not needed[node]:
            needed[node] = True
            node = tree.parents[node]
    children: list[list[int]] = [[] for _ in tree.names]
    roots: list[int] = []
    for node, parent in enumerate(tree.parents):
        if needed[node]:
            (children[parent] if parent >= 0 else roots).append(node)
    return children, roots


def _is_group(children: object) -> bool:
    return isinstance(children, (Mapping, Sequence)) and not isinstance(children, str)
