"""The ablations of TITAN (the paper's Table 4) on handwritten digits: many samples a class.

    python examples/benchmarks/titan_digits.py --noise uniform pair_flip --seeds 3

The training digits have wrong labels; P@1 and MAP@R are those of the test digits among one
another. Where train.py's Omniglot has 20 drawings of each of 964 characters and tests on others,
here are 120 of each of 10 digits, for so many epochs that the plain loss learns the wrong labels by
heart.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.losses import SupConLoss
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import Tensor, nn

from noisydml import GroundTruthFilter, PrototypicalMixer

FEATURES, EMBEDDING, CLASSES = 128, 32, 10
VARIANTS: dict[str, dict[str, Any] | None] = {
    "TITAN": {},
    "without similarity loss": {"similarity": False},
    "without clustering": {"clustering": 0},
    "without mixing": {"mixing": False},
    "without refinement": {"refinement": False},
    "without weights": {"weights": None},
    "SupCon": None,
    "SupCon, wrong labels dropped": None,
    "weights: tempered": {"weights": "tempered"},
    "weights: density": {"weights": "density"},
    "normalize=False": {"normalize": False},
}


class Digits:
    def __init__(self, noise: str, rate: float, seed: int) -> None:
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        labels = torch.tensor(digits.target)
        test = torch.arange(len(labels)) % 3 == 0
        self.images, self.true = images[~test], labels[~test]
        self.test_images, self.test_labels = images[test], labels[test]
        generator = torch.Generator().manual_seed(seed)
        wrong = torch.rand(len(self.true), generator=generator) < rate
        shift = torch.ones_like(self.true)
        if noise == "uniform":
            shift = torch.randint(1, CLASSES, self.true.shape, generator=generator)
        self.given = torch.where(wrong, (self.true + shift) % CLASSES, self.true)


def make_loss(name: str, data: Digits, head: nn.Module, epochs: int) -> Any:
    settings = VARIANTS[name]
    if settings is None:
        loss = SupConLoss(temperature=0.5)
        return GroundTruthFilter(loss, data.given != data.true) if "dropped" in name else loss
    return PrototypicalMixer(
        None, CLASSES, FEATURES, head, memory_size=len(data.given),
        warmup=2, cycles=epochs // 2, max_retrieved=80, **settings,
    )  # fmt: skip


def train(data: Digits, name: str, seed: int, epochs: int) -> list[float]:
    """P@1, MAP@R, and the share of training labels that are right in the end."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, FEATURES), nn.ReLU())
    head = nn.Linear(FEATURES, EMBEDDING)
    loss_fn = make_loss(name, data, head, epochs)
    mixes = isinstance(loss_fn, PrototypicalMixer)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(epochs):
        for ids in torch.randperm(len(data.given)).split(64):
            features = body(data.images[ids])
            keywords = {} if isinstance(loss_fn, SupConLoss) else {"sample_ids": ids}
            loss = loss_fn(features if mixes else head(features), data.given[ids], **keywords)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    labels = data.given
    if mixes:
        refined = loss_fn.refined_labels()
        labels = labels.index_copy(0, refined.sample_ids, refined.new)
    with torch.no_grad():
        embeddings = nn.functional.normalize(head(body(data.test_images)))
    return [*retrieval(embeddings, data.test_labels), 100 * (labels == data.true).float().mean()]


def retrieval(embeddings: Tensor, labels: Tensor) -> list[float]:
    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    accuracy = calculator.get_accuracy(embeddings, labels)
    return [100 * accuracy[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", nargs="+", choices=("uniform", "pair_flip"), default=["uniform"])
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="to see that it runs")
    options = parser.parse_args()
    if options.short:
        options.epochs, options.seeds, options.methods = 4, 1, ["TITAN", "SupCon"]
    torch.set_num_threads(1)
    print("| noise | loss | P@1 | MAP@R | labels right |\n|---|---|---|---|---|")
    for noise in options.noise:
        for name in options.methods:
            runs = [
                train(Digits(noise, options.rate, seed), name, seed, options.epochs)
                for seed in range(options.seeds)
            ]
            columns = np.array(runs).T
            cells = [f"{c.mean():.1f} ± {c.std(ddof=1) if len(c) > 1 else 0:.1f}" for c in columns]
            print(
                f"| {noise.replace('_', ' ')} {options.rate:.0%} | {name} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
