"""What to judge a label by, and what to do with a distrusted sample, on the quickstart's digits.

    python examples/benchmarks/selection_digits.py --seeds 3

Half of the training labels are wrong, batches are of 16. Mean and standard deviation over the
seeds, as a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import losses
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart

from noisydml import GroundTruthFilter, LossWrapper, SelectedInteractions

LOSSES = {"multi_similarity": quickstart.base_loss, "contrastive": losses.ContrastiveLoss}


def methods(base_loss: Callable[[], nn.Module]) -> list[quickstart.Method]:
    filters: dict[str, Callable[[quickstart.Digits], Any]] = {
        "SmallLossFilter": lambda data: quickstart.small_loss(base_loss(), data),
        "PRISMFilter": lambda data: quickstart.prism(base_loss(), data),
        "KNNDenoiser": lambda data: quickstart.knn(base_loss(), data),
        "GroundTruthFilter": lambda data: GroundTruthFilter(base_loss(), data.is_noisy),
    }

    def by_itself(data: quickstart.Digits) -> LossWrapper:
        return quickstart.small_loss(base_loss(), data, by_itself=True)

    found: list[quickstart.Method] = [("SmallLossFilter, by itself", by_itself, False)]
    for name, make in filters.items():
        found.append((f"{name}, dropped", make, False))
        selected = lambda data, make=make: SelectedInteractions(make(data))  # noqa: E731
        found.append((f"{name}, as negatives", selected, False))
    return found


def spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", default="", help="the methods whose names begin with this")
    parser.add_argument("--loss", choices=LOSSES, default="multi_similarity")
    options = parser.parse_args()

    print("| method | P@1 | MAP@R | noise precision | noise recall |")
    print("|---|---|---|---|---|")
    for method in methods(LOSSES[options.loss]):
        if not method[0].startswith(options.only):
            continue
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
