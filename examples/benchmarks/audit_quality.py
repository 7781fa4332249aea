"""How well wrong labels are found in given embeddings, with no noise rate told.

    python examples/benchmarks/audit_quality.py --seeds 3

Pixels of handwritten digits at several noise rates; Gaussian classes of few and of many samples;
a set of the size of Stanford Online Products (59,551 samples of 11,318 classes, 128 wide) with its
time and memory. Prints a Markdown table: F1 of the flagged labels, average precision of the
ranking, and the estimated noise rate, as mean and standard deviation over the seeds. Where
cleanlab's Datalab is installed (``pip install "cleanlab[datalab]"``) it stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

import noisydml

try:
    from cleanlab import Datalab
except ImportError:
    Datalab = None


class Found(NamedTuple):
    """What a method says: which labels are wrong, and how clean each is."""

    flagged: np.ndarray  # (N,) bool
    score: np.ndarray  # (N,) higher is cleaner


class Problem(NamedTuple):
    """Labelled embeddings, a share of the labels wrong."""

    embeddings: Tensor
    given: Tensor
    is_noisy: np.ndarray


def ours(problem: Problem, k: int = 200) -> Found:
    result = noisydml.find_label_issues(problem.embeddings, problem.given, k=k)
    flagged = np.zeros(len(problem.given), dtype=bool)
    flagged[result.issues] = True
    return Found(flagged, result.score.numpy())


def cleanlab(problem: Problem) -> Found:
    lab = Datalab(data={"label": problem.given.numpy()}, label_name="label", verbosity=0)
    with contextlib.redirect_stdout(io.StringIO()):
        lab.find_issues(features=problem.embeddings.numpy(), issue_types={"label": {}})
    issues = lab.get_issues("label")
    return Found(issues["is_label_issue"].to_numpy(), issues["label_score"].to_numpy())


def digits(rate: float, seed: int) -> Problem:
    pixels, true = load_digits(return_X_y=True)
    return spoilt(torch.tensor(pixels, dtype=torch.float32), torch.tensor(true), rate, seed)


def gaussians(
    classes: int, per_class: int, width: int, spread: float, rate: float, seed: int
) -> Problem:
    """Classes around random centers, ``spread`` as wide as their distance from the origin."""
    generator = torch.Generator().manual_seed(1000 + seed)
    true = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, width, generator=generator)
    offsets = spread * torch.randn(len(true), width, generator=generator)
    return spoilt(centers[true] + offsets, true, rate, seed)


def like_sop(rate: float, seed: int) -> Problem:
    problem = gaussians(11_318, 6, 128, 0.5, rate, seed)
    rows = torch.randperm(len(problem.given))[:59_551]
    return Problem(problem.embeddings[rows], problem.given[rows], problem.is_noisy[rows.numpy()])


def spoilt(embeddings: Tensor, true: Tensor, rate: float, seed: int) -> Problem:
    noisy = noisydml.noise.uniform(true, rate, seed=seed)
    return Problem(embeddings, torch.from_numpy(noisy.labels), noisy.is_noisy)


def problems(short: bool) -> Iterator[tuple[str, Callable[[int], Problem], list[int]]]:
    """Name, how it is made from a seed, and the numbers of neighbours to try."""
    for rate in (0.1,) if short else (0.05, 0.1, 0.2, 0.5):
        yield f"digits, {rate:.0%}", lambda seed, rate=rate: digits(rate, seed), [200]
    if short:
        return
    for rate in (0.1, 0.5):
        yield (
            f"digits, {rate:.0%}",
            lambda seed, rate=rate: digits(rate, seed),
            [20, 50, 100, 400],
        )
    for classes, per_class, rate in (
        (1000, 5, 0.2),
        (300, 20, 0.5),
        (20, 500, 0.5),
        (2, 6000, 0.4),
    ):
        yield (
            f"{classes} Gaussians of {per_class}, {rate:.0%}",
            lambda seed, c=classes, n=per_class, rate=rate: gaussians(c, n, 64, 0.5, rate, seed),
            [20, 200],
        )


def spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {deviation:.3f}"


def row(
    name: str, method: str, find: Callable[[Problem], Found], make: Callable, seeds: int
) -> None:
    f1, precision, rate = [], [], []
    for seed in range(seeds):
        problem = make(seed)
        found = find(problem)
        f1.append(f1_score(problem.is_noisy, found.flagged))
        precision.append(average_precision_score(problem.is_noisy, -found.score))
        rate.append(found.flagged.mean())
    print(
        f"| {name} | {method} | {spread(f1)} | {spread(precision)} | {spread(rate)} |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="digits at one rate, one seed")
    options = parser.parse_args()
    seeds = 1 if options.short else options.seeds
    print("| labels | found by | F1 | average precision | flagged |\n|---|---|---|---|---|")
    for name, make, numbers in problems(options.short):
        for k in numbers:
            row(name, f"noisydml, k = {k}", lambda problem, k=k: ours(problem, k), make, seeds)
        if Datalab is not None and numbers[-1] == 200:
            row(name, "cleanlab", cleanlab, make, seeds)
    if not options.short:
        problem = like_sop(0.2, seed=0)
        start = time.perf_counter()
        found = ours(problem)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"\n59,551 x 128, 11,318 classes: {seconds:.0f} s with {torch.get_num_threads()} "
            f"threads, at most {peak:.2f} GB in this process, "
            f"F1 {f1_score(problem.is_noisy, found.flagged):.3f}"
        )


if __name__ == "__main__":
    main()
