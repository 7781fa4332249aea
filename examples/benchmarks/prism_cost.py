"""What a call of PRISMFilter costs beside the bare product of embeddings and class centers.

    python examples/benchmarks/prism_cost.py --threads 1 2

Timed is a call around a loss that costs nothing and wants no gradient: checks, score, threshold,
enqueueing and the exact class centers; beside it, in the same repeat, the expression that any
filter by class centers has to compute, ``torch.logsumexp(embeddings @ centers.T, 1)``. The memory
is full and half of the labels are wrong. Medians over the repeats in milliseconds with their range;
ratios are taken repeat by repeat. What share of a training step that is: step_share.py.
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

# Classes, width, memory, batch: the first two data sets of the paper, once more with a wider
# embedding, and digits.
SHAPES = [
    (98, 512, 8054, 64),
    (11318, 128, 59551, 64),
    (11318, 512, 59551, 64),
    (10, 64, 60000, 256),
]
SHORT = [(98, 128, 1024, 64), (10, 64, 1000, 256)]
LEAST_SECONDS = 0.1  # a shorter measurement is repeated within the repeat
UNTIMED = 8  # calls before each measurement: the task before has had the caches


def unused(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.sum(dim=1)


def batch(points: Tensor, size: int, wrong: float) -> tuple[Tensor, Tensor]:
    """Embeddings around one point for each class, and labels of which a share is drawn anew."""
    true, other = torch.randint(len(points), (2, size), device=points.device)
    labels = torch.where(torch.rand(size, device=points.device) < wrong, other, true)
    return points[true] + torch.randn_like(points[true]), labels


def tasks(
    shape: tuple[int, int, int, int], device: torch.device
) -> dict[str, Callable[[], object]]:
    classes, width, memory_size, size = shape
    torch.manual_seed(0)
    points = torch.randn(classes, width, device=device)
    embeddings, labels = batch(points, size, wrong=0.5)

    def full(noise_rate: float | None) -> PRISMFilter:
        wrapper = PRISMFilter(
            unused, classes, width, memory_size=memory_size, noise_rate=noise_rate
        ).to(device)
        for _ in range(-(-memory_size // 4096)):
            wrapper(*batch(points, 4096, wrong=0.0))
        return wrapper

    given, estimated = full(0.5), full(None)
    return {
        "bare": lambda: torch.logsumexp(embeddings @ given.memory.centers.T, 1),
        "given": lambda: given(embeddings, labels),
        "estimated": lambda: estimated(embeddings, labels),
    }


def seconds(task: Callable[[], object], times: int, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(UNTIMED):
        task()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        task()
    wait()
    return (time.perf_counter() - start) / times


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--short", action="store_true", help="two shapes, 3 repeats: seconds")
    options = parser.parse_args()
    shapes, repeats, least = SHAPES, options.repeats, LEAST_SECONDS
    if options.short:
        shapes, repeats, least = SHORT, 3, LEAST_SECONDS / 10
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, float32, {repeats} repeats, milliseconds\n")
    print("| C | D | M | B | threads | bare | rate given | ratio | rate estimated | ratio |")
    print("|" + "---|" * 10)
    runs = [(shape, threads) for shape in shapes for threads in options.threads]
    for shape, threads in tqdm(runs, unit="shape", leave=False, disable=None):
        torch.set_num_threads(threads)
        todo = tasks(shape, device)
        times = {n: math.ceil(least / seconds(t, 5, device)) for n, t in todo.items()}
        spent = [
            {name: 1000 * seconds(task, times[name], device) for name, task in todo.items()}
            for _ in range(repeats)
        ]
        cells = [spread([each["bare"] for each in spent])]
        for name in ("given", "estimated"):
            cells.append(spread([each[name] for each in spent]))
            cells.append(spread([each[name] / each["bare"] for each in spent]))
        print("| " + " | ".join([*map(str, shape), str(threads), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
