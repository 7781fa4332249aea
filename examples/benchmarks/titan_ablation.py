"""TITAN and what each of its parts contributes (the paper's Table 4), on noisy Omniglot.

    python examples/benchmarks/titan_ablation.py --data data/omniglot28.npz --seeds 0
    python examples/benchmarks/titan_ablation.py --report

Data, network and training are those of omniglot.py, except that batches are drawn by the labels in
use, so that a relabelled sample meets its new class; the features are the 432 numbers before its
last layer, which is the head. Every run appends one line of JSON to the output file, and a run that
is in there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import omniglot
import torch
from omniglot import LR, STEPS, Omniglot
from pytorch_metric_learning import losses
from torch import nn
from tqdm import tqdm

import noisydml
from noisydml import PrototypicalMixer

FEATURES = 9 * omniglot.WIDTH


def titan(data: Omniglot, head: nn.Module, epochs: int, **settings: Any) -> PrototypicalMixer:
    settings = {"loss": None, "cycles": epochs - 1, **settings}
    return PrototypicalMixer(
        settings.pop("loss"),
        data.num_classes,
        FEATURES,
        head,
        memory_size=len(data.given),
        **settings,
    )


def sup_con() -> nn.Module:
    return losses.SupConLoss(temperature=0.5)


def variant(**settings: Any) -> Callable[[Omniglot, nn.Module, int], Any]:
    return lambda data, head, epochs: titan(data, head, epochs, **settings)


def ground_truth(data: Omniglot, head: nn.Module, epochs: int) -> Any:
    return noisydml.GroundTruthFilter(sup_con(), data.is_noisy)


MS = {"loss": omniglot.base_loss()}
METHODS: dict[str, Callable[[Omniglot, nn.Module, int], Any]] = {
    "TITAN": variant(),
    "without similarity loss": variant(similarity=False),
    "without clustering": variant(clustering=0),
    "without mixing": variant(mixing=False),
    "without refinement": variant(refinement=False),
    "without weights": variant(weights=None),
    "refinement alone": variant(mixing=False, clustering=0, weights=None),
    "mixing alone": variant(refinement=False, clustering=0, weights=None),
    "clustering alone": variant(refinement=False, mixing=False, weights=None),
    "SupCon": lambda data, head, epochs: sup_con(),
    "MS": lambda data, head, epochs: omniglot.base_loss(),
    "SupCon, wrong labels dropped": ground_truth,
    "weights: density": variant(weights="density"),
    "normalize=False": variant(normalize=False),
    "TITAN with MS": variant(**MS),
    "MS, refinement alone": variant(**MS, mixing=False, clustering=0, weights=None),
    "MS, mixing alone": variant(**MS, refinement=False, clustering=0, weights=None),
    "MS, clustering alone": variant(**MS, refinement=False, mixing=False, weights=None),
    "MS, weights alone": variant(**MS, refinement=False, mixing=False, clustering=0),
}


def train(data: Omniglot, name: str, seed: int, epochs: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = omniglot.make_network()
    body, head = network[:-1], network[-1]
    loss_fn = METHODS[name](data, head, epochs)
    mixes = isinstance(loss_fn, PrototypicalMixer)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    start, log, labels = time.perf_counter(), [], data.given
    for _ in tqdm(range(epochs), desc=name, unit="epoch", mininterval=10):
        network.train()
        weights = []
        for ids in omniglot.batches(labels, STEPS):  # of the refined data set, as in Algorithm 1
            features = body(data.images[ids])
            inputs = features if mixes else head(features)
            keywords = {"sample_ids": ids} if isinstance(loss_fn, noisydml.LossWrapper) else {}
            loss = loss_fn(inputs, data.given[ids], **keywords)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if mixes:
                weights.append((ids, loss_fn.decision.weight, loss_fn.decision.suggested_labels))
        log.append(cycle_log(data, loss_fn, weights) if mixes else {})
        if mixes:
            ids, _, new, _ = loss_fn.refined_labels()
            labels = data.given.index_copy(0, ids, new)
    seconds = time.perf_counter() - start
    return {**omniglot.evaluate(network, data), "seconds": seconds, "epochs_log": log}


def cycle_log(data: Omniglot, loss_fn: PrototypicalMixer, seen: list[Any]) -> dict[str, float]:
    """Ends the cycle; in %: relabelled samples, of them now right and wrong before."""
    log = {}
    if seen[0][2] is not None:
        ids, weight, nearest = (torch.cat(column) for column in zip(*seen, strict=True))
        noisy = data.is_noisy[ids]
        log["weight_of_right"] = weight[~noisy].mean().item()
        log["weight_of_wrong"] = weight[noisy].mean().item()
        log["largest_weight"] = weight.max().item()
        log["nearest_right"] = 100 * (nearest == data.true[ids]).float().mean().item()
        log["nearest_given"] = 100 * (nearest == data.given[ids]).float().mean().item()
    loss_fn.end_epoch()
    ids, old, new, _ = loss_fn.refined_labels()
    if len(ids):
        now_right, was_right = new == data.true[ids], old == data.true[ids]
        log["refined"] = 100 * len(ids) / len(data.true)
        log["refined_right"] = 100 * now_right.float().mean().item()
        log["refined_were_right"] = 100 * was_right.float().mean().item()
    labels = data.given.index_copy(0, ids, new)
    log["labels_right"] = 100 * (labels == data.true).float().mean().item()
    return log


def report(results: list[dict[str, Any]]) -> None:
    """Markdown tables: mean and standard deviation over the seeds; refinement by cycle."""
    conditions = sorted({(r["noise"], r["rate"], r["epochs"]) for r in results}, reverse=True)
    print("| noise | loss | seeds | R@1 | MAP@R | labels right |")
    print("|---|---|---|---|---|---|")
    for condition in conditions:
        for name in METHODS:
            rows = [r for r in results if key(r) == (name, *condition)]
            if rows:
                right = [r["epochs_log"][-1].get("labels_right") for r in rows]
                columns = [[r["r_at_1"] for r in rows], [r["map_at_r"] for r in rows], right]
                cells = ["-" if c[0] is None else spread(c) for c in columns]
                noise = f"{condition[0].replace('_', ' ')} {condition[1]:.0%}"
                print(f"| {noise} | {name} | {len(rows)} | " + " | ".join(cells) + " |")
    print("\n| noise | cycle | relabelled | of them now right | of them right before |")
    print("|---|---|---|---|---|")
    for condition in conditions:
        rows = [r for r in results if key(r) == ("TITAN", *condition)]
        for cycle in range(condition[2] if rows else 0):
            logs = [r["epochs_log"][cycle] for r in rows]
            names = ("refined", "refined_right", "refined_were_right")
            cells = [spread([log[n] for log in logs]) for n in names if n in logs[0]]
            if cells:
                print(f"| {condition[0].replace('_', ' ')} | {cycle + 1} | {' | '.join(cells)} |")


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("method", "noise", "rate", "epochs"))


def spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.1f} ± {deviation:.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = os.environ.get("NOISYDML_DATA")
    default = Path(folder) / "omniglot28.npz" if folder else None
    parser.add_argument("--data", type=Path, default=default, help="omniglot28.npz")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:10])
    parser.add_argument("--noise", choices=("uniform", "pair_flip"), default="uniform")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/titan_ablation.jsonl"))
    parser.add_argument("--report", action="store_true", help="print the tables of what was run")
    options = parser.parse_args()
    if options.report:
        report(omniglot.read(options.output))
        return
    if options.data is None:
        parser.error("give --data, or the folder of omniglot28.npz in NOISYDML_DATA")
    torch.set_num_threads(1)  # runs side by side gain more than threads
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        data = omniglot.load(options.data, options.noise, options.rate, seed)
        for name in options.methods:
            run = {"method": name, "noise": options.noise, "rate": options.rate, "seed": seed,
                   "epochs": options.epochs}  # fmt: skip
            if any(run.items() <= done.items() for done in omniglot.read(options.output)):
                continue
            result = train(data, name, seed, options.epochs)
            with options.output.open("a") as file:
                file.write(json.dumps(run | result) + "\n")
            print(
                name, seed, f"R@1 {result['r_at_1']:.1f} MAP@R {result['map_at_r']:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
