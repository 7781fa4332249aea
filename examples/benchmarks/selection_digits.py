"""What to judge a label by, and what to do with a distrusted sample, on the quickstart's digits.

    python examples/benchmarks/selection_digits.py --seeds 3

Half of the training labels are wrong, the loss is MultiSimilarityLoss, batches are of 16. Mean and
standard deviation over the seeds, as a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart

METHODS: list[quickstart.Method] = [
    (
        "SmallLossFilter, Proxy-NCA",
        lambda data: quickstart.small_loss(quickstart.base_loss(), data),
        False,
    ),
    (
        "SmallLossFilter, by itself",
        lambda data: quickstart.small_loss(quickstart.base_loss(), data, by_itself=True),
        False,
    ),
]


def spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()

    print("| method | P@1 | MAP@R | noise precision | noise recall |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        rows = []
        for seed in range(options.seeds):
            data = quickstart.load_data(options.noise, seed)
            result = quickstart.train(method, data, options.epochs, seed)
            quality = quickstart.decision_quality(result, data)
            rows.append([result.p_at_1[-1], result.map_at_r[-1], *quality])
        cells = [spread(list(column)) for column in zip(*rows, strict=True)]
        print(f"| {method[0]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
