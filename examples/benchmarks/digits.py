"""The quickstart's table over several seeds, and how far weighting can go at all.

    python examples/benchmarks/digits.py --seeds 3

Half of the training labels are wrong. For a pair loss (MultiSimilarityLoss) at several batch sizes
and for a classification loss (NormalizedSoftmaxLoss): the plain loss, ConfidenceWeightedLoss,
PRISMFilter, KNNDenoiser, *perfect* weights (0 for the wrong labels, 1 for the right ones), the
ground-truth filter and clean labels; mean and standard deviation over the seeds, as a Markdown
table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quickstart

from noisydml import GroundTruthFilter
from noisydml.pml.batch import Batch
from noisydml.wrappers.base import call_loss
from noisydml.wrappers.decision import Judgement


class PerfectWeights(GroundTruthFilter):
    """Weights 0 and 1 where the filter drops and keeps: a wrong label is no anchor any more, but
    the sample is still a positive and a negative of others."""

    def value(self, batch: Batch, judgement: Judgement) -> torch.Tensor:
        return call_loss(self.loss, batch.reweight(judgement.decision.weight))


def softmax_loss() -> nn.Module:
    return losses.NormalizedSoftmaxLoss(
        quickstart.CLASSES, quickstart.EMBEDDING_SIZE, temperature=0.1
    )


def methods(base_loss: Callable[[], nn.Module]) -> list[quickstart.Method]:
    return [
        ("plain loss", lambda data: base_loss(), False),
        (
            "ConfidenceWeightedLoss",
            lambda data: quickstart.confidence_weighted(base_loss()),
            False,
        ),
        ("PRISMFilter", lambda data: quickstart.prism(base_loss(), data), False),
        ("KNNDenoiser", lambda data: quickstart.knn(base_loss(), data), False),
        ("perfect weights", lambda data: PerfectWeights(base_loss(), data.is_noisy), False),
        ("GroundTruthFilter", lambda data: GroundTruthFilter(base_loss(), data.is_noisy), False),
        ("clean labels", lambda data: base_loss(), True),
    ]


def settings(short: bool) -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    yield "MS, batch 16", quickstart.base_loss, 16
    if not short:
        yield "MS, batch 32", quickstart.base_loss, 32
        yield "MS, batch 128", quickstart.base_loss, 128
        yield "MS, batch 512", quickstart.base_loss, 512
    yield "softmax, batch 32", softmax_loss, 32


def spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--short", action="store_true", help="two losses, one epoch, one seed")
    options = parser.parse_args()
    if options.short:
        options.seeds, options.epochs = 1, 1

    print("| setting | loss | P@1 | MAP@R | noise precision | noise recall |")
    print("|---|---|---|---|---|---|")
    for setting, base_loss, batch_size in settings(options.short):
        quickstart.BATCH_SIZE = batch_size
        for method in methods(base_loss):
            columns: list[list[float]] = [[], [], [], []]
            for seed in range(options.seeds):
                data = quickstart.load_data(options.noise, seed)
                result = quickstart.train(method, data, options.epochs, seed)
                row = [result.p_at_1[-1], result.map_at_r[-1]]
                if method[0] == "ConfidenceWeightedLoss":
                    row += quickstart.decision_quality(result, data)
                for column, value in zip(columns, row, strict=False):
                    column.append(value)
            cells = [spread(column) if column else "-" for column in columns]
            print(f"| {setting} | {method[0]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
