"""Semantic noise on the real class names of CUB200, Cars196 and Omniglot, where they are at hand.

The folder is that of examples/hierarchies.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisydml.noise import ClassHierarchy, semantic

DATA = Path(os.environ.get("NOISYDML_DATA", "no data"))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hierarchies.py"
needs_lists = pytest.mark.skipif(
    not ((DATA / "class_lists.json").exists() and (DATA / "wordnet_nouns.json.gz").exists()),
    reason="NOISYDML_DATA has no class_lists.json and wordnet_nouns.json.gz",
)


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("hierarchies", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lists() -> Any:
    return json.loads((DATA / "class_lists.json").read_text(encoding="utf-8"))


def check_subtrees(tree: ClassHierarchy, n_classes: int) -> None:
    """On the first half, as in metric learning: no wrong label leaves its subtree."""
    labels = np.repeat(np.arange(n_classes), 20)
    noisy = semantic(labels, 0.5, tree, seed=0)
    assert noisy.is_noisy.sum() == 10 * n_classes
    assert noisy.labels.max() < n_classes
    training = tree.restrict(np.arange(n_classes))
    paths = [training.path(name) for name in training.classes]
    for original, given in np.unique(np.stack([labels, noisy.labels])[:, noisy.is_noisy].T, axis=0):
        # The smallest group of several classes around the right one holds the wrong one.
        group = next(
            {i for i, path in enumerate(paths) if path[:depth] == paths[original][:depth]}
            for depth in range(len(paths[original]), 0, -1)
            if sum(path[:depth] == paths[original][:depth] for path in paths) > 1
        )
        assert given in group


@needs_lists
def test_cub200(example: Any) -> None:
    tree = example.birds(lists()["cub200"], str(DATA / "wordnet_nouns.json.gz"))
    assert len(tree.classes) == 200
    assert tree.names[0] == "bird"
    assert tree.path("Laysan_Albatross")[-2] == "albatross"
    check_subtrees(tree, 100)


@needs_lists
def test_cars196(example: Any) -> None:
    tree = example.cars(lists()["cars196"], str(DATA / "wordnet_nouns.json.gz"))
    assert len(tree.classes) == 196
    path = tree.path("Audi S4 Sedan 2012")
    assert path[0] in ("car", "auto")
    assert path[-3:] == ("Sedan", "Audi", "Audi S4 Sedan 2012")
    check_subtrees(tree, 98)


@pytest.mark.skipif(
    not (DATA / "omniglot28.npz").exists(), reason="NOISYDML_DATA has no omniglot28.npz"
)
def test_omniglot() -> None:
    with np.load(DATA / "omniglot28.npz") as archive:
        names, alphabet = archive["class_names"], archive["class_alphabet"]
        labels = archive["labels"][archive["class_split"][archive["labels"]] == 0]
    tree = ClassHierarchy.from_paths(names.tolist())
    noisy = semantic(labels, 0.5, tree)
    assert noisy.rate == 0.5
    assert np.array_equal(alphabet[noisy.labels], alphabet[noisy.original])
