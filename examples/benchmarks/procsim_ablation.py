"""The variants of ProcSim's Table 1 on small real image sets.

    python examples/benchmarks/procsim_ablation.py --data FOLDER --output runs.jsonl
    python examples/benchmarks/procsim_ablation.py --output runs.jsonl --table  # what there is

Every run is a line of the output. A run that is there already is not repeated, so the script can
be stopped and started again, and several machines can share the grid by ``--seeds``,
``--noises`` or ``--variants``. Data sets:

* ``digits`` comes with scikit-learn: classes 0-5 to train, in two groups, 6-9 to test;
* ``cifar100`` needs ``cifar100_sub150.npz`` in FOLDER: ``images`` (N, 32, 32, 3) uint8,
  ``labels`` (N,), ``class_coarse`` (100,), ``class_names``; superclasses 0-9 to train;
* ``omniglot`` needs ``omniglot28.npz``: ``images`` (N, 28, 28) uint8, ``labels`` (N,),
  ``class_split`` and ``class_alphabet`` (1623,); class_split 0 to train.

FOLDER is also taken from the variable NOISYDML_DATA. Classes to train and to test are disjoint.
Noise is that of noisydml.noise: uniform, or semantic in the tree of superclasses or alphabets,
where a wrong label is a class of the same group, if there is another. Recall@1 is on the classes
to test, in %, after the last epoch; the harmonic mean is over all columns of noise, the clean one
included, as in the paper's table.

The guidance is label-free: cosines of the images' own centred pixels, in the place of CLIP's
image embeddings (ProcSim, appendix C). ``--language MODEL`` takes the class names of CIFAR-100
instead, looked up by the given labels, right or wrong (a model of sentence-transformers, or its
folder).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.samplers import MPerClassSampler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from noisydml import (
    ConfidenceWeightedLoss,
    GroundTruthFilter,
    LanguageGuidance,
    LossWrapper,
    RegularizedLoss,
    SuperLoss,
)
from noisydml.noise import ClassHierarchy, NoisyLabels, semantic, uniform

WIDTH = 64
NOISES = [("none", 0.0), ("semantic", 0.2), ("semantic", 0.5), ("uniform", 0.2), ("uniform", 0.5)]
COLUMNS = {f"{kind}-{rate:.0%}" if rate else kind: (kind, rate) for kind, rate in NOISES}


@dataclass
class Data:
    """Images (N, channels, side, side) in [0, 1] of the classes to train on and to test on."""

    images: Tensor
    truth: Tensor  # (N,) 0 to C - 1
    groups: Tensor  # (C,) the superclass of each class
    names: list[str] | None  # of the C classes
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Run:
    """What identifies a run; all that it depends on but the code."""

    data: str
    variant: str
    noise: str
    rate: float
    seed: int
    epochs: int
    steps: int
    lam: float
    omega: float
    guidance: str
    batch: int
    lr: float
    proxy_lr: float


def load(name: str, folder: str | None) -> Data:
    if name == "digits":
        pixels, labels = load_digits(return_X_y=True)
        images = (pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return split(images, labels, np.arange(10) < 6, np.arange(10) // 3, None)
    if folder is None:
        raise SystemExit(f"{name} needs --data FOLDER or the variable NOISYDML_DATA")
    file = {"cifar100": "cifar100_sub150.npz", "omniglot": "omniglot28.npz"}[name]
    with np.load(Path(folder) / file, allow_pickle=False) as arrays:
        if name == "cifar100":
            images, coarse = arrays["images"].transpose(0, 3, 1, 2), arrays["class_coarse"]
            names = [str(n).replace("_", " ") for n in arrays["class_names"]]
            return split(images, arrays["labels"], coarse < 10, coarse, names)
        images, alphabets = arrays["images"][:, None], arrays["class_alphabet"]
        return split(images, arrays["labels"], arrays["class_split"] == 0, alphabets, None)


def split(
    images: np.ndarray,
    labels: np.ndarray,
    trains: np.ndarray,
    groups: np.ndarray,
    names: list[str] | None,
) -> Data:
    """Cut by class; ``trains`` and ``groups`` have an entry per class."""
    new = np.cumsum(trains) - 1
    rows = trains[labels]
    scaled = torch.tensor(images, dtype=torch.float32) / 255
    kept = None if names is None else [n for n, t in zip(names, trains, strict=True) if t]
    return Data(
        scaled[rows],
        torch.tensor(new[labels[rows]]),
        torch.tensor(groups[trains].astype(np.int64)),
        kept,
        scaled[~rows],
        torch.tensor(labels[~rows].astype(np.int64)),
    )


def corrupt(truth: Tensor, groups: Tensor, kind: str, rate: float, seed: int) -> NoisyLabels:
    """Uniform noise, or semantic noise in the tree of groups and their classes."""
    if kind == "semantic":
        return semantic(truth, rate, ClassHierarchy.from_categories(groups.tolist()), seed=seed)
    return uniform(truth, rate, seed=seed)


def network(images: Tensor) -> nn.Module:
    """Three convolutions with batch norm, ReLU and pooling, and a linear layer."""
    channels, side = images.shape[1], images.shape[2]
    layers: list[nn.Module] = []
    for _ in range(3):
        convolution = nn.Conv2d(channels, 48, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        channels, side = 48, (side + 1) // 2
    head = nn.Linear(48 * side * side, WIDTH)
    # Channels last: twice as fast on a CPU.
    return nn.Sequential(*layers, nn.Flatten(), head).to(memory_format=torch.channels_last)


@dataclass
class Parts:
    """What the losses of the table are made of."""

    run: Run
    classes: int
    guidance: Callable[[], LanguageGuidance]
    is_noisy: Tensor

    def ms(self) -> nn.Module:
        return losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.1)

    def proxies(self) -> nn.Module:
        return losses.ProxyNCALoss(self.classes, WIDTH)

    def weighted(self, loss: Any = None, judge: Any = None, **settings: Any) -> nn.Module:
        judge = judge or self.proxies()
        return ConfidenceWeightedLoss(loss or self.ms(), judge, lam=self.run.lam, **settings)

    def guided(self, loss: Any) -> nn.Module:
        return RegularizedLoss(loss, self.guidance(), self.run.omega)

    def judged_by_itself(self, loss: nn.Module) -> nn.Module:
        return self.weighted(loss, loss)


VARIANTS: dict[str, Callable[[Parts], nn.Module]] = {
    "SuperLoss": lambda p: SuperLoss(losses.ContrastiveLoss(), lam=0.25, level="pair"),
    "Proxy-NCA": lambda p: p.proxies(),
    "MS": lambda p: p.ms(),
    "MS + PLG": lambda p: p.guided(p.ms()),
    "ProcSim (base)": lambda p: p.guided(p.weighted()),
    "ProcSim without PLG": lambda p: p.weighted(),
    "Threshold on MS instead of Proxy-NCA": lambda p: p.guided(p.judged_by_itself(p.ms())),
    "Proxy-NCA instead of MS as DML loss": lambda p: p.guided(p.judged_by_itself(p.proxies())),
    "Regularization affected by confidence": lambda p: p.weighted(p.guided(p.ms())),
    "Global average instead of Otsu's method": lambda p: p.guided(
        p.weighted(threshold="running_mean", decay=None)
    ),
    "Gaussian Mixture Model instead of Otsu's method": lambda p: p.guided(
        p.weighted(threshold="gaussian_mixture")
    ),
    "Ground-truth filter (ceiling)": lambda p: p.guided(GroundTruthFilter(p.ms(), p.is_noisy)),
}


def guidance_table(data: Data, language: str | None) -> Tensor:
    """(C, E) of names, or (N, E) of pixels."""
    if language is None:
        pixels = data.images.flatten(1)
        return pixels - pixels.mean(dim=0)
    if data.names is None:
        raise SystemExit("--language needs a data set with class names: cifar100")
    from noisydml.language import embed_names, sentence_transformers_encoder

    return embed_names(data.names, sentence_transformers_encoder(language))


def train(run: Run, data: Data, table: Tensor) -> dict[str, float]:
    torch.manual_seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002 - PML's sampler draws from it
    noisy = corrupt(data.truth, data.groups, run.noise, run.rate, run.seed)
    given = torch.as_tensor(noisy.labels)
    by_name = len(table) == len(data.groups)

    def guidance() -> LanguageGuidance:
        if by_name:
            return LanguageGuidance(table, by="labels")
        return LanguageGuidance(table, by="sample_ids", same_class="diagonal")

    model = network(data.images)
    parts = Parts(run, len(data.groups), guidance, torch.as_tensor(noisy.is_noisy))
    loss_fn = VARIANTS[run.variant](parts)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, weight_decay=4e-4)
    proxies = list(loss_fn.parameters())
    proxy_optimizer = torch.optim.Adam(proxies, lr=run.proxy_lr) if proxies else None
    takes_ids = isinstance(loss_fn, LossWrapper)

    start = time.perf_counter()
    for _ in range(run.epochs):
        model.train()
        size = min(run.batch, 4 * len(data.groups))
        sampler = MPerClassSampler(given, 4, size, length_before_new_iter=run.steps * size)
        for ids in torch.tensor(list(sampler)).split(size):
            keywords = {"sample_ids": ids} if takes_ids else {}
            loss = loss_fn(model(data.images[ids]), given[ids], **keywords)
            optimizer.zero_grad()
            loss_fn.zero_grad()
            loss.backward()
            optimizer.step()
            if proxy_optimizer is not None:
                proxy_optimizer.step()
    seconds = time.perf_counter() - start
    return {"recall_at_1": recall_at_1(model, data), "seconds": round(seconds, 1)}


@torch.no_grad()
def recall_at_1(model: nn.Module, data: Data) -> float:
    model.eval()
    x = torch.cat([nn.functional.normalize(model(part)) for part in data.test_images.split(1000)])
    hits = []
    for rows in torch.arange(len(x)).split(1000):
        similarity = x[rows] @ x.T
        similarity[torch.arange(len(rows)), rows] = -2
        hits.append(data.test_labels[similarity.argmax(dim=1)] == data.test_labels[rows])
    return 100 * torch.cat(hits).double().mean().item()


def key(record: dict[str, Any]) -> str:
    return json.dumps({name: record[name] for name in Run.__dataclass_fields__})


def read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
    return {key(record): record for record in records}


def print_tables(records: list[dict[str, Any]]) -> None:
    """A table for each data set and each setting of the rest."""
    varies = {"variant", "noise", "rate", "seed"}
    tables: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        fixed = {n: record[n] for n in Run.__dataclass_fields__ if n not in varies}
        title = ", ".join(f"{name} {value}" for name, value in fixed.items())
        tables.setdefault(title, []).append(record)
    for title in sorted(tables):
        print(f"\n{title}; recall@1 in %, {len({r['seed'] for r in tables[title]})} seeds\n")
        print_table(tables[title])


def print_table(records: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, and the harmonic mean over the columns."""
    print(f"| | {' | '.join(COLUMNS)} | harmonic mean |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    values: dict[tuple[str, str, float], list[float]] = {}
    for r in records:
        values.setdefault((r["variant"], r["noise"], r["rate"]), []).append(r["recall_at_1"])
    for variant in VARIANTS:
        found = [values.get((variant, kind, rate), []) for kind, rate in NOISES]
        if any(found):
            harmonic = "-"
            if all(found):
                harmonic = f"{harmonic_mean([float(np.mean(each)) for each in found]):.1f}"
            print(f"| {variant} | {' | '.join(map(spread, found))} | {harmonic} |")


def harmonic_mean(values: list[float]) -> float:
    return len(values) / sum(1 / max(value, 1e-9) for value in values)


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("NOISYDML_DATA"), help="a folder")
    parser.add_argument("--sets", nargs="+", default=["cifar100", "omniglot"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--noises", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150, help="an epoch")
    parser.add_argument("--batch", type=int, default=128, help="4 of each class")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--proxy-lr", type=float, default=3e-2)
    parser.add_argument("--lam", type=float, default=0.1)
    parser.add_argument("--omega", type=float, default=5.5)
    parser.add_argument("--language", help="a model of sentence-transformers, or its folder")
    parser.add_argument("--output", type=Path, default=Path("outputs/procsim_ablation.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what there is and stop")
    parser.add_argument("--short", action="store_true", help="digits, one seed, a few steps")
    options = parser.parse_args()
    if options.short:
        options.sets, options.seeds, options.epochs, options.steps = ["digits"], [0], 1, 5
    return options


def main() -> None:
    options = parse()
    done = read(options.output)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.exists() and not options.output.read_text().endswith("\n"):
        with options.output.open("a") as file:  # what was being written when a run was killed
            file.write("\n")
    settings = {
        name: getattr(options, name)
        for name in ("epochs", "steps", "lam", "omega", "batch", "lr", "proxy_lr")
    }
    settings["guidance"] = "pixels" if options.language is None else f"names by {options.language}"
    runs = [
        Run(data=name, variant=variant, noise=kind, rate=rate, seed=seed, **settings)
        for name in options.sets
        for seed in options.seeds
        for kind, rate in [COLUMNS[name] for name in options.noises]
        for variant in options.variants
    ]
    missing = [] if options.table else [run for run in runs if key(asdict(run)) not in done]
    data: dict[str, tuple[Data, Tensor]] = {}
    for run in tqdm(missing, unit="run"):
        if run.data not in data:
            loaded = load(run.data, options.data)
            data = {run.data: (loaded, guidance_table(loaded, options.language))}
        record = {**asdict(run), **train(run, *data[run.data])}
        done[key(record)] = record
        with options.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
    wanted = {key(asdict(run)) for run in runs}
    print_tables([record for name, record in done.items() if options.table or name in wanted])


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
