"""Equality of 1, 2 and 4 ranks for every wrapper, and the bytes that they send in a step.

    python examples/benchmarks/ranks.py

The same wrappers train on the same batches in one process and on ranks of gloo, a process each,
which have shares of uneven size. The first columns are the share of samples that the outermost
wrapper drops, the largest differences from one process of its scores, state, values and gradients,
and the number of its decisions to keep or to drop that differ. Where no GatheredLoss is inside, a
pair loss sees its own rank's pairs, so that the model cannot be the same: it stays as it is, and
value and gradients are not compared. The last columns are the bytes that a rank hands to
collectives in a step, each of which goes to all other ranks: counted at the collectives, and by
the formulas of docs/scale.md, in all steps but the first, in which the state crosses, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from rank_processes import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import noisydml
from noisydml import distributed

CLASSES, WIDTH, SAMPLES, BATCH, SEED = 5, 32, 180, 60, 5
EXCHANGE = 64  # bytes: where a rank is, and seven integers


class Rows(NamedTuple):
    """Of one step: the most rows that a rank has, before and after dropping."""

    all: int
    kept: int


class Wrapper(NamedTuple):
    name: str
    make: Callable[[], noisydml.LossWrapper]
    payload: Callable[[Rows], int]  # bytes beside the exchange of every training step
    gathers: bool = False


def pair_loss() -> nn.Module:
    return losses.MultiSimilarityLoss()


def gathered() -> noisydml.LossWrapper:
    return noisydml.GatheredLoss(pair_loss())


def confidence(loss: nn.Module) -> noisydml.LossWrapper:
    proxies = losses.ProxyNCALoss(CLASSES, WIDTH)
    return noisydml.ConfidenceWeightedLoss(loss, proxies, lam=0.1)


def prism(loss: nn.Module) -> noisydml.LossWrapper:
    return noisydml.PRISMFilter(loss, CLASSES, WIDTH, memory_size=SAMPLES, warmup=1)


def knn(loss: nn.Module) -> noisydml.LossWrapper:
    return noisydml.KNNDenoiser(loss, memory_size=SAMPLES, embedding_size=WIDTH, k=9)


def small_loss(loss: nn.Module) -> noisydml.LossWrapper:
    proxies = losses.ProxyNCALoss(CLASSES, WIDTH)
    return noisydml.SmallLossFilter(loss, noise_rate=0.3, ramp=0, score_loss=proxies)


def mixer(loss: nn.Module) -> noisydml.LossWrapper:
    return noisydml.PrototypicalMixer(
        loss, CLASSES, WIDTH, memory_size=SAMPLES, cycles=2, max_retrieved=4, seed=SEED
    )


def ground_truth(loss: nn.Module) -> noisydml.LossWrapper:
    return noisydml.GroundTruthFilter(loss, is_noisy())


def regularized(loss: nn.Module) -> noisydml.LossWrapper:
    language = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1))
    return noisydml.RegularizedLoss(loss, noisydml.LanguageGuidance(language, by="labels"), 0.5)


def sent(rows: int, *, ids: bool, extra: int = 0) -> int:
    """A gathering: counts; features, label, id and what else a row has."""
    return EXCHANGE + rows * (4 * WIDTH + 8 + 8 * ids + extra)


def judged(ids: bool) -> Callable[[Rows], int]:
    return lambda rows: sent(rows.all, ids=ids)


def judged_and_gathered(ids: bool, extra: int = 0) -> Callable[[Rows], int]:
    return lambda rows: sent(rows.all, ids=ids) + sent(rows.kept, ids=True, extra=extra)


WRAPPERS = [
    Wrapper("GroundTruthFilter", lambda: ground_truth(pair_loss()), lambda rows: 0),
    Wrapper("ConfidenceWeightedLoss", lambda: confidence(pair_loss()), judged(False)),
    Wrapper("PRISMFilter", lambda: prism(pair_loss()), judged(True)),
    Wrapper("KNNDenoiser", lambda: knn(pair_loss()), judged(True)),
    Wrapper("SmallLossFilter", lambda: small_loss(pair_loss()), judged(False)),
    Wrapper("PrototypicalMixer", lambda: mixer(pair_loss()), judged(True)),
    Wrapper("RegularizedLoss", lambda: regularized(pair_loss()), lambda rows: 0),
    Wrapper(
        "SelectedInteractions(KNNDenoiser)",
        lambda: noisydml.SelectedInteractions(knn(pair_loss())),
        judged(True),
    ),
    Wrapper("SuperLoss", lambda: noisydml.SuperLoss(pair_loss(), lam=0.1), judged(True), True),
    Wrapper("GatheredLoss", gathered, judged(True), True),
    Wrapper(
        "GroundTruthFilter(GatheredLoss)",
        lambda: ground_truth(gathered()),
        lambda rows: sent(rows.kept, ids=True),
        True,
    ),
    Wrapper(
        "ConfidenceWeightedLoss(GatheredLoss)",
        lambda: confidence(gathered()),
        judged_and_gathered(False, extra=8),  # a float64 weight
        True,
    ),
    Wrapper(
        "PRISMFilter(GatheredLoss)", lambda: prism(gathered()), judged_and_gathered(True), True
    ),
    Wrapper("KNNDenoiser(GatheredLoss)", lambda: knn(gathered()), judged_and_gathered(True), True),
    Wrapper(
        "SmallLossFilter(GatheredLoss)",
        lambda: small_loss(gathered()),
        judged_and_gathered(False),
        True,
    ),
    Wrapper(
        "SelectedInteractions(KNNDenoiser(GatheredLoss))",
        lambda: noisydml.SelectedInteractions(knn(gathered())),
        lambda rows: sent(rows.all, ids=True) + sent(rows.all, ids=True, extra=1),
        True,
    ),
    Wrapper(
        "RegularizedLoss(GatheredLoss)",
        lambda: regularized(gathered()),
        judged(True),
    ),
    Wrapper(
        "GatheredLoss(RegularizedLoss)",
        lambda: noisydml.GatheredLoss(regularized(pair_loss())),
        judged(True),
        True,
    ),
]


def is_noisy() -> Tensor:
    return torch.arange(SAMPLES) % 3 == 0


def make_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    true = ids % CLASSES
    inputs = centers[true] + 0.7 * torch.randn(BATCH, WIDTH, generator=generator)
    return inputs, torch.where(is_noisy()[ids], (true + 1) % CLASSES, true), ids


def share(rank: int, world: int) -> slice:
    """Uneven: of four ranks the last one has four tenths of the rows."""
    ends = [BATCH * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    return slice(ends[rank], ends[rank + 1])


class Counter:
    """Bytes that this rank hands to ``all_gather``, the collective of every step."""

    def __init__(self) -> None:
        self.sent = 0
        gather = dist.all_gather

        def counting(everyone: list[Tensor], mine: Tensor) -> Any:
            self.sent += mine.numel() * mine.element_size()
            return gather(everyone, mine)

        distributed.dist.all_gather = counting


def train(wrapper: Wrapper, rank: int, world: int, steps: int, counter: Counter | None) -> Any:
    torch.manual_seed(SEED)
    model = nn.Linear(WIDTH, WIDTH)
    torch.manual_seed(SEED)
    loss_fn = wrapper.make()
    parallel = DistributedDataParallel(model) if world > 1 else model
    lr = 1e-2 if wrapper.gathers else 0.0
    groups = [{"params": model.parameters(), "lr": lr}, *loss_fn.parameter_groups(1e-2, 1e-2)]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    result: dict[str, Any] = {"values": [], "gradients": [], "keep": [], "score": [], "sent": []}
    result["rows"] = []
    for step in range(steps):
        inputs, labels, ids = (rows[share(rank, world)] for rows in make_batch(step))
        before = counter.sent if counter is not None else 0
        embeddings = parallel(inputs)
        value = loss_fn(embeddings, labels, sample_ids=ids)
        result["sent"].append((counter.sent if counter is not None else 0) - before)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        decision = loss_fn.decision
        assert decision is not None
        result["values"].append(value.detach())
        result["gradients"].append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        result["keep"].append(decision.keep)
        nothing = torch.zeros(len(ids))
        result["score"].append(nothing if decision.score is None else decision.score.clamp(-99, 99))
        result["rows"].append((len(ids), int(decision.keep.sum())))
    result |= {name: torch.stack(result[name]) for name in ("values", "gradients")}
    result["state"] = {**dict(loss_fn.named_parameters()), **dict(loss_fn.named_buffers())}
    result["state"] = {name: value.detach().double() for name, value in result["state"].items()}
    return result


def run_rank(rank: int, world: int, steps: int) -> list[Any]:
    torch.set_num_threads(1)
    counter = Counter()
    return [train(wrapper, rank, world, steps, counter) for wrapper in WRAPPERS]


def largest(pairs: list[tuple[Tensor, Tensor]]) -> float:
    return max((float((a - b).abs().max()) for a, b in pairs if a.numel() > 0), default=0.0)


def short(number: float) -> str:
    return f"{number:.0e}" if number > 0 else "0"


def row(wrapper: Wrapper, world: int, one: Any, ranks: list[Any]) -> str:
    steps = range(len(one["values"]))

    def joined(name: str, step: int) -> Tensor:
        if len(ranks[0][name][step]) == BATCH:  # a decision about the rows of all ranks
            return ranks[0][name][step]
        return torch.cat([result[name][step] for result in ranks])

    scores = largest([(joined("score", step), one["score"][step]) for step in steps])
    other = sum(int((joined("keep", step) != one["keep"][step]).sum()) for step in steps)
    state = largest([(r["state"][n], v) for r in ranks for n, v in one["state"].items()])
    trained = ["-", "-"]
    if wrapper.gathers:
        pairs = [[(r[n], one[n]) for r in ranks] for n in ("values", "gradients")]
        trained = [short(largest(each)) for each in pairs]
    measured, formula = 0, 0
    for step in steps[1:]:
        rows = Rows(*(max(r["rows"][step][i] for r in ranks) for i in range(2)))
        measured += ranks[0]["sent"][step]
        formula += (EXCHANGE + wrapper.payload(rows)) if world > 1 else 0
    dropped = 100 - 100 * torch.cat(one["keep"]).double().mean()
    numbers = [f"{dropped:.0f}", short(scores), str(other), short(state), *trained]
    sizes = [f"{total / (len(steps) - 1):.0f}" for total in (measured, formula)]
    return " | ".join([f"`{wrapper.name}`", str(world), *numbers, *sizes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--short", action="store_true", help="two ranks, six steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 6 if options.short else options.steps
    worlds = [2] if options.short else options.ranks
    by_world = {world: on_ranks(run_rank, world, steps) for world in worlds}
    reference = [train(wrapper, 0, 1, steps, None) for wrapper in WRAPPERS]
    names = ["wrapper", "ranks", "dropped (%)", "scores", "decisions", "state", "values"]
    names += ["gradients", "bytes (counted)", "bytes (formula)"]
    print(f"| {' | '.join(names)} |\n|{len(names) * '---|'}")
    wrong = False
    for world, by_rank in by_world.items():
        for i, wrapper in enumerate(WRAPPERS):
            line = row(wrapper, world, reference[i], [results[i] for results in by_rank])
            counted, formula = line.split(" | ")[-2:]
            wrong |= counted != formula or line.split(" | ")[4] != "0"
            print(f"| {line} |", flush=True)
    if wrong:
        raise SystemExit("ranks differ from one process, or the bytes from their formula")


if __name__ == "__main__":
    main()
