"""How well wrong labels are found, and counted, beside cleanlab.

    python examples/benchmarks/judge_quality.py --cache FOLDER --output results/judge.jsonl
    python examples/benchmarks/judge_quality.py --output results/judge.jsonl --table

Pixels of handwritten digits, Gaussian classes, measurements of tumours, and the features of a
network pretrained on ImageNet (EfficientNet-Lite0, frozen; pretrained.py): Cars196's training half
with PRISM's published lists, and CIFAR-100 with uniform, semantic and pair-flip noise and with
labels drawn from a confusion matrix of people; a few samples of both; and CIFAR-100's pixels, which
hardly tell its classes. The image sets are npz files in the folder NOISYDML_DATA, in the format of
image_sets.py.
Three methods see the same features and labels and are told nothing:
``noisydml`` (find_label_issues), ``cleanlab`` (Datalab on the features) and ``cleanlab 5-fold``
(its strongest form: out-of-sample probabilities of a logistic regression).

With ``--tables`` the problems are CSV files of measurements instead, whose last column is the
class, such as those of R's mlbench, each written by ``write.csv(na.omit(Vehicle), "Vehicle.csv",
row.names = FALSE)``. Other columns that are no numbers become one of zeros and ones for each value,
all are standardised, and of more than 6,500 samples so many are drawn. With ``--texts`` they are
sentence embeddings of diagnoses, by texts.py.

Every row is a line of JSON in the output file; a row that is there already is not repeated.
``--table`` prints the Markdown table of what is there; a method's number of seeds stands in
brackets where it is not that of noisydml, and where nothing can be said it flags nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import noisydml
from noisydml import noise

SEEDS = 3
METHODS = ("noisydml", "cleanlab", "cleanlab 5-fold")


class Problem(NamedTuple):
    """Labelled features, some of the labels wrong."""

    features: np.ndarray  # (N, D)
    given: np.ndarray  # (N,)
    truth: np.ndarray  # (N,)


Made = tuple[str, int, Callable[[int], Problem]]  # name, number of seeds, from a seed


def spoiled(
    features: np.ndarray,
    truth: np.ndarray,
    rate: float,
    seed: int,
    spoil: Callable[..., Any] = noise.uniform,
) -> Problem:
    """With a share of wrong labels."""
    return Problem(features, spoil(truth, rate, seed=seed).labels, truth)


class Found(NamedTuple):
    """What a method says of the labels."""

    flagged: np.ndarray  # (N,) bool
    score: np.ndarray  # (N,) higher is cleaner
    rate: float  # the estimated share of wrong labels


def ours(problem: Problem) -> Found:
    found = noisydml.find_label_issues(problem.features, problem.given)
    flagged = np.zeros(len(problem.given), dtype=bool)
    flagged[found.issues] = True
    return Found(flagged, found.score.numpy(), found.noise_rate)


def datalab(problem: Problem, **evidence: Any) -> Found:
    from cleanlab import Datalab

    lab = Datalab(data={"label": problem.given}, label_name="label", verbosity=0)
    with contextlib.redirect_stdout(io.StringIO()):
        lab.find_issues(issue_types={"label": {}}, **evidence)
    issues = lab.get_issues("label")
    flagged = issues["is_label_issue"].to_numpy()
    return Found(flagged, issues["label_score"].to_numpy(), float(flagged.mean()))


def cleanlab(problem: Problem) -> Found:
    return datalab(problem, features=problem.features)


def cleanlab_5_fold(problem: Problem) -> Found:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes smaller than the number of folds
        predicted = cross_val_predict(
            model, problem.features, problem.given, cv=folds, method="predict_proba"
        )
    return datalab(problem, pred_probs=predicted)


def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return pixels.astype(np.float32), labels.astype(np.int64)


def gaussians(seed: int, classes: int = 1000, per_class: int = 5, width: int = 128) -> Problem:
    """Classes around random centers, half as wide as their distance from the origin."""
    generator = torch.Generator().manual_seed(1000 + seed)
    truth = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, width, generator=generator)
    features = centers[truth] + 0.5 * torch.randn(len(truth), width, generator=generator)
    given = noise.uniform(truth, 0.2, seed=seed).labels
    return Problem(features.numpy(), given, truth.numpy())


def spreads(rate: float, seed: int, classes: int = 50, per_class: int = 60) -> Problem:
    """Classes of ten columns, from a third to 1.6 times as wide as their centers are apart."""
    generator = np.random.default_rng(seed)
    truth = np.arange(classes).repeat(per_class)
    spread = np.linspace(0.3, 1.6, classes)[truth, None]
    features = generator.normal(size=(classes, 10))[truth]
    features += spread * generator.normal(size=(len(truth), 10))
    return spoiled(features.astype(np.float32), truth, rate, seed)


def unequal_sizes(rate: float, seed: int) -> Problem:
    """One class of 2,000 and five of 200 to 10, in four columns."""
    generator = np.random.default_rng(seed)
    truth = np.arange(6).repeat([2000, 200, 60, 20, 10, 10])
    features = generator.normal(size=(6, 4))[truth] + 0.3 * generator.normal(size=(len(truth), 4))
    return spoiled(features.astype(np.float32), truth, rate, seed)


def narrow(rate: float, seed: int) -> Problem:
    """Four classes that differ in three of sixteen directions, which vary a tenth of the others."""
    generator = np.random.default_rng(seed)
    truth = np.arange(4).repeat(200)
    features = np.repeat([1.0, 0.1], [13, 3]) * generator.normal(size=(len(truth), 16))
    features[:, 13:] += np.eye(4, 3, k=-1)[truth] * 0.4
    features = features @ np.linalg.qr(generator.normal(size=(16, 16))).Q
    return spoiled(features.astype(np.float32), truth, rate, seed)


def tumours(rate: float, seed: int) -> Problem:
    """569 tumours of two classes, of which scikit-learn has 30 measurements."""
    measured, truth = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(measured).astype(np.float32)
    return spoiled(features, truth, rate, seed)


def pretrained_features(path: Path, folder: Path, side: int) -> np.ndarray:
    import pretrained

    return pretrained.cached(path, folder, side, None).flatten(1).float().numpy()


def by_people(truth: np.ndarray, confusion: np.ndarray, seed: int) -> np.ndarray:
    """Labels drawn from the row of each class in a confusion matrix."""
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    drawn = np.random.default_rng(seed).random(len(truth))
    return (shares.cumsum(axis=1)[truth] < drawn[:, None]).sum(axis=1)


def by_a_weak_classifier(
    features: np.ndarray, truth: np.ndarray, rate: float, seed: int, width: int = 8
) -> np.ndarray:
    """Labels by somebody who sees ``width`` random mixtures of the features, and errs by them.

    Drawn from a logistic regression's probabilities, that of the true class raised to the rate.
    """
    generator = np.random.default_rng(seed)
    seen = StandardScaler().fit_transform(
        features @ generator.standard_normal((features.shape[1], width))
    )
    folds = StratifiedKFold(3)
    chances = cross_val_predict(LogisticRegression(), seen, truth, cv=folds, method="predict_proba")
    rows = np.arange(len(truth))
    low, high = 0.0, 1e9  # times as likely as it finds the true class
    for _ in range(60):
        times = (low + high) / 2
        raised = chances.copy()
        raised[rows, truth] *= times
        raised /= raised.sum(axis=1, keepdims=True)
        low, high = (times, high) if 1 - raised[rows, truth].mean() > rate else (low, times)
    drawn = generator.random(len(truth))
    return (raised.cumsum(axis=1) < drawn[:, None]).sum(axis=1).clip(max=chances.shape[1] - 1)


def tables(folder: Path) -> Iterator[Made]:
    """Those of all CSV files, with true labels, uniform noise and pair flips."""
    import pandas

    for path in sorted(folder.glob("*.csv")):
        frame = pandas.read_csv(path)
        frame = frame.sample(min(len(frame), 6500), random_state=0)
        truth = frame.pop(frame.columns[-1]).astype(str)
        large = truth.groupby(truth).transform("size").ge(5).to_numpy()
        columns = pandas.get_dummies(frame[large]).to_numpy(np.float32)
        features = StandardScaler().fit_transform(columns)
        labels = pandas.factorize(truth[large], sort=True)[0].astype(np.int64)
        kinds = [(noise.uniform, "uniform", rate) for rate in (0.0, 0.2, 0.4)]
        if labels.max() > 1:
            kinds.append((noise.pair_flip, "pair flip", 0.3))
        yield from spoiled_by(kinds, path.stem, features, labels)


def spoiled_by(
    kinds: list[tuple[Callable[..., Any], str, float]],
    name: str,
    features: np.ndarray,
    labels: np.ndarray,
) -> Iterator[Made]:
    """The same features with every kind of noise, each with its name and rate."""
    for spoil, kind, rate in kinds:
        yield (
            f"{name}, {kind} {rate:.0%}" if rate else f"{name}, true labels",
            SEEDS if rate else 1,
            partial(spoiled, features, labels, rate, spoil=spoil),
        )


def texts(cache: Path) -> Iterator[Made]:
    """Sentence embeddings, with the classes of two levels."""
    from texts import diagnoses

    features, chapters, blocks = diagnoses(cache)
    kinds = [(noise.uniform, "uniform", rate) for rate in (0.0, 0.2, 0.5)]
    kinds.append((noise.pair_flip, "pair flip", 0.3))
    labels = np.unique(chapters, return_inverse=True)[1]
    yield from spoiled_by(kinds, "chapters", features, labels)
    names, labels = np.unique(blocks, return_inverse=True)
    chapter = dict(zip(blocks.tolist(), chapters.tolist(), strict=True))
    tree = noise.ClassHierarchy.from_paths(
        [f"{chapter[block]}/{block}" for block in names.tolist()]
    )
    semantic = partial(noise.semantic, hierarchy=tree)
    kinds += [(semantic, "semantic", rate) for rate in (0.2, 0.5)]
    yield from spoiled_by(kinds, "blocks", features, labels)


def problems(data: Path | None, cache: Path | None) -> Iterator[Made]:
    """All of them."""
    pixels, of_digits = digits()
    for rate in (0.0, 0.1, 0.2, 0.5):
        yield (
            f"digits, {rate:.0%}",
            SEEDS if rate else 1,
            partial(spoiled, pixels, of_digits, rate),
        )
    for rate in (0.2, 0.4):
        yield (
            f"digits, labels by a weak classifier, {rate:.0%}",
            SEEDS,
            lambda seed, rate=rate: Problem(
                pixels, by_a_weak_classifier(pixels, of_digits, rate, seed), of_digits
            ),
        )
    yield "1,000 Gaussian classes of 5, 20%", SEEDS, gaussians
    for name, make, rates in (
        ("50 Gaussian classes of unequal spread", spreads, (0.0, 0.2)),
        ("6 Gaussian classes of 2,000 to 10", unequal_sizes, (0.0, 0.2, 0.4)),
        ("4 Gaussian classes apart where they hardly vary", narrow, (0.0, 0.2, 0.4)),
        ("tumours", tumours, (0.0, 0.2, 0.4)),
    ):
        for rate in rates:
            yield f"{name}, {rate:.0%}", SEEDS, partial(make, rate)
    if data is None or cache is None:
        return
    cars = data / "cars196_128.npz"
    with np.load(cars, allow_pickle=False) as file:
        trains = file["split"] == 0
        lists = {name: file[name][trains].astype(np.int64) for name in file.files if "sym" in name}
        models = file["labels"][trains].astype(np.int64)
    of_cars = pretrained_features(cars, cache, 160)[trains]
    yield "Cars196, true labels", 1, lambda _: Problem(of_cars, models, models)
    for given in lists.values():
        share = (given != models).mean()
        yield (
            f"Cars196, PRISM's list {share:.1%}",
            1,
            lambda _, given=given: Problem(of_cars, given, models),
        )
    cifar = data / "cifar100_sub150.npz"
    with np.load(cifar, allow_pickle=False) as file:
        things = file["labels"].astype(np.int64)
        coarse, confusion = file["class_coarse"].tolist(), file["human_confusion"]
        small = file["images"].reshape(-1, 8, 4, 8, 4, 3).mean((2, 4), dtype=np.float32)
    of_things = pretrained_features(cifar, cache, 96)
    tree = noise.ClassHierarchy.from_paths([f"{group}/{c}" for c, group in enumerate(coarse)])
    models_of_noise: dict[str, Callable[[float, int], Any]] = {
        "uniform": lambda rate, seed: noise.uniform(things, rate, seed=seed).labels,
        "semantic": lambda rate, seed: noise.semantic(things, rate, tree, seed=seed).labels,
        "pair flip": lambda rate, seed: noise.pair_flip(things, rate, seed=seed).labels,
    }
    yield "CIFAR-100, true labels", 1, lambda _: Problem(of_things, things, things)
    for name, spoil in models_of_noise.items():
        for rate in (0.2, 0.5):
            yield (
                f"CIFAR-100, {name} {rate:.0%}",
                SEEDS,
                lambda seed, rate=rate, spoil=spoil: Problem(of_things, spoil(rate, seed), things),
            )
    yield (
        "CIFAR-100, human confusion",
        SEEDS,
        lambda seed: Problem(of_things, by_people(things, confusion, seed), things),
    )
    of_pixels = small.reshape(len(small), -1)
    yield "CIFAR-100's 8 x 8 pixels, true labels", 1, lambda _: Problem(of_pixels, things, things)
    for name, rate in (("uniform", 0.2), ("uniform", 0.5), ("pair flip", 0.2)):
        yield (
            f"CIFAR-100's 8 x 8 pixels, {name} {rate:.0%}",
            SEEDS,
            lambda seed, rate=rate, spoil=models_of_noise[name]: Problem(
                of_pixels, spoil(rate, seed), things
            ),
        )
    unequal = [max(2, 150 // place) for place in range(1, 101)]
    for name, features, truth, sizes in (
        ("CIFAR-100, two classes of 150", of_things, things, [150] * 2),
        ("CIFAR-100, 5 a class", of_things, things, [5] * 100),
        ("CIFAR-100, 150, 75, 50, ..., 2 a class", of_things, things, unequal),
        ("Cars196, 10 a class", of_cars, models, [10] * 98),
    ):
        for rate in (0.0, 0.1, 0.3):
            yield (
                f"{name}, {rate:.0%}",
                SEEDS,
                partial(some_of, features, truth, sizes, rate),
            )


def some_of(
    features: np.ndarray, truth: np.ndarray, sizes: list[int], rate: float, seed: int
) -> Problem:
    """So many samples of as many classes, all drawn at random, with uniform noise."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(truth.max() + 1, len(sizes), replace=False)
    rows = np.concatenate(
        [
            generator.choice(np.flatnonzero(truth == c), size, replace=False)
            for c, size in zip(chosen, sizes, strict=True)
        ]
    )
    labels = np.searchsorted(np.sort(chosen), truth[rows])
    return spoiled(features[rows], labels, rate, seed)


def measured(problem: Problem, method: str) -> dict[str, float]:
    find = {"noisydml": ours, "cleanlab": cleanlab, "cleanlab 5-fold": cleanlab_5_fold}[method]
    start = time.perf_counter()
    found = find(problem)
    seconds = time.perf_counter() - start
    wrong = problem.given != problem.truth
    any_wrong = bool(wrong.any())
    return {
        "wrong": float(wrong.mean()),
        "AP": float(average_precision_score(wrong, -found.score)) if any_wrong else math.nan,
        "F1": float(f1_score(wrong, found.flagged)) if any_wrong else math.nan,
        "flagged": float(found.flagged.mean()),
        "rate": found.rate,
        "seconds": round(seconds, 1),
    }


def nearest_agree(features: np.ndarray, truth: np.ndarray) -> float:
    """How often the nearest other sample, by cosine, is of the same class."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    _, near = NearestNeighbors(n_neighbors=2).fit(unit).kneighbors(unit)
    return float((truth[near[:, 1]] == truth).mean())


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| features, noise | wrong | "
        + " | ".join(f"{m}: AP, F1, flagged" for m in METHODS)
        + " | estimated rate |",
        "|---" * (len(METHODS) + 3) + "|",
    ]
    for name in dict.fromkeys(line["problem"] for line in lines):
        cells = [name, f"{mean(lines, name, METHODS[0], 'wrong'):.3f}"]
        rates = values(lines, name, METHODS[0], "rate")
        for method in METHODS:
            seeds = len(values(lines, name, method, "rate"))
            cells.append(
                ", ".join(
                    f"{mean(lines, name, method, key):.3f}".replace("nan", "-")
                    for key in ("AP", "F1", "flagged")
                )
                + (f" ({seeds})" if 0 < seeds != len(rates) else "")
            )
        said = [rate for rate in rates if math.isfinite(rate)]
        spread = f" ± {np.std(said, ddof=1):.3f}" if len(said) > 1 else ""
        silent = f"nothing said in {len(rates) - len(said)} of {len(rates)}"
        told = [f"{np.mean(said):.3f}{spread}"] if said else []
        cells.append(", ".join(told + [silent] * (len(said) < len(rates))))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def values(lines: list[dict[str, Any]], problem: str, method: str, key: str) -> list[float]:
    return [line[key] for line in lines if line["problem"] == problem and line["method"] == method]


def mean(lines: list[dict[str, Any]], problem: str, method: str, key: str) -> float:
    found = values(lines, problem, method, key)
    return float(np.mean(found)) if found else math.nan


def read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder for features, outside the repository")
    parser.add_argument("--tables", type=Path, help="folder of CSV files, judged instead")
    parser.add_argument("--texts", action="store_true", help="sentence embeddings, judged instead")
    parser.add_argument("--output", type=Path, help="file of results that is continued")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", default="", help="problems whose name begins so")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="at most so many of a problem")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--short", action="store_true", help="digits alone, no cleanlab")
    options = parser.parse_args()
    if options.texts and options.cache is None:
        parser.error("--texts needs --cache")
    lines = read(options.output)
    folder = os.environ.get("NOISYDML_DATA")
    methods = ["noisydml"] if options.short else options.methods
    if not options.table:
        data = None if folder is None or options.short else Path(folder)
        made = problems(data, options.cache)
        if options.tables is not None:
            made = tables(options.tables)
        elif options.texts:
            made = texts(options.cache)
        for name, seeds, make in made:
            if not name.startswith("digits" if options.short else options.only):
                continue
            for seed in range(1 if options.short else min(seeds, options.seeds)):
                for method in methods:
                    key = {"problem": name, "seed": seed, "method": method}
                    if any(key.items() <= line.items() for line in lines):
                        continue
                    lines.append({**key, **measured(make(seed), method)})
                    if options.output is not None:
                        with options.output.open("a") as file:
                            file.write(json.dumps(lines[-1]) + "\n")
                    print(lines[-1], flush=True)
    print(table(lines))


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
