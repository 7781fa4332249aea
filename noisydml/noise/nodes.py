"""Trees of named nodes: from the forms in which hierarchies come, and numbered depth first.

A tree is the names of its nodes, the parent of each (-1 for the root), the names of its classes
and the node of each class.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from noisydml.noise.random import Integers

Step = TypeVar("Step", bound=Hashable)
Tree = tuple[Sequence[str], Sequence[int], Sequence[str], Sequence[int]]


def of_parents(pairs: Iterable[tuple[str, str]], classes: Sequence[str] | None) -> Tree:
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
    names = list(dict.fromkeys(itertools.chain.from_iterable(parent_of.items())))
    inner = set(parent_of.values())
    if classes is None:
        classes = [name for name in names if name not in inner]
    node = {name: i for i, name in enumerate(names)}
    for name in classes:
        if name not in node:
            raise ValueError(f"classes must be in pairs, got {name!r}")
        if name in inner:
            raise ValueError(
                f"classes must be leaves, got {name!r}, which has children; give the class a "
                f"leaf of its own below {name!r}"
            )
    if len(inner) == len(names):
        raise ValueError(f"pairs must form a tree, got a cycle at {names[0]!r}")
    if not classes:
        raise ValueError("classes must have at least one name, got none")
    parents = [node[parent_of[name]] if name in parent_of else -1 for name in names]
    return names, parents, classes, [node[name] for name in classes]


def leaf_paths(tree: Mapping[str, Any], classes: Sequence[str] | None) -> list[tuple[str, ...]]:
    """The path to each class of nested dictionaries; all leaves by default."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"tree must be a dictionary, got {type(tree).__name__}")
    paths: list[tuple[str, ...]] = []
    todo: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while todo:
        path, below = todo.pop()
        if isinstance(below, str) or not isinstance(below, Mapping | Sequence | None):
            raise TypeError(
                "tree must hold dictionaries, lists or None, got "
                f"{type(below).__name__} below {'/'.join(path)}"
            )
        if path and not below:
            paths.append(path)
        elif isinstance(below, Mapping):
            todo += [((*path, name), below[name]) for name in reversed(list(below))]
        else:
            todo += [((*path, name), None) for name in reversed(below or ())]
    if classes is None:
        return paths
    leaf = {path[-1]: path for path in paths}
    for name in classes:
        if name not in leaf:
            raise ValueError(f"classes must be leaves of the tree, got {name!r}")
    if len(leaf) < len(paths):
        raise ValueError("tree must have leaves of different names; use from_paths")
    return [leaf[name] for name in classes]


def require_sequence(name: str, value: object) -> None:
    """Raise TypeError for a string, and for what has no length, no entries or no order."""
    if isinstance(value, str | Mapping | set | frozenset) or not (
        hasattr(value, "__len__") and isinstance(value, Iterable)
    ):
        raise TypeError(f"{name} must be a sequence, got {type(value).__name__}")


def of_paths(paths: Sequence[str | Sequence[str]], classes: Sequence[str] | None, sep: str) -> Tree:
    """From the path to each class, strings or sequences of names."""
    require_sequence("paths", paths)
    for path in paths:
        if not isinstance(path, Iterable):
            raise TypeError(f"paths must hold strings or sequences of them, got {path!r}")
    routes = [tuple(path.split(sep) if isinstance(path, str) else path) for path in paths]
    for route in routes:
        if not route:
            raise ValueError("paths must have at least one name each, got an empty path")
        if not all(isinstance(name, str) for name in route):
            raise TypeError(f"paths must hold strings, got {route!r}")
        if "" in route:
            raise ValueError(f"paths must not have empty names, got {sep.join(route)!r}")
    joined = [sep.join(route) for route in routes]
    classes = joined if classes is None else classes
    require_length(classes, len(routes), "path")
    require_different("classes", classes)
    if len(set(routes)) < len(routes):
        require_different("paths", joined)
    if len({route[0] for route in routes}) > 1 or any(len(route) == 1 for route in routes):
        routes = [("root", *route) for route in routes]
    names, parents, leaves = merge(routes)
    inner = set(parents)
    for path, leaf in zip(joined, leaves, strict=True):
        if leaf in inner:
            raise ValueError(
                f"paths must end in leaves, got {path!r}, which other paths lead through; give "
                "the class a leaf of its own there"
            )
    return names, parents, classes, leaves


def merge(routes: Iterable[Iterable[Step]]) -> tuple[list[Step], list[int], list[int]]:
    """The tree of routes from the root: the step and the parent of each node, and their ends."""
    place: dict[tuple[int, Step], int] = {}
    ends = []
    for route in routes:
        node = -1
        for step in route:
            node = place.setdefault((node, step), len(place))
        ends.append(node)
    return [step for _, step in place], [parent for parent, _ in place], ends


def number(
    names: Sequence[str], parents: Sequence[int], classes: Sequence[str], leaves: Sequence[int]
) -> tuple[tuple[str, ...], tuple[str, ...], Integers, Integers, Integers]:
    """The fields of a ``ClassHierarchy``: nodes that lead to a class, siblings in their order."""
    if not len(classes):
        raise ValueError("classes must have at least one class, got none")
    require_different("classes", classes)
    needed: set[int] = set()
    for node in leaves:
        while node >= 0 and node not in needed:
            needed.add(node)
            node = parents[node]
    children: dict[int, list[int]] = defaultdict(list)
    for node in sorted(needed):
        children[parents[node]].append(node)
    roots = children[-1]
    if len(roots) != 1:
        found = ", ".join(repr(names[node]) for node in roots[:5]) or "a cycle"
        raise ValueError(f"classes must have one common root, got {found}")
    place = {-1: -1}  # the new number of each node
    while roots:
        node = roots.pop()
        place[node] = len(place) - 1
        roots += reversed(children[node])
    for name, leaf in zip(classes, leaves, strict=True):
        if leaf not in place:
            raise ValueError(f"classes must have one common root, got a cycle above {name!r}")
    _, *order = place
    above = [place[parents[node]] for node in order]
    ends = list(range(1, len(order) + 1))
    for node in range(len(order) - 1, 0, -1):
        ends[above[node]] = max(ends[above[node]], ends[node])
    return (
        tuple(classes),
        tuple(names[node] for node in order),
        np.array(above, dtype=np.int64),
        np.array(ends, dtype=np.int64),
        np.array([place[leaf] for leaf in leaves], dtype=np.int64),
    )


def require_length(classes: Sequence[str], length: int, per: str) -> None:
    """Raise unless there is a name for every class."""
    if len(classes) != length:
        raise ValueError(f"classes must have {length} names, one per {per}, got {len(classes)}")


def require_different(argument: str, names: Sequence[str]) -> None:
    """Raise if a name is there twice."""
    if len(set(names)) < len(names):
        twice = next(a for a, b in itertools.pairwise(sorted(names)) if a == b)
        raise ValueError(f"{argument} must all differ, got {twice!r} twice")
