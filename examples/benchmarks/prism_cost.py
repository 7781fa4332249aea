"""What PRISM's filter costs: score, threshold, enqueueing and the exact class centers.

Timed is the whole step of a PRISMFilter without the wrapped loss, beside the bare expression that
any filter by class centers has to compute, ``torch.logsumexp(embeddings @ centers.T, 1)``, in the
same repeat. The memory is full and half of the labels are wrong. The table, in Markdown, has the
medians over the repeats in milliseconds and, in brackets, their range; ratios are taken repeat by
repeat. On a machine that is busy ``--cpu-time`` counts the time on the processor instead of the
clock's, which several threads waiting for each other inflate.

    python examples/benchmarks/prism_cost.py --threads 1 2
    python examples/benchmarks/prism_cost.py --short
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from noisydml import PRISMFilter
from noisydml.pml.batch import Batch

# Classes, width, memory, batch: the first two data sets of the paper, once more with a wider
# embedding, and digits.
SHAPES = [
    (98, 512, 8054, 64),
    (11318, 128, 59551, 64),
    (11318, 512, 59551, 64),
    (10, 64, 60000, 256),
]
SHORT = [(98, 512, 8054, 64), (10, 64, 6000, 256)]
LEAST_SECONDS = 0.1  # a shorter measurement is repeated within the repeat
UNTIMED = 8  # steps before each measurement: the task before has had the caches
BATCHES = 8


def unused(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.sum(dim=1)


class Data:
    """Batches around one point for each class, and filters whose memory is full of their like."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(shape[0], shape[1], generator=self.generator)
        self.batches = [self.batch(shape[3]) for _ in range(BATCHES)]

    def batch(self, size: int, wrong: float = 0.5) -> Batch:
        classes, width, *_ = self.shape
        true = torch.randint(classes, (size,), generator=self.generator)
        others = torch.randint(classes, (size,), generator=self.generator)
        labels = torch.where(torch.rand(size, generator=self.generator) < wrong, others, true)
        noise = torch.randn(size, width, generator=self.generator)
        return Batch((self.points[true] + noise).to(self.device), labels.to(self.device))

    def filter(self, noise_rate: float | None) -> PRISMFilter:
        classes, width, memory_size, _ = self.shape
        wrapper = PRISMFilter(
            unused, classes, width, memory_size=memory_size, noise_rate=noise_rate
        ).to(self.device)
        for start in range(0, memory_size, 4096):
            clean = self.batch(min(4096, memory_size - start), wrong=0.0)
            wrapper.memory.enqueue(clean.embeddings, clean.labels)
        return wrapper


def tasks(data: Data) -> dict[str, Callable[[int], object]]:
    """What is timed, given the number of a batch."""

    def step(wrapper: PRISMFilter) -> Callable[[int], object]:
        def run(i: int) -> None:
            batch = data.batches[i % BATCHES]
            wrapper.commit(batch, wrapper.judge(batch))

        return run

    given, estimated = data.filter(0.5), data.filter(None)
    return {
        "bare": lambda i: torch.logsumexp(
            data.batches[i % BATCHES].embeddings @ given.memory.centers.T, 1
        ),
        "given": step(given),
        "estimated": step(estimated),
    }


def seconds(
    task: Callable[[int], object], times: int, device: torch.device, clock: Callable[[], float]
) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for i in range(UNTIMED):
        task(i)
    wait()
    start = clock()
    for i in range(times):
        task(i)
    wait()
    return (clock() - start) / times


def measure(
    shape: tuple[int, int, int, int], repeats: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of every task, once per repeat."""
    todo, times = tasks(Data(shape, device)), {}
    for name, task in todo.items():
        once = seconds(task, 5, device, time.perf_counter)
        times[name] = max(1, math.ceil(LEAST_SECONDS / once))
    spent: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(repeats):
        for name, task in todo.items():
            spent[name].append(1000 * seconds(task, times[name], device, clock))
    return spent


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--cpu-time", action="store_true", help="time on the processor")
    parser.add_argument("--short", action="store_true", help="two shapes, 3 repeats: seconds")
    options = parser.parse_args()
    shapes, repeats = (SHORT, 3) if options.short else (SHAPES, options.repeats)
    clock = time.process_time if options.cpu_time else time.perf_counter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, float32, {repeats} repeats, milliseconds\n")
    print("| C | D | M | B | threads | bare | rate given | ratio | rate estimated | ratio |")
    print("|" + "---|" * 10)
    runs = [(shape, threads) for shape in shapes for threads in options.threads]
    for shape, threads in tqdm(runs, unit="shape", leave=False, disable=None):
        torch.set_num_threads(threads)
        spent = measure(shape, repeats, device, clock)
        cells = [spread(spent["bare"])]
        for name in ("given", "estimated"):
            ratios = [a / b for a, b in zip(spent[name], spent["bare"], strict=True)]
            cells += [spread(spent[name]), spread(ratios)]
        print("| " + " | ".join([*map(str, shape), str(threads), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
