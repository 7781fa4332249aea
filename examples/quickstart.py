"""Train on digits of which half the labels are wrong, and find out which.

Real handwritten digits, a small network, one training loop; only the loss differs between rows:

    python examples/quickstart.py --noise 0.5 --seed 0 --epochs 20 --output outputs/quickstart

Prints a table and writes, into the output folder, curves.png, and of the labels that robust
distrusts suspects.csv and suspects.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import noisydml
from noisydml import plot

CLASSES, EMBEDDING_SIZE, BATCH_SIZE, LR = 10, 64, 16, 1e-3
PROXY_LR = 3e-2  # the paper's 1e-3 suits its 10,000s of steps; here there are 1,600


@dataclass
class Digits:
    """8x8 images, 70 % to train on, a share of the training labels replaced by another class."""

    train_images: Tensor  # (N, 1, 8, 8)
    given_labels: Tensor  # (N,) what the training sees
    true_labels: Tensor  # (N,) for the clean run and the evaluation of decisions only
    test_images: Tensor
    test_labels: Tensor

    @property
    def is_noisy(self) -> Tensor:
        return self.given_labels != self.true_labels


@dataclass
class Result:
    """What one run gave."""

    name: str
    p_at_1: list[float]  # per epoch, %
    map_at_r: list[float]
    seconds: float
    weight: Tensor | None  # (N,) of the last epoch; None for a loss that judges nothing
    issues: noisydml.LabelIssues | None  # what was collected over all epochs


def load_data(noise: float, seed: int) -> Digits:
    pixels, true = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(true)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=true
    )
    generator = torch.Generator().manual_seed(seed)
    clean = labels[train]
    wrong = torch.randperm(len(clean), generator=generator)[: round(noise * len(clean))]
    shift = torch.randint(1, CLASSES, (len(wrong),), generator=generator)  # never the own class
    given = clean.clone()
    given[wrong] = (clean[wrong] + shift) % CLASSES
    return Digits(images[train], given, clean, images[test], labels[test])


def make_network() -> nn.Module:
    def block(width_in: int, width_out: int) -> list[nn.Module]:
        convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
        return [convolution, nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(1, 32), *block(32, 64), nn.Flatten(), nn.Linear(256, EMBEDDING_SIZE)
    )


def base_loss() -> nn.Module:
    return losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)


def robust(loss: nn.Module, data: Digits) -> noisydml.LossWrapper:
    return noisydml.robust(loss, CLASSES, EMBEDDING_SIZE, len(data.given_labels))


def confidence_weighted(loss: nn.Module) -> noisydml.LossWrapper:
    proxies = losses.ProxyNCALoss(CLASSES, EMBEDDING_SIZE)
    return noisydml.ConfidenceWeightedLoss(loss, proxies, lam=0.001)


def prism(loss: nn.Module, data: Digits) -> noisydml.LossWrapper:
    return noisydml.PRISMFilter(loss, CLASSES, EMBEDDING_SIZE, memory_size=len(data.given_labels))


def knn(loss: nn.Module, data: Digits) -> noisydml.LossWrapper:
    return noisydml.KNNDenoiser(loss, memory_size=len(data.given_labels))


def titan(loss: nn.Module, data: Digits) -> noisydml.LossWrapper:
    return noisydml.PrototypicalMixer(
        loss, CLASSES, EMBEDDING_SIZE, memory_size=len(data.given_labels)
    )


def small_loss(loss: nn.Module, data: Digits, by_itself: bool = False) -> noisydml.LossWrapper:
    """Told the share of wrong labels, unlike the others; the paper's ramp of 10 epochs."""
    noise_rate = min(round(data.is_noisy.float().mean().item(), 2), 0.95)
    ramp = 10 * math.ceil(len(data.given_labels) / BATCH_SIZE)
    proxies = None if by_itself else losses.ProxyNCALoss(CLASSES, EMBEDDING_SIZE)
    return noisydml.SmallLossFilter(loss, noise_rate=noise_rate, ramp=ramp, score_loss=proxies)


def selected(loss: nn.Module, data: Digits) -> noisydml.LossWrapper:
    return noisydml.SelectedInteractions(knn(loss, data))


# Each row of the table: its name, how its loss is made, and whether it trains on true labels.
Method = tuple[str, Callable[[Digits], Any], bool]
METHODS: list[Method] = [
    ("plain loss", lambda data: base_loss(), False),
    ("robust", lambda data: robust(base_loss(), data), False),
    ("ConfidenceWeightedLoss", lambda data: confidence_weighted(base_loss()), False),
    ("PRISMFilter", lambda data: prism(base_loss(), data), False),
    ("SmallLossFilter", lambda data: small_loss(base_loss(), data), False),
    ("KNNDenoiser", lambda data: knn(base_loss(), data), False),
    ("PrototypicalMixer", lambda data: titan(base_loss(), data), False),
    ("SelectedInteractions (KNN)", lambda data: selected(base_loss(), data), False),
    (
        "GroundTruthFilter (ceiling)",
        lambda data: noisydml.GroundTruthFilter(base_loss(), data.is_noisy),
        False,
    ),
    ("clean labels", lambda data: base_loss(), True),
]


def train(method: Method, data: Digits, epochs: int, seed: int) -> Result:
    name, make_loss, uses_true_labels = method
    labels = data.true_labels if uses_true_labels else data.given_labels
    torch.manual_seed(seed)
    model = make_network().to(labels.device)
    loss_fn = make_loss(data)
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    wrapped = isinstance(loss_fn, noisydml.LossWrapper)
    if wrapped:
        groups += loss_fn.parameter_groups(lr=LR, proxy_lr=PROXY_LR)
    optimizer = torch.optim.Adam(groups, lr=LR)

    weight = torch.ones(len(labels), device=labels.device) if wrapped else None
    audit = noisydml.LabelAudit(loss_fn, len(labels)) if wrapped else None
    result = Result(name, [], [], 0.0, weight, None)
    for _ in tqdm(range(epochs), desc=f"{name:28s}", unit="epoch"):
        start = time.perf_counter()
        model.train()
        for ids in torch.randperm(len(labels)).split(BATCH_SIZE):
            embeddings = model(data.train_images[ids])
            if wrapped:
                loss = loss_fn(embeddings, labels[ids], sample_ids=ids)
                weight[ids] = loss_fn.decision.weight.float()
            else:
                loss = loss_fn(embeddings, labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        result.seconds += time.perf_counter() - start
        accuracy = evaluate(model, data)
        result.p_at_1.append(100 * accuracy["precision_at_1"])
        result.map_at_r.append(100 * accuracy["mean_average_precision_at_r"])
    result.issues = audit.result() if wrapped else None
    return result


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return nn.functional.normalize(model(images))


def evaluate(model: nn.Module, data: Digits) -> dict[str, float]:
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    return calculator.get_accuracy(embed(model, data.test_images), data.test_labels)


def decision_quality(result: Result, data: Digits) -> tuple[float, float]:
    """Precision and recall, in %, of "weight below one half" as "the label is wrong"."""
    flagged = result.weight < 0.5
    right = (flagged & data.is_noisy).sum().item()
    precision = right / max(flagged.sum().item(), 1)
    recall = right / max(data.is_noisy.sum().item(), 1)
    return 100 * precision, 100 * recall


def print_table(results: list[Result], data: Digits) -> None:
    header = ("loss", "P@1", "MAP@R", "seconds", "noise precision", "noise recall")
    print(f"\n{header[0]:28s} {header[1]:>6s} {header[2]:>6s} {header[3]:>8s} "
          f"{header[4]:>16s} {header[5]:>13s}")  # fmt: skip
    for r in results:
        quality = ("-", "-")
        if r.weight is not None:
            quality = tuple(f"{q:.1f}" for q in decision_quality(r, data))
        print(f"{r.name:28s} {r.p_at_1[-1]:6.1f} {r.map_at_r[-1]:6.1f} {r.seconds:8.1f} "
              f"{quality[0]:>16s} {quality[1]:>13s}")  # fmt: skip


def write_suspects(result: Result, data: Digits, folder: Path) -> None:
    """suspects.csv, the most suspicious label first, and a sheet of the first pictures."""
    result.issues.to_csv(folder / "suspects.csv")
    pictures = (255 * (1 - data.train_images[:, 0])).byte()  # black on white
    figure = plot.contact_sheet(
        result.issues,
        pictures,
        rows=4,
        title=f"The most suspicious labels according to {result.name}: given → suggested",
    )
    figure.savefig(folder / "suspects.png", dpi=120)


def plot_curves(results: list[Result], folder: Path) -> None:
    """The plain loss, robust, and what clean labels would give."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    for name, style in (("clean labels", "k--"), ("robust", "C0"), ("plain loss", "C3")):
        values = next(r.map_at_r for r in results if r.name == name)
        ax.plot(range(1, len(values) + 1), values, style, label=name, linewidth=2)
    ax.set(xlabel="epoch", ylabel="MAP@R on the test digits, %", ylim=(0, 100))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(folder / "curves.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.5, help="share of wrong training labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    options = parser.parse_args()
    if not 0 <= options.noise <= 1:
        parser.error(f"--noise must be between 0 and 1, got {options.noise}")
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    import matplotlib as mpl  # needed by the figures alone

    mpl.use("Agg")
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # batches of 16 small images only lose time to more

    data = load_data(options.noise, options.seed)
    results = [train(method, data, options.epochs, options.seed) for method in METHODS]
    print_table(results, data)
    judge = next(result for result in results if result.name == "robust")
    plot_curves(results, options.output)
    write_suspects(judge, data, options.output)
    print(f"\nwrote curves.png, suspects.png and suspects.csv to {options.output}")


if __name__ == "__main__":
    main()
