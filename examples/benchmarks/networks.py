"""Networks in two parts, the body and the linear head.

Small ones for images of 28 or 32 pixels, and what is trained of a pretrained one.
"""

from __future__ import annotations

import pretrained
from torch import Tensor, nn


def convolutions(channels: int, side: int, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """Three 3x3 convolutions of 48 channels with batch norm, ReLU and 2x2 max pooling."""
    layers: list[nn.Module] = []
    for _ in range(3):
        # Pooling before ReLU gives the same numbers for a quarter of the work.
        convolution = nn.Conv2d(channels, 48, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(48), nn.MaxPool2d(2), nn.ReLU()]
        channels, side = 48, side // 2
    features = 48 * side * side
    return nn.Sequential(*layers, nn.Flatten()), nn.Linear(features, embedding_size)


def perceptron(channels: int, side: int, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """N2D2's network for MNIST, with its normalisation of the pixels; no head of its own."""
    layers: list[nn.Module] = [Standardize(0.1307, 0.3081), nn.Flatten()]
    for width in (channels * side * side, embedding_size):
        layers += [nn.Linear(width, embedding_size), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers), nn.Identity()


def residual(channels: int, side: int, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """A stem and three residual blocks of 32, 64 and 128 channels, and the mean over the image."""
    stem = [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.ReLU()]
    blocks = [Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)]
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *blocks, *pooling), nn.Linear(128, embedding_size)


def frozen(channels: int, side: int, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """A head on features of a pretrained network, each of length 1."""
    return Normalize(), nn.Linear(channels, embedding_size)


def upper_blocks(channels: int, side: int, embedding_size: int) -> tuple[nn.Module, nn.Module]:
    """The upper blocks of a pretrained network, and a head."""
    return pretrained.UpperBlocks(), nn.Linear(pretrained.FEATURES, embedding_size)


class Normalize(nn.Module):
    """(B, D, 1, 1) features to (B, D) of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features.flatten(1).float())


class Block(nn.Module):
    """Two convolutions beside a short cut (ResNet's basic block)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut: nn.Module = nn.Identity()
        if narrow != wide:
            projection = nn.Conv2d(narrow, wide, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(wide))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.body(images) + self.shortcut(images))


class Standardize(nn.Module):
    """Pixels minus a mean, over a standard deviation."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation
