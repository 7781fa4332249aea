"""Class hierarchies as text and as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noisydml.noise.hierarchy import ClassHierarchy

_LINE = 0.13  # inches a line of small text takes
_COLUMN = 1.6  # inches between a node and its children


def render(tree: ClassHierarchy, classes: bool) -> str:
    """A line for every node, the class's own name for a leaf."""
    names, children = _shown(tree, classes)
    lines = [names[0]]
    todo = [(node, "", node == children[0][-1]) for node in reversed(children[0])]
    while todo:
        node, indent, last = todo.pop()
        lines.append(f"{indent}{'└── ' if last else '├── '}{names[node]}")
        indent += "    " if last else "│   "
        below = children[node]
        todo += [(child, indent, child == below[-1]) for child in reversed(below)]
    return "\n".join(lines)


def plot(tree: ClassHierarchy, ax: Axes | None, classes: bool) -> Axes:
    """Nodes from left to right by depth, from top to bottom in the order of the tree."""
    import matplotlib.pyplot as plt

    names, children = _shown(tree, classes)
    shown = sorted({0, *(node for below in children for node in below)})
    ends = [node for node in shown if not children[node]]
    height = {node: -float(i) for i, node in enumerate(ends)}
    for node in reversed(shown):
        if children[node]:
            height[node] = float(np.mean([height[child] for child in children[node]]))
    depths = tree.depths()
    if ax is None:
        width = _COLUMN * (depths[shown].max() + 1)
        figure = plt.figure(figsize=(width, _LINE * (len(ends) + 1)))
        ax = figure.add_axes((0, 0, 1, 1))
    x, y = [], []  # one line for all edges: nan lifts the pen
    for node in shown:
        for child in children[node]:
            x += [depths[node], depths[node] + 0.5, depths[node] + 0.5, depths[child], np.nan]
            y += [height[node], height[node], height[child], height[child], np.nan]
        if children[node]:  # above its line
            place = {"x": depths[node], "verticalalignment": "bottom"}
        else:  # at the end of one
            place = {"x": depths[node] + 0.03, "verticalalignment": "center"}
        ax.text(y=height[node], s=names[node], fontsize=6, **place)
    ax.plot(x, y, color="0.6", linewidth=0.6)
    ax.set_xlim(-0.05, depths[shown].max() + 1)
    ax.set_ylim(-len(ends), 1)
    ax.set_axis_off()
    return ax


def _shown(tree: ClassHierarchy, classes: bool) -> tuple[list[str], list[list[int]]]:
    """The text at each node, and the children that are drawn below it."""
    names = list(tree.names)
    children: list[list[int]] = [[] for _ in names]
    leaves = set(tree.leaves.tolist())
    counts = [0] * len(names)
    for node, parent in enumerate(tree.parents.tolist()):
        if parent < 0:
            continue
        if classes or node not in leaves:
            children[parent].append(node)
        else:
            counts[parent] += 1
    names = [
        f"{name} ({count})" if count else name for name, count in zip(names, counts, strict=True)
    ]
    return names, children
