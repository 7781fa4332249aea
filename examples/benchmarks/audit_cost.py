"""Time and memory of find_label_issues on a set of the size of Stanford Online Products.

    OMP_NUM_THREADS=1 python examples/benchmarks/audit_cost.py

59,551 samples of 11,318 Gaussian classes, 128 wide, a fifth of the labels wrong at random.
How well wrong labels are found on other data is measured by judge_quality.py.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from sklearn.metrics import f1_score

import noisydml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a fiftieth of the size")
    options = parser.parse_args()
    classes, size = (226, 1_191) if options.short else (11_318, 59_551)
    generator = torch.Generator().manual_seed(1000)
    truth = torch.arange(classes).repeat_interleave(6)
    truth = truth[torch.randperm(len(truth), generator=generator)[:size]]
    centers = torch.randn(classes, 128, generator=generator)
    embeddings = centers[truth] + 0.5 * torch.randn(size, 128, generator=generator)
    noisy = noisydml.noise.uniform(truth, 0.2, seed=0)
    start = time.perf_counter()
    found = noisydml.find_label_issues(embeddings, noisy.labels)
    seconds = time.perf_counter() - start
    flagged = np.zeros(size, dtype=bool)
    flagged[found.issues] = True
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{size:,} x 128, {classes:,} classes: {seconds:.0f} s with {torch.get_num_threads()} "
        f"threads, at most {peak:.2f} GB in this process, rate {found.noise_rate:.3f} "
        f"({noisy.is_noisy.mean():.3f} are wrong), F1 {f1_score(noisy.is_noisy, flagged):.3f}"
    )


if __name__ == "__main__":
    main()
