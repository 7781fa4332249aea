"""What memories in parts take, beside whole ones: bytes on a rank, bytes on the wire, and time.

    python examples/benchmarks/sharding.py --threads 1
    python examples/benchmarks/sharding.py --samples 100000 --ranks 2 --only "JudgeFilter, a pass"
    python examples/benchmarks/sharding.py --only-paper --part 1562500 --queries 4096  # on a GPU

Ranks of gloo, a process each, call a wrapper that remembers with ``shard=True`` and one without,
turn by turn on the same rows: 64 a rank, with ids, after an epoch that has filled the memories.
"held" is what the wrapper keeps on a rank, its index included; "sent" what a rank hands to the
collectives in a step, counted there, and by the formulas of docs/scale.md; "time" the median time
of a call with parts over that of one without, around a loss that costs nothing. "a cycle": every
step begins one, with new prototypes and labels; other steps of a PrototypicalMixer do not. "a
pass": two steps judge all that has been collected, of which each rank of whole memories judges
everything. Ends with an error if a decision differs, or the bytes from their formula.

Then 100 million samples on paper: what a rank holds and sends by the formulas, and how long it
searches, from a search of ``--part`` features that is measured here and is linear in their number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from rank_processes import on_ranks
from ranks import EXCHANGE
from torch import Tensor, nn

import noisydml
from noisydml import distributed
from noisydml.memory import TorchIndex
from noisydml.memory import judge as judging

CLASSES, WIDTH, ROWS, K, RETRIEVED = 100, 128, 64, 200, 20
MANY = 100_000_000


class Wrapper(NamedTuple):
    name: str
    make: Callable[..., noisydml.LossWrapper]  # of the number of samples
    # Bytes that a rank sends beyond a whole one's, of the rows of all ranks and their number.
    extra: Callable[[int, int], int] | None
    parts: bool = True  # whether there are any
    steps: int = 1000  # at most
    ends: bool = False  # whether an epoch ends before every step, once the memories are full


def costs_nothing(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.new_zeros(len(embeddings))


def prism(samples: int, **settings: Any) -> noisydml.LossWrapper:
    settings = {"memory_size": samples, "noise_rate": 0.3, **settings}
    return noisydml.PRISMFilter(costs_nothing, CLASSES, WIDTH, **settings)


def knn(samples: int, loss: Any = costs_nothing, **settings: Any) -> noisydml.KNNDenoiser:
    settings = {"memory_size": samples, "embedding_size": WIDTH, "k": K, **settings}
    return noisydml.KNNDenoiser(loss, **settings)


def judge(samples: int, **settings: Any) -> noisydml.LossWrapper:
    settings = {"dataset_size": samples, "embedding_size": WIDTH, **settings}
    return noisydml.JudgeFilter(costs_nothing, **settings)


def relabeler(samples: int) -> noisydml.LossWrapper:
    inner = knn(samples, losses.ContrastiveLoss())
    return noisydml.MemoryRelabeler(inner, WIDTH, memory_size=samples)


def mixer(samples: int, **settings: Any) -> noisydml.LossWrapper:
    settings = {"memory_size": samples, "cycles": 1, "max_retrieved": RETRIEVED, **settings}
    return noisydml.PrototypicalMixer(costs_nothing, CLASSES, WIDTH, seed=0, **settings)


def sent_by_knn(rows: int, world: int) -> int:
    # Rows and staleness, whether a search failed; row, label and distance of each neighbour.
    return 2 * EXCHANGE + rows * (20 * K + 4)


def sent_by_prism(rows: int, world: int) -> int:
    return EXCHANGE + rows * (4 * WIDTH + 8)  # what leaves, and its labels


def sent_by_no_step(rows: int, world: int) -> int:
    return 0


def sent_by_a_cycle(rows: int, world: int) -> int:
    # Counts, sums and squares; distance, row and label of what each class retrieves, from each
    # part to the rank that merges that class, and from there to all.
    share = -(-CLASSES // world)
    return 4 * EXCHANGE + CLASSES * (16 * WIDTH + 8) + 20 * RETRIEVED * (CLASSES + share)


WRAPPERS = [
    Wrapper("KNNDenoiser", knn, sent_by_knn),
    Wrapper("PRISMFilter", prism, sent_by_prism),
    Wrapper("JudgeFilter", judge, sent_by_no_step),
    Wrapper("JudgeFilter, a pass", judge, None, steps=2, ends=True),
    Wrapper("MemoryRelabeler(KNNDenoiser)", relabeler, None, parts=False),
    Wrapper("PrototypicalMixer", mixer, sent_by_no_step),
    Wrapper("PrototypicalMixer, a cycle", mixer, sent_by_a_cycle, ends=True),
]


def held(wrapper: noisydml.LossWrapper) -> int:
    """Bytes of everything that a wrapper keeps: its buffers, and what its index has made."""
    kept = [*wrapper.buffers()]
    for module in wrapper.modules():
        hood = getattr(module, "neighborhood", None)
        for part in filter(None, (hood, getattr(hood, "_index", None))):
            kept += [value for value in vars(part).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


class Counter:
    """Bytes that this rank hands to the collectives of a step."""

    def __init__(self) -> None:
        self.sent = 0
        for name, which in (("all_gather", 1), ("all_to_all_single", 1), ("all_reduce", 0)):
            setattr(distributed.dist, name, self.counting(getattr(dist, name), which))

    def counting(self, collective: Callable[..., Any], which: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.sent += arguments[which].numel() * arguments[which].element_size()
            return collective(*arguments)

        return call


def make_batch(step: int, samples: int, rank: int, world: int) -> dict[str, Tensor]:
    """This rank's rows of a batch; every sample comes once in ``samples / (64 world)`` steps."""
    ids = (torch.arange(ROWS * world) + step * ROWS * world) % samples
    generator = torch.Generator().manual_seed(step)
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(ROWS * world, WIDTH, generator=generator)
    labels = torch.where(ids % 3 == 0, (ids + 1) % CLASSES, ids % CLASSES)
    rows = slice(rank * ROWS, (rank + 1) * ROWS)
    embeddings = (centers[ids % CLASSES] + 0.8 * noise)[rows].requires_grad_()
    return {"embeddings": embeddings, "labels": labels[rows], "sample_ids": ids[rows]}


def decision_of(wrapper: noisydml.LossWrapper, labels: Tensor) -> Tensor:
    """The labels in use, -1 for samples that are dropped."""
    decision = wrapper.decision
    assert decision is not None
    in_use = getattr(decision, "labels", None)
    return torch.where(decision.keep, labels if in_use is None else in_use, -1)


def measure(
    wrapper: Wrapper, rank: int, world: int, samples: int, steps: int, counter: Counter
) -> dict[str, Any]:
    kinds: dict[str, Any] = {"whole": wrapper.make(samples)}
    if wrapper.parts:
        kinds["parts"] = wrapper.make(samples, shard=True)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    sent, different, dropped = dict.fromkeys(kinds, 0), 0, 0
    filling = -(-samples // (ROWS * world)) + 1
    for step in range(filling + (min(steps, wrapper.steps) if len(kinds) > 1 else 0)):
        batch = make_batch(step, samples, rank, world)
        for kind in sorted(kinds, reverse=step % 2 == 0):  # the first call finds colder caches
            each, before = kinds[kind], counter.sent
            if world > 1:
                dist.barrier()
            start = time.perf_counter()
            if wrapper.ends and step * ROWS * world >= samples:
                each.end_epoch()
            each(**batch)
            seconds[kind].append(time.perf_counter() - start)
            sent[kind] = counter.sent - before
        decided = [decision_of(each, batch["labels"]) for each in kinds.values()]
        different += int((decided[0] != decided[-1]).sum())
        dropped += int((decided[0] != batch["labels"]).sum())
    times = {kind: statistics.median(found[filling:] or [0]) for kind, found in seconds.items()}
    sizes = {kind: held(each) for kind, each in kinds.items()}
    return {"times": times, "sent": sent, "held": sizes, "different": different, "dropped": dropped}


def chosen(only: str | None) -> list[Wrapper]:
    return [wrapper for wrapper in WRAPPERS if only in (None, wrapper.name)]


def run_rank(
    rank: int, world: int, threads: int, samples: int, steps: int, only: str | None
) -> list[Any]:
    torch.set_num_threads(threads)
    counter = Counter()
    return [measure(wrapper, rank, world, samples, steps, counter) for wrapper in chosen(only)]


def row(wrapper: Wrapper, world: int, by_rank: list[Any]) -> tuple[str, bool]:
    first = by_rank[0]
    whole = 2 * EXCHANGE + ROWS * (4 * WIDTH + 8 + 8) if world > 1 else 0
    numbers = [f"`{wrapper.name}`", str(world), f"{first['held']['whole'] / 2**20:.2f}"]
    different = sum(result["different"] for result in by_rank)
    if not wrapper.parts:
        return " | ".join([*numbers, "-", "-", "-", "-", "-", "-"]), False
    expected = first["sent"]["parts"]
    if wrapper.extra is not None:
        expected = whole + (wrapper.extra(ROWS * world, world) if world > 1 else 0)
    wrong = different > 0 or first["sent"] != {"whole": whole, "parts": expected}
    ratio = statistics.median(r["times"]["parts"] / r["times"]["whole"] for r in by_rank)
    numbers += [f"{max(result['held']['parts'] for result in by_rank) / 2**20:.2f}"]
    numbers += [str(first["sent"][kind]) for kind in ("whole", "parts")]
    dropped = sum(result["dropped"] for result in by_rank)
    decisions = f"{different} ({dropped})"
    formula = "-" if wrapper.extra is None else str(expected)
    return " | ".join([*numbers, formula, decisions, f"{ratio:.2f}"]), wrong


def on_paper(part: int, queries: int, ranks: list[int]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = nn.functional.normalize(torch.randn(part, WIDTH, device=device))
    index = TorchIndex()
    index.build(features)
    # On a CPU the seconds of this process, whatever else the machine does.
    now = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(4):
        start = now()
        found = index.search(features[:queries], K)
        found.distance.cpu()  # waits for the device
        seconds.append(now() - start)
    each = min(seconds) / part / queries
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this CPU"
    print(f"\n{queries} queries of {part:,} features on {name}: {min(seconds):.3f} s")
    header = ["ranks", "KNN holds, GB", "KNN receives a step, MB", "search a step, s"]
    header += ["PRISM holds, GB", "PRISM receives a step, MB"]
    print(f"| {' | '.join(header)} |\n|{len(header) * '---|'}")
    sample = 2 * (4 * WIDTH + 16) + (4 * WIDTH + 4) + 24  # two memories, index, labels and rows
    for world in ranks:
        rows = ROWS * world
        gathered = (world - 1) * ROWS * (4 * WIDTH + 16)
        answers = (world - 1) * ROWS * (20 * K + 4)  # those to this rank's rows
        leaving = 2 * rows * (4 * WIDTH + 8)  # a ring's all-reduce sends it on twice
        numbers = [f"{sample * MANY / world / 1e9:.2f}", f"{(gathered + answers) / 1e6:.1f}"]
        numbers += [f"{each * rows * MANY / world:.3f}"]
        numbers += [f"{(4 * WIDTH + 16) * MANY / world / 1e9:.2f}"]
        numbers += [f"{(gathered + leaving) / 1e6:.1f}"]
        print(f"| {world} | {' | '.join(numbers)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--only", choices=[wrapper.name for wrapper in WRAPPERS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--only-paper", action="store_true", help="no ranks are started")
    parser.add_argument("--short", action="store_true", help="one and two ranks, few samples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples, steps = (1000, 4) if options.short else (options.samples, options.steps)
    if options.short:
        judging.ASKED = 100  # labels held out: a fifth of them is enough
    wrong = False
    if not options.only_paper:
        header = ["wrapper", "ranks", "held whole, MiB", "held in parts, MiB", "sent whole"]
        header += ["sent in parts", "by formula", "other decisions (dropped or relabelled)", "time"]
        print(f"| {' | '.join(header)} |\n|{len(header) * '---|'}")
        for world in [1, 2] if options.short else options.ranks:
            by_rank = on_ranks(run_rank, world, options.threads, samples, steps, options.only)
            for i, wrapper in enumerate(chosen(options.only)):
                line, bad = row(wrapper, world, [results[i] for results in by_rank])
                print(f"| {line} |", flush=True)
                wrong |= bad
    if options.short:
        options.part = 10_000
    on_paper(options.part, options.queries, [8, 64, 512])
    if wrong:
        raise SystemExit("decisions differ, or the bytes from their formula")


if __name__ == "__main__":
    main()
