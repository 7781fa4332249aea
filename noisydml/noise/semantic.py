"""Semantic label noise: a wrong label is a class that is close in a hierarchy (ProcSim)."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisydml.noise.checks import (
    Integers,
    Seed,
    generator,
    read_labels,
    require_flag,
    require_rate,
    require_two_classes,
)
from noisydml.noise.draws import below, choose, other_than
from noisydml.noise.hierarchy import ClassHierarchy
from noisydml.noise.noisy_labels import NoisyLabels


def semantic(
    labels: Any, rate: float, hierarchy: ClassHierarchy, *, seed: Seed = 0, exact: bool = True
) -> NoisyLabels:
    r"""Move a share of the labels to classes nearby in a hierarchy (ProcSim, section 3.6).

    The hierarchy is cut down to the classes that occur in ``labels``. From the class of a chosen
    sample one walks up to the first node with several children, and takes one of them uniformly,
    but not the one that one came from. Where the child taken is no class, one of the classes
    below it is taken uniformly; the paper leaves this open.

    Args:
        labels: (N,) integers, positions in ``hierarchy.classes``: list, numpy array or tensor.
        rate: share of wrong labels, in [0, 1].
        hierarchy: the tree of the classes.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take an exact share of every class, rounded as in
            :func:`~noisydml.noise.uniform.uniform`; else every sample by a coin of its own, as
            the paper does.

    Returns:
        The labels as they were, but for the wrong ones.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``labels`` has not one dimension or values that are no position in
            ``hierarchy.classes``, ``rate`` is not in [0, 1], or only one class occurs and
            ``rate`` is above 0.

    References:
        Barbany et al., ProcSim: Proxy-based Confidence for Robust Similarity Learning, WACV 2024.

    Example:
        >>> from noisydml.noise import ClassHierarchy, semantic
        >>> tree = ClassHierarchy.from_paths(["cat/lion", "cat/tiger", "dog/wolf", "dog/fox"])
        >>> semantic([0, 0, 1, 1, 2, 2, 3, 3], rate=0.5, hierarchy=tree).labels
        array([0, 1, 1, 0, 3, 2, 2, 3])
    """
    original = read_labels("labels", labels)
    require_rate("rate", rate)
    if not isinstance(hierarchy, ClassHierarchy):
        raise TypeError(f"hierarchy must be a ClassHierarchy, got {type(hierarchy).__name__}")
    require_flag("exact", exact)
    n_known = len(hierarchy.classes)
    if original.size and not 0 <= original.min() <= original.max() < n_known:
        raise ValueError(f"labels must be in [0, {n_known}), the classes of the hierarchy")
    rng = generator(seed)
    classes, codes = np.unique(original, return_inverse=True)
    require_two_classes(rate, len(classes), len(original))

    is_noisy = choose(rng, codes, len(classes), rate, exact)
    given = original.copy()
    if is_noisy.any():
        filtered = hierarchy.restrict(classes)
        given[is_noisy] = classes[_walk(rng, filtered, codes[is_noisy])]
    return NoisyLabels(given, is_noisy, original, "semantic", rate)


def _walk(rng: np.random.Generator, tree: ClassHierarchy, codes: Integers) -> Integers:
    """The class that the walk from each class in ``codes`` ends in; (M,) to (M,)."""
    parent = tree.parents
    n_nodes = len(parent)
    n_children = np.bincount(parent[1:], minlength=n_nodes)
    children = np.argsort(parent[1:], kind="stable") + 1  # of node 0, then of node 1, ...
    first = np.cumsum(n_children) - n_children
    position = np.zeros(n_nodes, dtype=np.int64)  # of a node among its siblings
    position[children] = np.arange(n_nodes - 1) - first[parent[children]]

    # Up to the first node with several children, a level at a time, for all classes at once.
    branch = tree.leaves.copy()  # the child that the walk came from
    ancestor = parent[branch]
    while (single := n_children[ancestor] < 2).any():
        branch[single] = ancestor[single]
        ancestor[single] = parent[ancestor[single]]

    ancestor, branch = ancestor[codes], branch[codes]  # (M,)
    taken = first[ancestor] + other_than(rng, position[branch], n_children[ancestor])
    child = children[taken]
    # The nodes are in depth-first order, so those below a node are a range, and so its classes.
    by_node = np.argsort(tree.leaves, kind="stable")  # the classes in the order of the nodes
    leaves = tree.leaves[by_node]
    low = np.searchsorted(leaves, child)
    high = np.searchsorted(leaves, tree.ends[child])
    ends: Integers = by_node[low + below(rng, high - low)]
    return ends
