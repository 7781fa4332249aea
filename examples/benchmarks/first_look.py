"""Whether a network that has not been trained yet tells the classes, as JudgeFilter asks it.

    NOISYDML_DATA=FOLDER NOISYDML_CACHE=FOLDER python examples/benchmarks/first_look.py

In its first pass a JudgeFilter collects; after a fifth of it the judge has a look, and if the
features do not tell the classes the rest of the pass trains on all labels. Here it is given that
fifth by the networks of train.py, from scratch or pretrained, with true labels and with half of
them wrong. A row for each seed: what the judge says, and what the filter does.
"""

from __future__ import annotations

import argparse
import os

import image_sets
import networks
import torch
from torch import nn
from train import RECIPES, Recipe, batches, load

import noisydml
from noisydml.memory.judge import judge_labels


def nothing(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return embeddings.sum(dim=1) * 0


def row(name: str, recipe: Recipe, noise: str, rate: float, seed: int) -> str:
    images = load(recipe)
    labels = image_sets.corrupt(images, noise, rate, seed).labels
    torch.manual_seed(seed)
    channels, side = images.train.shape[1:3]
    make = getattr(networks, recipe.network)
    model = nn.Sequential(*make(channels, side, recipe.embedding_size)).train()
    loss_fn = noisydml.JudgeFilter(nothing, dataset_size=len(labels))
    for ids in batches(labels, recipe, 10**6):
        looked = bool(loss_fn.counters["looked"])
        held = loss_fn.memory.filled
        with torch.no_grad():
            embeddings = model(images.train[ids])
        loss_fn(embeddings.requires_grad_(), labels[ids], sample_ids=ids)
        if looked:
            break
    found = judge_labels(loss_fn.memory.features[held], loss_fn.memory.labels[held])
    kept = found.probability[found.probability >= 0.5].sum() / found.probability.sum()
    trains = bool(loss_fn.decision.keep.any())
    cells = [name, f"{noise} {rate:.0%}", str(seed), str(int(held.sum()))]
    cells += [f"{found.certainty:.2f}", f"{float(kept):.2f}", f"{found.noise_rate:.2f}"]
    return " | ".join([*cells, "trains on all labels" if trains else "goes on collecting"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    print("| recipe | noise | seed | samples | certainty | kept | estimated rate | it |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.recipes:
        half = "published" if "cars196" in name else "uniform"
        for noise, rate in (("none", 0.0), (half, 0.5)):
            for seed in options.seeds:
                print(f"| {row(name, RECIPES[name], noise, rate, seed)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
