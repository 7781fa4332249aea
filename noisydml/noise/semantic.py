"""Semantic label noise: a wrong label is a class that is close in a hierarchy (ProcSim)."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisydml.noise.checks import begin
from noisydml.noise.hierarchy import ClassHierarchy
from noisydml.noise.noisy_labels import NoisyLabels, put_back
from noisydml.noise.random import Integers, Seed, below, choose, other_than


def semantic(
    labels: Any,
    rate: float,
    hierarchy: ClassHierarchy,
    *,
    seed: Seed = 0,
    exact: bool = True,
    spare: Any = None,
) -> NoisyLabels:
    r"""Move a share of the labels to classes nearby in a hierarchy (ProcSim, section 3.6).

    The hierarchy is cut down to the classes that occur in ``labels``. From the class of a chosen
    sample one walks up to the first node with several children, and takes one of them uniformly,
    but not the one that one came from. Where the child taken is no class, one of the classes
    below it is taken uniformly; the paper leaves this open.

    Args:
        labels: (N,) integers, positions in ``hierarchy.classes``, -1 for none: list, numpy array
            or tensor.
        rate: share of wrong labels, in [0, 1].
        hierarchy: the tree of the classes.
        seed: integer of 0 or more, or a ``numpy.random.Generator``.
        exact: take an exact share of every class, up to rounding. With False every sample is
            chosen by a coin of its own, as the paper does.
        spare: (N,) bool, the rows to leave alone, such as those of a validation set; None for
            none. Neither they nor rows without a label count in ``rate`` or among the classes.

    Returns:
        The labels as they were, but for the wrong ones.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or there is one class only and a rate above 0.

    References:
        Barbany et al., ProcSim: Proxy-based Confidence for Robust Similarity Learning, WACV 2024.

    Example:
        >>> from noisydml.noise import ClassHierarchy, semantic
        >>> tree = ClassHierarchy.from_paths(["cat/lion", "cat/tiger", "dog/wolf", "dog/fox"])
        >>> semantic([0, 0, 1, 1, 2, 2, 3, 3], rate=0.5, hierarchy=tree).labels
        array([0, 1, 1, 0, 3, 2, 2, 3])
    """
    original, counted, classes, codes, rng = begin(labels, rate, seed, spare, exact=exact)
    if not isinstance(hierarchy, ClassHierarchy):
        raise TypeError(f"hierarchy must be a ClassHierarchy, got {type(hierarchy).__name__}")
    n_known = len(hierarchy.classes)
    if len(classes) and not 0 <= classes[0] <= classes[-1] < n_known:
        raise ValueError(f"labels must be in [0, {n_known}), the classes of the hierarchy")
    is_noisy = choose(rng, codes, rate, exact)
    given = classes[codes]
    if is_noisy.any():
        given[is_noisy] = classes[_walk(rng, hierarchy.restrict(classes), codes[is_noisy])]
    return put_back(original, counted, given, "semantic", rate)


def _walk(rng: np.random.Generator, tree: ClassHierarchy, codes: Integers) -> Integers:
    """The class that the walk from each class in ``codes`` ends in; (M,) to (M,)."""
    parent = tree.parents
    n_children = np.bincount(parent[1:], minlength=len(parent))
    children = np.argsort(parent[1:], kind="stable") + 1  # of node 0, then of node 1, ...
    first = np.cumsum(n_children) - n_children
    position = np.zeros_like(parent)  # of a node among its siblings
    position[children] = np.arange(len(children)) - first[parent[children]]

    # Up to the first node with several children, a level at a time, for all classes at once.
    branch = tree.leaves.copy()  # the child that the walk came from
    ancestor = parent[branch]
    while (single := n_children[ancestor] < 2).any():
        branch[single] = ancestor[single]
        ancestor[single] = parent[ancestor[single]]

    ancestor, branch = ancestor[codes], branch[codes]  # (M,)
    child = children[first[ancestor] + other_than(rng, position[branch], n_children[ancestor])]
    # The nodes are in depth-first order, so those below a node are a range, and so its classes.
    by_node = np.argsort(tree.leaves, kind="stable")  # the classes in the order of the nodes
    leaves = tree.leaves[by_node]
    low, high = np.searchsorted(leaves, child), np.searchsorted(leaves, tree.ends[child])
    ends: Integers = by_node[low + below(rng, high - low)]
    return ends
