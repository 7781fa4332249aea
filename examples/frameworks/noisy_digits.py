"""What the examples of this folder share: digits with wrong labels, a network, a measure."""

from __future__ import annotations

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import noisydml

CLASSES, EMBEDDING_SIZE, BATCH_SIZE = 10, 32, 60


def load(noise: float = 0.5) -> tuple[TensorDataset, TensorDataset]:
    """Images, labels and positions of 1200 digits to train on, and 597 with right labels."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images, labels = images.float() / 16, labels.long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order.split([1200, len(labels) - 1200])
    given = noisydml.noise.uniform(labels[train].numpy(), noise, seed=0).labels
    positions = torch.arange(len(train))
    return (
        TensorDataset(images[train], torch.as_tensor(given), positions),
        TensorDataset(images[test], labels[test]),
    )


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, EMBEDDING_SIZE))


@torch.no_grad()
def scores(model: nn.Module, test: TensorDataset) -> str:
    """How well the test digits find one another."""
    images, labels = test.tensors
    return retrieval(model(images), labels)


def retrieval(embeddings: Tensor, labels: Tensor) -> str:
    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, device=torch.device("cpu"))
    found = calculator.get_accuracy(nn.functional.normalize(embeddings), labels)
    return "P@1 {:.1f}, MAP@R {:.1f}".format(*(100 * found[name] for name in names))
