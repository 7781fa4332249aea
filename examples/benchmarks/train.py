"""Train one loss, or a whole grid of them, on a real image set with wrong labels.

    python examples/benchmarks/train.py omniglot --methods plain PRISMFilter --noise uniform
    python examples/benchmarks/train.py omniglot --grid --output results/omniglot.jsonl
    python examples/benchmarks/train.py cars196 --grid --cache FOLDER --output cars196.jsonl
    python examples/benchmarks/report.py results/omniglot.jsonl

The first argument is a recipe (network, batches, optimiser, evaluation); ``--data`` names an npz
file with the images, in the format of image_sets.py, and is otherwise looked for, by the recipe's
name for it, in the folder NOISYDML_DATA. Recipes with a pretrained network keep what it makes of
the images in the folder ``--cache``, or NOISYDML_CACHE. Every run is a line of JSON in the output
file. A run that is there already is not repeated, so that a grid goes on where it stopped, and
several processes can share one by ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import image_sets
import networks
import numpy as np
import pretrained
import torch
from grids import GRIDS
from image_sets import GivenLabels, Images
from methods import LOSSES, METHODS, Setting, UnavailableError
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor, nn
from tqdm import tqdm

import noisydml


@dataclass(frozen=True)
class Recipe:
    """How to train and to test; ``per_class`` and ``steps`` of 0 mean random batches, all data."""

    file: str
    network: str
    epochs: int
    steps: int
    batch: int
    per_class: int
    lr: float
    loss_lr: float  # of proxies, and of what judges the samples
    embedding_size: int = 64
    normalized: bool = True  # cosine in the test, otherwise Euclidean distance of raw features
    best_epoch: bool = False  # test after every epoch and report the best, too
    map_at_r: bool = True
    split: str = ""  # what says which images are trained on; see image_sets.load
    every: int = 1  # of each part, every so many-th image only
    side: int = 0  # pixels at which a pretrained network saw the images; 0 for the images as such
    block: int | None = None  # its block whose output is trained on; None for its features
    head_lr: float | None = None  # of the head, where it is not ``lr``


RECIPES = {
    "omniglot": Recipe("omniglot28.npz", "convolutions", 8, 150, 128, 4, 1e-3, 1e-2),
    "mnist": Recipe(  # N2D2, Table 2; what its published code has
        "mnist28.npz", "perceptron", 30, 0, 256, 0, 2e-4, 3e-3,
        normalized=False, best_epoch=True, map_at_r=False,
    ),
    "cifar100": Recipe(
        "cifar100_sub150.npz", "residual", 10, 100, 128, 4, 1e-3, 1e-2, split="class_coarse"
    ),
    # EfficientNet-Lite0. A head on frozen features: 8,054 and 7,500 images, seconds an epoch.
    "features_cars196": Recipe(
        "cars196_128.npz", "frozen", 10, 126, 64, 4, 1e-4, 1e-2, embedding_size=128, side=160
    ),
    "features_cifar100": Recipe(
        "cifar100_sub150.npz", "frozen", 10, 117, 64, 4, 1e-4, 1e-2,
        embedding_size=128, split="classes", side=96,
    ),
    # Blocks 11 to 15 and a head, batch norms frozen, on every second image: 4,027.
    "cars196": Recipe(
        "cars196_128.npz", "upper_blocks", 4, 63, 64, 4, 1e-4, 1e-2,
        embedding_size=128, every=2, side=128, block=pretrained.BLOCK, head_lr=1e-3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What identifies a run; all that it depends on but the code and the recipe's rest."""

    recipe: str
    data: str
    loss: str
    method: str
    noise: str
    rate: float
    seed: int
    epochs: int
    steps: int


def batches(labels: Tensor, recipe: Recipe, steps: int) -> Iterator[Tensor]:
    """(B,) sample ids: ``per_class`` of each class, by the labels in use, or at random."""
    if not recipe.per_class:
        order = torch.randperm(len(labels))
        yield from order.split(recipe.batch)[: steps or None]
        return
    members = labels.argsort(stable=True).split(torch.bincount(labels).tolist())
    full = [rows for rows in members if len(rows) >= recipe.per_class]
    for _ in range(steps):
        chosen = torch.randperm(len(full))[: recipe.batch // recipe.per_class].tolist()
        picked = [full[c][torch.randperm(len(full[c]))[: recipe.per_class]] for c in chosen]
        yield torch.cat(picked)


def train(run: Run, recipe: Recipe, images: Images, given: GivenLabels) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    channels, side = images.train.shape[1:3]
    body, head = getattr(networks, recipe.network)(channels, side, recipe.embedding_size)
    device = images.train.device
    model = nn.Sequential(body, head).to(device, memory_format=torch.channels_last)
    method = METHODS[run.method]
    if method.clean:
        given = GivenLabels(images.truth, torch.zeros_like(given.is_noisy), images.truth)
    steps = run.steps or -(-len(images.train) // recipe.batch)
    width = getattr(head, "in_features", recipe.embedding_size)
    # Of a list that somebody has published the rate is only a name.
    told = run.rate if run.noise in image_sets.DRAWN else given.rate
    loss_fn = method.make(
        Setting(given, told, width, recipe.embedding_size, head, run.epochs, steps,
                LOSSES[run.loss], images.names)
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(parameter_groups(model, loss_fn, recipe), lr=recipe.lr)
    start, log, labels = time.perf_counter(), [], given.labels
    if method.start is not None and hasattr(loss_fn, "refresh"):
        judged = model if method.start == "embeddings" else body
        loss_fn.refresh(embed(judged, images.train, recipe), given.labels)
    epochs = run.epochs if method.trains else 0
    for _ in tqdm(range(epochs), desc=f"{run.method}, {run.seed}", mininterval=10):
        model.train()
        seen = []
        for ids in batches(labels, recipe, run.steps):
            embeds = isinstance(loss_fn, noisydml.PrototypicalMixer)  # has the head inside
            embeddings = (body if embeds else model)(images.train[ids])
            if isinstance(loss_fn, noisydml.LossWrapper):
                keywords = {"sample_ids": ids} if method.sample_ids else {}
                loss = loss_fn(embeddings, given.labels[ids], **keywords)
                seen.append((ids, loss_fn.decision))
            else:
                loss = loss_fn(embeddings, given.labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if method.refresh:
            loss_fn.refresh(embed(model, images.train, recipe), given.labels)
        if isinstance(loss_fn, noisydml.PrototypicalMixer):
            loss_fn.end_epoch()
            ids, _, new, _ = loss_fn.refined_labels()
            labels = given.labels.index_copy(0, ids, new)
        log.append({**decision_quality(given, seen), **relabelling(given, labels)})
        if recipe.best_epoch:
            log[-1] |= evaluate(model, images, recipe)
    seconds = round(time.perf_counter() - start, 1)
    last = log[-1] if log and recipe.best_epoch else evaluate(model, images, recipe)
    result = {name: last[name] for name in ("p_at_1", "map_at_r") if name in last}
    if recipe.best_epoch:
        result["best_p_at_1"] = max(each["p_at_1"] for each in [*log, last])
    return {**result, "seconds": seconds, "log": log}


def parameter_groups(
    model: nn.Sequential, loss_fn: nn.Module, recipe: Recipe
) -> list[dict[str, Any]]:
    body, head = model
    groups: list[dict[str, Any]] = [{"params": list(body.parameters())}]
    groups.append({"params": list(head.parameters()), "lr": recipe.head_lr or recipe.lr})
    known = {id(p) for p in model.parameters()}
    if isinstance(loss_fn, noisydml.LossWrapper):
        groups += loss_fn.parameter_groups(lr=recipe.loss_lr, proxy_lr=recipe.loss_lr)
    else:
        groups.append({"params": list(loss_fn.parameters()), "lr": recipe.loss_lr})
    for group in groups[2:]:  # without the head, which is the model's
        group["params"] = [p for p in group["params"] if id(p) not in known]
    return [group for group in groups if group["params"]]


def decision_quality(given: GivenLabels, seen: list[Any]) -> dict[str, float]:
    """Shares, in %: samples kept, of them with a right label, of those dropped with a wrong one."""
    if not seen:
        return {}
    noisy = torch.cat([given.is_noisy[ids] for ids, _ in seen])
    keep = torch.cat([decision.keep for _, decision in seen])
    weight = torch.cat([decision.weight for _, decision in seen])
    found = {
        "kept": 100 * keep.float().mean().item(),
        "kept_right": 100 * (~noisy[keep]).float().mean().item(),
        "dropped_wrong": 100 * noisy[~keep].float().mean().item() if (~keep).any() else None,
        "weight_of_right": weight[~noisy].mean().item(),
        "weight_of_wrong": weight[noisy].mean().item() if noisy.any() else None,
    }
    rate = seen[-1][1].noise_rate
    return found if rate is None else {**found, "noise_rate": float(rate)}


def relabelling(given: GivenLabels, labels: Tensor) -> dict[str, float]:
    """In %: samples whose label has been changed, of them now right and right before."""
    changed = labels != given.labels
    if given.truth is None or not changed.any():
        return {}
    now, before, truth = labels[changed], given.labels[changed], given.truth[changed]
    return {
        "relabelled": 100 * changed.float().mean().item(),
        "relabelled_right": 100 * (now == truth).float().mean().item(),
        "relabelled_were_right": 100 * (before == truth).float().mean().item(),
        "labels_right": 100 * (labels == given.truth).float().mean().item(),
    }


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, recipe: Recipe) -> Tensor:
    """(N, D) in eval mode."""
    model.eval()
    features = torch.cat([model(part) for part in images.split(500)])
    return nn.functional.normalize(features) if recipe.normalized else features


def evaluate(model: nn.Module, images: Images, recipe: Recipe) -> dict[str, float]:
    """Each test image is a query among all the others; in %."""
    distance = CosineSimilarity() if recipe.normalized else LpDistance(normalize_embeddings=False)
    names = ("precision_at_1", "mean_average_precision_at_r")[: 1 + recipe.map_at_r]
    calculator = AccuracyCalculator(
        include=names,
        k="max_bin_count" if recipe.map_at_r else 1,
        knn_func=CustomKNN(distance, batch_size=500),
        device=images.test.device,
    )
    features = embed(model, images.test, recipe)
    accuracy = calculator.get_accuracy(features, images.test_labels)
    short = {"precision_at_1": "p_at_1", "mean_average_precision_at_r": "map_at_r"}
    return {short[name]: 100 * accuracy[name] for name in names}


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file; a line that was cut off when its process was killed is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", type=Path, help="npz file; see image_sets.py")
    parser.add_argument("--cache", type=Path, help="folder of what a pretrained network computed")
    names = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--losses", choices=LOSSES, default=["multi-similarity"], **names,
                        help="of " + ", ".join(LOSSES))  # fmt: skip
    parser.add_argument("--methods", choices=METHODS, default=list(METHODS), **names,
                        help="all by default: " + ", ".join(METHODS))  # fmt: skip
    parser.add_argument("--noise", choices=image_sets.NOISES, default="uniform")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--grid", action="store_true", help="all of grids.py for this recipe")
    parser.add_argument("--only", default="", help="of the grid: runs whose words hold this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="otherwise the recipe's")
    parser.add_argument("--steps", type=int, help="an epoch; otherwise the recipe's")
    parser.add_argument("--output", type=Path, default=Path("outputs/train.jsonl"))
    parser.add_argument("--short", action="store_true", help="made-up images, four steps, no file")
    return parser.parse_args()


def made_up(folder: Path) -> Path:
    """A file of images of one grey level a class."""
    labels = np.arange(8).repeat(16)
    draw = np.random.default_rng(0).integers
    pixels = 20 * labels[:, None, None, None] + draw(0, 40, (len(labels), 32, 32, 3))
    np.savez(folder / "short.npz", images=pixels.astype(np.uint8), labels=labels)
    return folder / "short.npz"


def shorten(options: argparse.Namespace, folder: Path) -> None:
    """To see that it runs: two epochs of two steps."""
    options.data, options.cache = made_up(folder), folder
    options.seeds, options.epochs, options.steps = [0], 2, 2
    options.output = folder / "runs.jsonl"


def wanted(options: argparse.Namespace, recipe: Recipe, data: Path) -> list[Run]:
    cells = [
        (loss, method, options.noise, options.rate)
        for loss in options.losses
        for method in options.methods
    ]
    if options.grid:
        cells = [c for c in GRIDS[options.recipe] if options.only in " ".join(map(str, c))]
    epochs = options.epochs if options.epochs is not None else recipe.epochs
    steps = options.steps if options.steps is not None else recipe.steps
    return [
        Run(options.recipe, data.stem, *cell, seed=seed, epochs=epochs, steps=steps)
        for cell in cells
        for seed in options.seeds
    ]


def main() -> None:
    options = parse()
    if not options.short:
        run_all(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        shorten(options, Path(folder))
        run_all(options)


def load(recipe: Recipe, data: Path | None = None, cache: Path | None = None) -> Images:
    """The images of a recipe, or what a pretrained network has made of them."""
    data, inputs = place(recipe, data), None
    if recipe.side:
        folder = cache or os.environ.get("NOISYDML_CACHE")
        if not folder:
            raise SystemExit("give --cache, a folder outside the repository, or NOISYDML_CACHE")
        inputs = pretrained.cached(data, Path(folder), recipe.side, recipe.block)
    return image_sets.load(data, recipe.split, recipe.every, inputs)


def place(recipe: Recipe, data: Path | None) -> Path:
    folder = os.environ.get("NOISYDML_DATA")
    found = data or (Path(folder) / recipe.file if folder else None)
    if found is None:
        raise SystemExit(f"give --data, or the folder of {recipe.file} in NOISYDML_DATA")
    return found


def run_all(options: argparse.Namespace) -> None:
    recipe = RECIPES[options.recipe]
    data = place(recipe, options.data)
    images = load(recipe, data, options.cache)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.exists() and not options.output.read_text().endswith("\n"):
        with options.output.open("a") as file:  # what was being written when a run was killed
            file.write("\n")
    for run in wanted(options, recipe, data):
        if any(asdict(run).items() <= done.items() for done in read(options.output)):
            continue
        given = image_sets.corrupt(images, run.noise, run.rate, run.seed)
        try:
            result = train(run, recipe, images, given)
        except UnavailableError as error:
            print(f"{run.method} is left out: {error}", flush=True)
            continue
        with options.output.open("a") as file:
            file.write(json.dumps(asdict(run) | result) + "\n")
        figures = ", ".join(f"{k} {v:.1f}" for k, v in result.items() if k != "log")
        print(" | ".join(map(str, asdict(run).values())), "|", figures, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    np.random.seed(0)  # noqa: NPY002 - PML's parts may draw from it
    main()
