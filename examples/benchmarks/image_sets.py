"""Image sets to train and to test on, from npz files, and labels made wrong on purpose.

A file holds ``labels`` (N,) integers from 0, and ``images`` (N, H, W) or (N, H, W, 3) uint8, or
``jpeg``, the bytes of N JPEG files of one size, and ``offsets`` (N + 1,), where each begins. What
is for training and what for testing is said by one of

* ``class_split`` (C,): classes of part 0 are trained on, those of part 1 are new in the test;
* ``split`` (N,): samples of part 0 are trained on, those of part 1, of the same classes, test;
* ``class_coarse`` (C,): the first half of the superclasses is trained on, the rest tests;

or, without any of them, the first half of the classes is trained on, as with CUB200 and Cars196.
``class_coarse`` or ``class_alphabet`` (C,) are also the groups in which semantic noise stays.

Wrong labels that somebody has published or counted may be in the file, too: ``prism_sym10`` and so
on (N,), PRISM's lists of Cars196; ``prism_smallcluster25``, its small clusters, with numbers of
their own; and ``human_confusion`` (C, C), how often people gave label j to an image of class i.
``class_names`` (C,) are for language models.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisydml import noise

DRAWN = ("none", "uniform", "pair_flip", "semantic", "small_cluster")
NOISES = (*DRAWN, "published", "published_clusters", "human")
PUBLISHED = {"published": "prism_sym", "published_clusters": "prism_smallcluster"}


@dataclass
class Images:
    """Images (N, channels, H, W) in [0, 1], the classes that they show, and those to test on.

    Or, in place of the images, what a pretrained network makes of them.
    """

    train: Tensor
    truth: Tensor  # (N,) 0 to C - 1
    groups: Tensor | None  # (C,) the superclass of each class
    test: Tensor
    test_labels: Tensor
    published: dict[str, Tensor] = field(default_factory=dict)  # (N,) wrong labels of others
    confusion: Tensor | None = None  # (C, C) how often people gave label j to class i
    names: list[str] = field(default_factory=list)  # (C,)


@dataclass
class GivenLabels:
    """The labels that a training sees."""

    labels: Tensor  # (N,) 0 to num_classes - 1
    is_noisy: Tensor  # (N,) bool
    truth: Tensor | None  # (N,) numbered as the labels are; None where classes are gone

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def rate(self) -> float:
        """The share of wrong labels."""
        return float(self.is_noisy.double().mean())


def load(path: Path, split: str = "", every: int = 1, inputs: Tensor | None = None) -> Images:
    """The image set of a file.

    Args:
        path: the file.
        split: which of the three says what is trained on, or "classes" for the first half of the
            classes; "" for the first one that the file has.
        every: of each part, every so many-th image only.
        inputs: (N, ...) what stands for the images, such as features of a pretrained network.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name not in ("images", "jpeg")}
        images = pixels(file) / 255 if inputs is None else inputs
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    trains = training_part(arrays, split)
    rows, tests = (part.nonzero().squeeze(1)[::every] for part in (trains, ~trains))
    trained, truth = labels[rows].unique(return_inverse=True)
    groups = arrays.get("class_coarse", arrays.get("class_alphabet"))
    lists = {
        name: torch.from_numpy(array.astype(np.int64))[rows]
        for name, array in arrays.items()
        if name.startswith(tuple(PUBLISHED.values()))
    }
    confusion = arrays.get("human_confusion")
    return Images(
        images[rows],
        truth,
        None if groups is None else torch.from_numpy(groups.astype(np.int64))[trained],
        images[tests],
        labels[tests],
        lists,
        None if confusion is None else torch.from_numpy(confusion)[trained][:, trained],
        [str(name) for name in arrays["class_names"][trained]] if "class_names" in arrays else [],
    )


def pixels(arrays: Mapping[str, Any]) -> Tensor:
    """(N, channels, H, W) uint8."""
    if "jpeg" not in arrays:
        images = torch.from_numpy(arrays["images"])
        return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    from PIL import Image

    data, offsets = arrays["jpeg"], arrays["offsets"]
    found = [
        np.asarray(Image.open(io.BytesIO(data[start:end].tobytes())).convert("RGB"))
        for start, end in itertools.pairwise(offsets)
    ]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def training_part(arrays: dict[str, np.ndarray], split: str = "") -> Tensor:
    """(N,) bool, the samples to train on."""
    labels = arrays["labels"]
    split = split or next((n for n in ("split", "class_split") if n in arrays), "class_coarse")
    if split == "split":
        return torch.from_numpy(arrays["split"] == 0)
    if split == "class_split":
        classes = arrays["class_split"] == 0
    else:
        order = np.arange(labels.max() + 1)
        if split != "classes":
            order = arrays.get("class_coarse", order)
        classes = 2 * order <= order.max()
    return torch.from_numpy(classes[labels])


def corrupt(images: Images, kind: str, rate: float, seed: int) -> GivenLabels:
    """Labels of which a share is wrong.

    The share is exact, by one of the models of noisydml.noise; or about that, in a list that
    somebody has published ("published", "published_clusters"). "human" draws each label as people
    gave it to images of that class; what they called by a class that is not trained on is drawn
    anew, and the share is what comes of it (``rate`` is only its name).
    """
    truth = images.truth
    if kind == "none" or rate == 0:
        return GivenLabels(truth, torch.zeros_like(truth, dtype=torch.bool), truth)
    if kind in PUBLISHED:
        name = f"{PUBLISHED[kind]}{100 * rate:.0f}"
        if name not in images.published:
            raise SystemExit(f"{kind} noise of {rate:.0%} needs {name} in the file")
        return published(images.published[name], truth, gone=kind == "published_clusters")
    if kind == "human":
        if images.confusion is None:
            raise SystemExit("human noise needs human_confusion in the file")
        drawn = torch.Generator().manual_seed(seed)
        chances = images.confusion.double()[truth]  # (N, C)
        given = torch.multinomial(chances, 1, generator=drawn).squeeze(1)
        return GivenLabels(given, given != truth, truth)
    if kind == "semantic":
        if images.groups is None:
            raise SystemExit("semantic noise needs class_coarse or class_alphabet in the file")
        tree = noise.ClassHierarchy.from_categories(images.groups.tolist())
        noisy = noise.semantic(truth, rate, tree, seed=seed)
    elif kind == "small_cluster":
        noisy = noise.small_cluster(truth, rate, images.train.flatten(1), seed=seed)
    else:
        noisy = {"uniform": noise.uniform, "pair_flip": noise.pair_flip}[kind](
            truth, rate, seed=seed
        )
    gone = kind == "small_cluster"
    return GivenLabels(
        torch.as_tensor(noisy.labels), torch.as_tensor(noisy.is_noisy), None if gone else truth
    )


def published(given: Tensor, truth: Tensor, gone: bool) -> GivenLabels:
    """A list of labels; where classes are gone, a number means the class that most of it shows."""
    if not gone:
        return GivenLabels(given, given != truth, truth)
    _, given = given.unique(return_inverse=True)
    counts = torch.zeros(int(given.max()) + 1, int(truth.max()) + 1, dtype=torch.int64)
    counts.index_put_((given, truth), torch.ones_like(given), accumulate=True)
    return GivenLabels(given, counts.argmax(1)[given] != truth, None)
