"""Train on Omniglot characters of which a share of the labels is wrong, test on unseen alphabets.

    python examples/benchmarks/omniglot.py --data data/omniglot28.npz --methods plain ground_truth
    python examples/benchmarks/omniglot.py --data data/omniglot28.npz --report

The network sees 964 characters with 20 drawings each, 28x28; R@1 and MAP@R are measured on the 659
characters of 20 other alphabets. Every run appends one line of JSON to the output file, and a run
that is in there already is not repeated, so that an interrupted grid goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn
from tqdm import tqdm

import noisydml

EMBEDDING_SIZE, WIDTH, LR, CLASSES_PER_BATCH, SAMPLES_PER_CLASS, STEPS = 64, 48, 1e-3, 32, 4, 150


@dataclass
class Omniglot:
    """Drawings to train on, with wrong labels, and drawings of other characters to test on."""

    images: Tensor  # (N, 1, 28, 28)
    given: Tensor  # (N,) the labels that the training sees
    true: Tensor  # (N,)
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.true.max()) + 1

    @property
    def is_noisy(self) -> Tensor:
        return self.given != self.true


def load(path: Path, noise: str, rate: float, seed: int) -> Omniglot:
    with np.load(path, allow_pickle=False) as data:
        images = torch.from_numpy(data["images"])[:, None] / 255
        labels = torch.from_numpy(data["labels"].astype(np.int64))
        split = torch.from_numpy(data["class_split"].astype(np.int64))[labels]
    true = torch.unique(labels[split == 0], return_inverse=True)[1]
    given = corrupt(true, noise, rate, seed)
    return Omniglot(images[split == 0], given, true, images[split == 1], labels[split == 1])


def corrupt(true: Tensor, noise: str, rate: float, seed: int) -> Tensor:
    """The same share of every class gets the label of another class."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = int(true.max()) + 1
    order = torch.randperm(len(true), generator=generator)
    order = order[true[order].argsort(stable=True)]  # by class, shuffled within
    counts = torch.bincount(true)
    rank = torch.arange(len(true)) - (counts.cumsum(0) - counts)[true[order]]
    wrong = order[rank < (rate * counts).round()[true[order]]]
    if noise == "uniform":
        shift = torch.randint(1, num_classes, (len(wrong),), generator=generator)
    else:
        shift = torch.ones(len(wrong), dtype=torch.int64)
    given = true.clone()
    given[wrong] = (true[wrong] + shift) % num_classes
    return given


def make_network() -> nn.Sequential:
    def block(width_in: int) -> list[nn.Module]:
        convolution = nn.Conv2d(width_in, WIDTH, 3, padding=1)
        return [convolution, nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(1), *block(WIDTH), *block(WIDTH), nn.Flatten(), nn.Linear(9 * WIDTH, EMBEDDING_SIZE)
    )


def base_loss() -> nn.Module:
    return losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)


def batches(labels: Tensor, steps: int) -> Iterator[Tensor]:
    """Positions of 32 classes x 4 samples, drawn by their given labels."""
    order = labels.argsort(stable=True)
    members = order.split(torch.bincount(labels).tolist())
    full = [m for m in members if len(m) >= SAMPLES_PER_CLASS]
    for _ in range(steps):
        chosen = torch.randperm(len(full))[:CLASSES_PER_BATCH].tolist()
        yield torch.cat([full[c][torch.randperm(len(full[c]))[:SAMPLES_PER_CLASS]] for c in chosen])


def prism(data: Omniglot, **settings: Any) -> noisydml.LossWrapper:
    return noisydml.PRISMFilter(
        base_loss(), data.num_classes, EMBEDDING_SIZE, memory_size=len(data.given), **settings
    )


def knn(data: Omniglot, **settings: Any) -> noisydml.LossWrapper:
    return noisydml.KNNDenoiser(base_loss(), memory_size=len(data.given), **settings)


Method = Callable[[Omniglot, float], Any]
METHODS: dict[str, Method] = {
    "plain": lambda data, rate: base_loss(),
    "ground_truth": lambda data, rate: noisydml.GroundTruthFilter(base_loss(), data.is_noisy),
    "prism (rate given)": lambda data, rate: prism(data, noise_rate=rate),
    "prism": lambda data, rate: prism(data),
    "prism (T = 1)": lambda data, rate: prism(data, noise_rate=rate, temperature=1.0),
    "prism (T = 0.1)": lambda data, rate: prism(data, noise_rate=rate, temperature=0.1),
    "knn": lambda data, rate: knn(data),
    "knn (refreshed)": lambda data, rate: knn(data),
    "knn (threshold 0.25)": lambda data, rate: knn(data, threshold=0.25),
    "knn (threshold 0.25, refreshed)": lambda data, rate: knn(data, threshold=0.25),
    "knn (counts)": lambda data, rate: knn(data, vote="count"),
}


def train(
    data: Omniglot, method: Method, rate: float, seed: int, epochs: int, name: str
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = make_network()
    loss_fn = method(data, rate)
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if isinstance(loss_fn, noisydml.LossWrapper):
        groups += loss_fn.parameter_groups(lr=LR)
    optimizer = torch.optim.Adam(groups, lr=LR)
    start, log = time.perf_counter(), []
    for _ in tqdm(range(epochs), desc=name, unit="epoch", mininterval=10):
        model.train()
        kept = []
        for ids in batches(data.given, STEPS):
            embeddings = model(data.images[ids])
            if isinstance(loss_fn, noisydml.LossWrapper):
                loss = loss_fn(embeddings, data.given[ids], sample_ids=ids)
                kept.append((ids, loss_fn.decision.keep))
            else:
                loss = loss_fn(embeddings, data.given[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if "refreshed" in name:  # a pass over the data set in eval mode, every epoch
            loss_fn.refresh(embed(model, data.images), data.given)
        log.append(decision_quality(data, kept, loss_fn))
    seconds = time.perf_counter() - start
    return {**evaluate(model, data), "seconds": seconds, "epochs_log": log}


def decision_quality(
    data: Omniglot, kept: list[tuple[Tensor, Tensor]], loss_fn: Any
) -> dict[str, float]:
    """Shares, in %: kept samples whose label is right, dropped ones whose label is wrong."""
    if not kept:
        return {}
    ids, keep = (torch.cat(column) for column in zip(*kept, strict=True))
    noisy = data.is_noisy[ids]
    quality = {
        "kept": 100 * keep.float().mean().item(),
        "kept_right": 100 * (~noisy[keep]).float().mean().item(),
        "dropped_wrong": 100 * noisy[~keep].float().mean().item() if (~keep).any() else 0.0,
    }
    rate = getattr(loss_fn.decision, "noise_rate", None)
    return quality if rate is None else {**quality, "noise_rate": float(rate)}


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """(N, D) normalised, in eval mode."""
    model.eval()
    return torch.cat([nn.functional.normalize(model(part)) for part in images.split(500)])


def evaluate(model: nn.Module, data: Omniglot) -> dict[str, float]:
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    accuracy = calculator.get_accuracy(embed(model, data.test_images), data.test_labels)
    return {
        "r_at_1": 100 * accuracy["precision_at_1"],
        "map_at_r": 100 * accuracy["mean_average_precision_at_r"],
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(results: list[dict[str, Any]]) -> None:
    """A Markdown table: mean and standard deviation over the seeds."""
    keys = sorted({(r["noise"], r["rate"], r["epochs"], r["method"]) for r in results})
    print("| noise | epochs | loss | seeds | R@1 | MAP@R | kept | of them right |")
    print("|---|---|---|---|---|---|---|---|")
    for key in keys:
        rows = [r for r in results if (r["noise"], r["rate"], r["epochs"], r["method"]) == key]
        columns = [[r["r_at_1"] for r in rows], [r["map_at_r"] for r in rows]]
        last = [r["epochs_log"][-1] for r in rows]
        if all("kept" in each for each in last):
            columns += [[e["kept"] for e in last], [e["kept_right"] for e in last]]
        cells = [
            f"{np.mean(c):.1f} ± {np.std(c, ddof=1) if len(c) > 1 else 0:.1f}" for c in columns
        ]
        cells += ["-"] * (4 - len(cells))
        noise, rate, epochs, method = key
        print(
            f"| {noise} {rate:.0%} | {epochs} | {method} | {len(rows)} | "
            + " | ".join(cells)
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = os.environ.get("NOISYDML_DATA")
    default = Path(folder) / "omniglot28.npz" if folder else None
    parser.add_argument("--data", type=Path, default=default, help="omniglot28.npz")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--noise", choices=("uniform", "pair_flip"), default="uniform")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/omniglot.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the table of what was run")
    options = parser.parse_args()
    if options.report:
        report(read(options.output))
        return
    if options.data is None:
        parser.error("give --data, or the folder of omniglot28.npz in NOISYDML_DATA")
    torch.set_num_threads(1)  # runs side by side gain more than threads
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        data = load(options.data, options.noise, options.rate, seed)
        for name in options.methods:
            run = {"method": name, "noise": options.noise, "rate": options.rate, "seed": seed,
                   "epochs": options.epochs}  # fmt: skip
            if any(run.items() <= done.items() for done in read(options.output)):
                continue
            result = train(data, METHODS[name], options.rate, seed, options.epochs, name)
            with options.output.open("a") as file:
                file.write(json.dumps(run | result) + "\n")
            print(
                name, seed, f"R@1 {result['r_at_1']:.1f} MAP@R {result['map_at_r']:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
