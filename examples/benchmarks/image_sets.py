"""Image sets to train and to test on, from npz files, and labels made wrong on purpose.

A file holds ``images`` (N, H, W) or (N, H, W, 3) uint8 and ``labels`` (N,) integers from 0. What is
for training and what for testing is said by one of

* ``class_split`` (C,): classes of part 0 are trained on, those of part 1 are new in the test;
* ``split`` (N,): samples of part 0 are trained on, those of part 1, of the same classes, test;
* ``class_coarse`` (C,): the first half of the superclasses is trained on, the rest tests;

or, without any of them, the first half of the classes is trained on, as with CUB200 and Cars196.
``class_coarse`` or ``class_alphabet`` (C,) are also the groups in which semantic noise stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisydml import noise

NOISES = ("none", "uniform", "pair_flip", "semantic", "small_cluster")


@dataclass
class Images:
    """Images (N, channels, H, W) in [0, 1], the classes that they show, and those to test on."""

    train: Tensor
    truth: Tensor  # (N,) 0 to C - 1
    groups: Tensor | None  # (C,) the superclass of each class
    test: Tensor
    test_labels: Tensor


@dataclass
class GivenLabels:
    """The labels that a training sees."""

    labels: Tensor  # (N,) 0 to num_classes - 1
    is_noisy: Tensor  # (N,) bool
    truth: Tensor | None  # (N,) numbered as the labels are; None where classes are gone

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def load(path: Path) -> Images:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    pixels = torch.from_numpy(arrays["images"])
    images = (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)) / 255
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    trains = training_part(arrays)
    trained, truth = labels[trains].unique(return_inverse=True)
    groups = arrays.get("class_coarse", arrays.get("class_alphabet"))
    return Images(
        images[trains],
        truth,
        None if groups is None else torch.from_numpy(groups.astype(np.int64))[trained],
        images[~trains],
        labels[~trains],
    )


def training_part(arrays: dict[str, np.ndarray]) -> Tensor:
    """(N,) bool, the samples to train on."""
    labels = arrays["labels"]
    if "split" in arrays:
        return torch.from_numpy(arrays["split"] == 0)
    if "class_split" in arrays:
        classes = arrays["class_split"] == 0
    else:
        order = arrays.get("class_coarse", np.arange(labels.max() + 1))
        classes = 2 * order <= order.max()
    return torch.from_numpy(classes[labels])


def corrupt(images: Images, kind: str, rate: float, seed: int) -> GivenLabels:
    """Labels of which an exact share is wrong, by one of the models of noisydml.noise."""
    truth = images.truth
    if kind == "none" or rate == 0:
        return GivenLabels(truth, torch.zeros_like(truth, dtype=torch.bool), truth)
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
