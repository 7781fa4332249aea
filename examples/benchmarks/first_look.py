"""Whether a network that has not been trained yet tells the classes, as JudgeFilter asks it.

    NOISYDML_DATA=FOLDER NOISYDML_CACHE=FOLDER python examples/benchmarks/first_look.py

In its first pass a JudgeFilter collects; after a fifth of it the judge has a look, and if the
features do not tell the classes the rest of the pass trains on all labels. Here it is given that
fifth by the networks of train.py, from scratch or pretrained, with true labels and with half of
them wrong. What the judge says, and in how many of the runs the filter goes on
collecting; least and most of the seeds.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import image_sets
import networks
import torch
from image_sets import Images
from torch import nn
from train import RECIPES, Recipe, batches, load, made_up

import noisydml
from noisydml.memory.judge import judge_labels


def nothing(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return embeddings.sum(dim=1) * 0


class Look(NamedTuple):
    """What the judge says of a fifth of the samples."""

    samples: float
    certainty: float
    kept: float  # of the right labels, by its own account
    rate: float
    collects: bool  # whether the filter does so from then on


def look(recipe: Recipe, images: Images, noise: str, rate: float, seed: int) -> Look:
    labels = image_sets.corrupt(images, noise, rate, seed).labels
    torch.manual_seed(seed)
    channels, side = images.train.shape[1:3]
    make = getattr(networks, recipe.network)
    model = nn.Sequential(*make(channels, side, recipe.embedding_size)).train()
    loss_fn = noisydml.JudgeFilter(nothing, dataset_size=len(labels))
    found = None
    for ids in batches(labels, recipe, 10**6):
        with torch.no_grad():
            embeddings = model(images.train[ids])
        loss_fn(embeddings.requires_grad_(), labels[ids], sample_ids=ids)
        if found is not None:  # the step after the look
            break
        if loss_fn.counters["looked"]:
            memory, held = loss_fn.memory, loss_fn.memory.filled
            found = judge_labels(memory.features[held], memory.labels[held], core_refutes=False)
    assert found is not None
    collects = not loss_fn.decision.keep.any()
    return Look(int(held.sum()), found.certainty, found.kept_share, found.noise_rate, collects)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """From the least to the most, and nan if some are: where nothing can be said."""
    known = sorted(value for value in values if not math.isnan(value))
    words = [f"{value:.{digits}f}" for value in (*known[:1], *known[-1:])]
    said = " to ".join(dict.fromkeys(words))
    return ", ".join(filter(None, [said, "nan" if len(known) < len(values) else ""]))


def show(sets: Iterable[tuple[str, Images]], seeds: list[int]) -> None:
    """Print the table."""
    print("| recipe | wrong labels | samples | certainty | kept | estimated rate | collects |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, images in sets:
        half = "published" if "cars196" in name else "uniform"
        for noise, rate in (("none", 0.0), (half, 0.5)):
            looks = [look(RECIPES[name], images, noise, rate, seed) for seed in seeds]
            samples, certainty, kept, rates, collects = zip(*looks, strict=True)
            cells = [name, f"{noise} {rate:.0%}" if rate else "none", spread(samples, 0)]
            cells += [*map(spread, (certainty, kept, rates)), f"{sum(collects)} of {len(looks)}"]
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--short", action="store_true", help="one recipe, on made-up images")
    options = parser.parse_args()
    if options.short:
        with tempfile.TemporaryDirectory() as folder:
            show([("omniglot", load(RECIPES["omniglot"], made_up(Path(folder))))], [0])
    else:
        show(((name, load(RECIPES[name])) for name in options.recipes), options.seeds)


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
