"""Time and memory of find_label_issues, on sets as large as Stanford Online Products and larger.

    OMP_NUM_THREADS=1 python examples/benchmarks/audit_cost.py
    OMP_NUM_THREADS=1 python examples/benchmarks/audit_cost.py --curve

59,551 samples of 11,318 Gaussian classes, 128 wide, a fifth of the labels wrong at random. With
``--curve`` also 300,000 of 10,000 and 1,000,000 of 100,000 classes, each in a process of its own
and with an inverted file of FAISS, and the exponent with which time and memory grow.
How well wrong labels are found on other data is measured by judge_quality.py.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from sklearn.metrics import f1_score

import noisydml
from noisydml.memory.neighbors import inverted_file

SIZES = ((59_551, 11_318), (300_000, 10_000), (1_000_000, 100_000))
WIDTH = 128


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(size: int, classes: int, exact: int) -> str:
    """A row of the table."""
    generator = torch.Generator().manual_seed(1000)
    truth = torch.arange(classes).repeat_interleave(-(-size // classes))
    truth = truth[torch.randperm(len(truth), generator=generator)[:size]]
    centers = torch.randn(classes, WIDTH, generator=generator)
    embeddings = 0.5 * torch.randn(size, WIDTH, generator=generator)
    for block, label in zip(embeddings.split(4096), truth.split(4096), strict=True):
        block += centers[label]
    random = np.random.default_rng(0)
    wrong = random.random(size) < 0.2
    labels = np.where(wrong, random.integers(0, classes, size), truth.numpy())
    wrong = labels != truth.numpy()
    index = None if exact else inverted_file(size)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    found = noisydml.find_label_issues(embeddings, labels, index=index)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    flagged = np.zeros(size, dtype=bool)
    flagged[found.issues] = True
    cells_of = [
        f"{size:,}", f"{classes:,}", "exact" if index is None else index.factory,
        f"{seconds:.1f}", f"{cpu:.1f}", f"{peak():.2f}", f"{(peak() - before) * 1e6 / size:.2f}",
        f"{found.noise_rate:.3f} ({wrong.mean():.3f})", f"{f1_score(wrong, flagged):.3f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells_of) + " |"


def run(size: int, classes: int, exact: bool, alone: bool) -> list[float]:
    """Processor seconds and peak memory; that of this size is known in a process of its own."""
    if alone:
        command = [sys.executable, __file__, "--one", str(size), str(classes), str(int(exact))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = done.stdout.strip()
    else:
        row = measure(size, classes, exact)
    print(row, flush=True)
    cells = row.split(" | ")
    return [float(cells[4]), float(cells[5])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a 1000th of the size, in one process")
    parser.add_argument("--curve", action="store_true", help="three sizes, not only the first")
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(*options.one))
        return
    part = 1000 if options.short else 1
    sizes = [(size // part, classes // part) for size, classes in SIZES]
    print(f"{WIDTH} wide, {torch.get_num_threads()} threads")
    print("| samples | classes | neighbours | s | CPU s | GB | kB a sample | rate (true) | F1 |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    alone = not options.short
    run(*sizes[0], True, alone)
    if options.curve:
        costs = [run(*size, False, alone) for size in sizes]
        logs = np.log([[size, *cost] for (size, _), cost in zip(sizes, costs, strict=True)])
        exponents = [np.polyfit(logs[:, 0], logs[:, column], 1)[0] for column in (1, 2)]
        print("exponents with inverted files: time {:.2f}, memory {:.2f}".format(*exponents))


if __name__ == "__main__":
    main()
