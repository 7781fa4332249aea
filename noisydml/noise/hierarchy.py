"""ClassHierarchy: a tree whose leaves are the classes of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from noisydml.functional.checks import is_missing
from noisydml.functional.extras import optional
from noisydml.noise import nodes
from noisydml.noise.checks import read_labels
from noisydml.noise.random import Integers
from noisydml.noise.wordnet import match_wordnet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 0.13  # inches a line of small text takes
_COLUMN = 1.6  # inches between a node and its children


@dataclass(frozen=True, eq=False, repr=False)
class ClassHierarchy:
    """A tree of which each leaf is a class; label i means ``classes[i]``.

    Made by :meth:`from_parents`, :meth:`from_dict`, :meth:`from_categories`, :meth:`from_paths`
    or :meth:`from_wordnet`. Nodes that lead to no class are left out. The nodes are numbered in
    depth-first order, node 0 the root, so those below node v are ``v + 1`` to ``ends[v] - 1``.
    Nodes are known by their place and may share a name; classes may not.

    Args:
        classes: names of the C classes, in the order of the labels.
        names: names of the V nodes.
        parents: (V,) int64, the parent of each node, -1 for the root.
        ends: (V,) int64, one more than the last node below each node.
        leaves: (C,) int64, the node of each class.

    Example:
        >>> from noisydml.noise import ClassHierarchy
        >>> tree = ClassHierarchy.from_dict({"pet": {"cat": ["manx", "persian"], "fish": []}})
        >>> tree
        ClassHierarchy(3 classes, 5 nodes, depth 2)
        >>> print(tree.render())
        pet
        ├── cat
        │   ├── manx
        │   └── persian
        └── fish
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    parents: Integers
    ends: Integers
    leaves: Integers

    @classmethod
    def from_parents(
        cls, pairs: Iterable[tuple[str, str]], classes: Sequence[str] | None = None
    ) -> ClassHierarchy:
        """From pairs of a name and the name of its parent.

        Args:
            pairs: ``(child, parent)`` for every node but the root.
            classes: leaves in the order of the labels; default: all, in the order of ``pairs``.

        Raises:
            TypeError: if a pair is not a pair of strings.
            ValueError: if a child has two parents, the pairs form a cycle or several trees, or a
                class is unknown, named twice or no leaf.

        Example:
            >>> ClassHierarchy.from_parents([("manx", "cat"), ("cat", "pet"), ("fish", "pet")])
            ClassHierarchy(2 classes, 4 nodes, depth 2)
        """
        return cls(*nodes.number(*nodes.of_parents(pairs, classes)))

    @classmethod
    def from_dict(
        cls, tree: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> ClassHierarchy:
        """From nested dictionaries.

        Args:
            tree: maps each node to its children: a dictionary, a list of names, or None or an
                empty one for a leaf. Above more than one key on top a node ``"root"`` is put.
            classes: leaves in the order of the labels; default: all, from top to bottom.

        Raises:
            TypeError: if a name is no string, or children are neither dictionary nor list.
            ValueError: if there is no node, two leaves share a name (see :meth:`from_paths`), or
                a class is no leaf or named twice.

        Example:
            >>> ClassHierarchy.from_dict({"cat": ["manx", "persian"], "fish": None}).classes
            ('manx', 'persian', 'fish')
        """
        paths = nodes.leaf_paths(tree, classes)
        return cls.from_paths(paths, classes=[path[-1] for path in paths])

    @classmethod
    def from_categories(
        cls, categories: Sequence[Hashable], classes: Sequence[str] | None = None
    ) -> ClassHierarchy:
        """From the category of every class, as Stanford Online Products has them.

        Args:
            categories: of length C, the category of each class: strings, integers or the like.
            classes: names of the classes; default: their numbers.

        Raises:
            TypeError: if ``categories`` is no sequence, or ``classes`` are no strings.
            ValueError: if there is no class, a category is missing, or ``classes`` is of another
                length, or names one twice.

        Example:
            >>> ClassHierarchy.from_categories(["lamp", "sofa", "lamp"])
            ClassHierarchy(3 classes, 6 nodes, depth 2)
        """
        nodes.require_sequence("categories", categories)
        if any(map(is_missing, categories)):
            raise ValueError("categories must not be missing, got None or NaN")
        names = list(map(str, range(len(categories)))) if classes is None else list(classes)
        nodes.require_length(names, len(categories), "category")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"classes must hold strings, got {name!r}")
        return cls.from_paths(list(zip(map(str, categories), names, strict=True)), names)

    @classmethod
    def from_paths(
        cls,
        paths: Sequence[str | Sequence[str]],
        classes: Sequence[str] | None = None,
        *,
        sep: str = "/",
    ) -> ClassHierarchy:
        """From the path to every class, such as ``"Greek/character01"``.

        Args:
            paths: of length C, the path to each class from the top: strings in which ``sep``
                separates the nodes, or sequences of names. If not all begin alike, a node
                ``"root"`` is put above them.
            classes: names of the classes; default: the paths.
            sep: what separates the names in a string.

        Raises:
            TypeError: if a path holds anything but strings.
            ValueError: if there is no path, one is empty, given twice or leads through another (a
                class that is also a group), or ``classes`` is of another length or not different.

        Example:
            >>> tree = ClassHierarchy.from_paths(["Greek/alpha", "Greek/beta", "Latin/a"])
            >>> tree.path("Greek/beta")
            ('root', 'Greek', 'beta')
        """
        return cls(*nodes.number(*nodes.of_paths(paths, classes, sep)))

    @classmethod
    def from_wordnet(
        cls,
        names: Sequence[str],
        root: str,
        wordnet: Any,
        *,
        fixes: Mapping[str, str] | None = None,
    ) -> ClassHierarchy:
        """From the class names, by WordNet's hypernyms (ProcSim, appendix F).

        Each class becomes a leaf below the synset of its name, on the way to the root that a
        depth-first search over the hypernyms finds first.

        Args:
            names: of length C, names of the classes; :func:`match_wordnet` says how it finds them.
            root: what all classes are a kind of: a noun, ``"bird"``, or a synset, ``"n01503061"``.
            wordnet: a folder, a file, a dictionary or a reader of nltk (:func:`match_wordnet`).
            fixes: a noun or synset for names that are unknown or go astray.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if names are unknown (it lists them all), one is given twice, or ``root``
                or a fix is not in WordNet.

        Warns:
            UserWarning: if names have several meanings below the root; it lists them all.

        Example:
            >>> wordnet = {"n1": [["bird"], []], "n2": [["owl"], ["n1"]]}
            >>> names = ["Barn_Owl", "Snowy_Owl", "Pipit"]
            >>> tree = ClassHierarchy.from_wordnet(names, "bird", wordnet, fixes={"Pipit": "bird"})
            >>> print(tree.render())
            bird
            ├── owl
            │   ├── Barn_Owl
            │   └── Snowy_Owl
            └── Pipit
        """
        found = match_wordnet(names, root, wordnet, fixes=fixes)
        found.require_known()
        found.warn_ambiguous()
        # A step is a synset with its noun; the last one is the class, which has no synset.
        steps, parents, leaves = nodes.merge(
            [*((synset, found.label(synset)) for synset in found.path(match)), (None, match.name)]
            for match in found.matches
        )
        return cls(*nodes.number([name for _, name in steps], parents, names, leaves))

    def __repr__(self) -> str:
        size = f"{len(self.classes)} classes, {len(self.names)} nodes"
        return f"ClassHierarchy({size}, depth {self.depth})"

    @property
    def depth(self) -> int:
        """The number of edges from the root to the deepest class."""
        return int(self.depths().max())

    def depths(self) -> Integers:
        """(V,) the number of edges from the root to each node."""
        # A node is below all nodes before it, but those that have ended.
        ended = np.cumsum(np.bincount(self.ends, minlength=len(self.names) + 1))
        return np.arange(len(self.names)) - ended[:-1]

    def path(self, name: str) -> tuple[str, ...]:
        """The names of the nodes from the root to a class.

        Raises:
            ValueError: if there is no such class.
        """
        if name not in self.classes:
            raise ValueError(f"name must be one of the classes, got {name!r}")
        leaf = self.leaves[self.classes.index(name)]
        above = np.flatnonzero(self.ends[: leaf + 1] > leaf)  # and the leaf itself
        return tuple(self.names[node] for node in above)

    def restrict(self, classes: Any) -> ClassHierarchy:
        """The hierarchy of some of the classes; nodes that lead to none of them are dropped.

        Args:
            classes: (K,) different integers, positions in ``classes``, such as those of a
                training split. Class ``classes[k]`` is class k of the result.

        Raises:
            TypeError: if ``classes`` does not hold integers.
            ValueError: if it is empty, has a number twice or one that is no position.
        """
        wanted = read_labels("classes", classes)
        n = len(self.classes)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < n:
            raise ValueError(f"classes must be in [0, {n}), got {wanted.min()} to {wanted.max()}")
        return self._renumbered(self.parents, wanted)

    def fold(self) -> ClassHierarchy:
        """The hierarchy without nodes that have a single child, as in the paper's figures.

        The child takes the place of the node; the root stays, and takes over the children of an
        only child. What :func:`~noisydml.noise.semantic.semantic` draws does not change.
        """
        n_children = np.bincount(self.parents[1:], minlength=len(self.names))
        gone = n_children == 1
        if gone[0]:  # then the next node that branches goes, and not the root
            branch = int(np.argmin(gone))
            gone[0], gone[branch] = False, n_children[branch] > 1
        parents = self.parents.copy()
        while (skip := (parents >= 0) & gone[parents]).any():
            parents[skip] = parents[parents[skip]]
        return self._renumbered(parents, np.arange(len(self.classes)))

    def _renumbered(self, parents: Integers, classes: Integers) -> ClassHierarchy:
        """Some of the classes, with other parents."""
        names = [self.classes[i] for i in classes]
        leaves = self.leaves[classes].tolist()
        return type(self)(*nodes.number(self.names, parents.tolist(), names, leaves))

    def render(self, *, fold: bool = True, classes: bool = True) -> str:
        """The tree as text, a node a line.

        Args:
            fold: leave out nodes that have a single child.
            classes: show the classes; else a node's own classes are only counted.
        """
        names, children = self._shown(fold, classes)
        lines = []
        todo = [(0, "", "")]  # a node, what its line begins with, and those of its children
        while todo:
            node, begin, indent = todo.pop()
            lines.append(begin + names[node])
            branch, space = "└── ", "    "  # of the last child
            for child in reversed(children[node]):
                todo.append((child, indent + branch, indent + space))
                branch, space = "├── ", "│   "
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, fold: bool = True, classes: bool = True) -> Axes:
        """The tree as a picture, from left to right; needs matplotlib.

        Args:
            ax: the axes to draw into; default: a new figure, as high as the tree needs.
            fold: leave out nodes that have a single child, as the paper's Figures 7 and 8 do.
            classes: show the classes; else a node's own classes are only counted.

        Returns:
            The axes.
        """
        plt = optional("matplotlib.pyplot", "a figure of a hierarchy", extra="plot")
        names, children = self._shown(fold, classes)
        depth = {0: 0}  # of the nodes shown
        for node, below in enumerate(children):
            depth.update((child, depth[node] + 1) for child in below)
        shown = sorted(depth)  # depth first, so that children come after their parent
        ends = [node for node in shown if not children[node]]
        height = {node: -float(i) for i, node in enumerate(ends)}
        for node in reversed(shown):
            if children[node]:
                height[node] = float(np.mean([height[child] for child in children[node]]))
        columns = max(depth.values()) + 1
        if ax is None:
            figure = plt.figure(figsize=(_COLUMN * columns, _LINE * (len(ends) + 1)))
            ax = figure.add_axes((0, 0, 1, 1))
        x, y = [], []  # one line for all edges: nan lifts the pen
        for node in shown:
            left, middle, above = depth[node], depth[node] + 0.5, height[node]
            for child in children[node]:
                x += [left, middle, middle, depth[child], np.nan]
                y += [above, above, height[child], height[child], np.nan]
            # The text is above the node's own line, or at the end of its parent's.
            place, align = (left, "bottom") if children[node] else (left + 0.03, "center")
            ax.text(place, above, names[node], fontsize=6, verticalalignment=align)
        ax.plot(x, y, color="0.6", linewidth=0.6)
        ax.set_xlim(-0.05, columns)
        ax.set_ylim(-len(ends), 1)
        ax.set_axis_off()
        return ax

    def _shown(self, fold: bool, classes: bool) -> tuple[list[str], list[list[int]]]:
        """The text at each node, and the children that are drawn below it."""
        tree = self.fold() if fold else self
        children: list[list[int]] = [[] for _ in tree.names]
        leaves = set(tree.leaves.tolist())
        counts: Counter[int] = Counter()
        for node, parent in enumerate(tree.parents[1:].tolist(), start=1):
            if classes or node not in leaves:
                children[parent].append(node)
            else:
                counts[parent] += 1
        texts = (
            f"{name} ({counts[i]})" if counts[i] else name for i, name in enumerate(tree.names)
        )
        return list(texts), children
