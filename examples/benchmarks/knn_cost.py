"""What a call of KNNDenoiser costs beside the bare search for neighbours.

    python examples/benchmarks/knn_cost.py --threads 1 2

On the CPU the bare search is FAISS' own (``IndexFlatIP.search``); on CUDA it is ``topk`` of a
matrix product. The call is around a loss that costs nothing and has no gradients: checks, search,
votes, and the memory of the batch. Prints a Markdown table with the median ratio of interleaved
runs, and both in milliseconds. What share of a training step that is: step_share.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import torch
from torch import Tensor, nn

import noisydml

# Samples, width, batch size and classes of MNIST, Cars196 and Stanford Online Products.
SHAPES = [(60_000, 64, 256, 10), (8_054, 512, 64, 98), (59_551, 128, 64, 11_318)]
K = 200


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; on the CPU those of this process, whatever else the machine does."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter if device.type == "cuda" or torch.get_num_threads() > 1 else cpu_time
    start = now()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - start


def cpu_time() -> float:
    return time.process_time()


def bare_search(features: Tensor, k: int = K) -> Callable[[Tensor], object]:
    features = nn.functional.normalize(features)
    if features.device.type == "cuda":
        return lambda queries: torch.topk(nn.functional.normalize(queries) @ features.T, k)
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    return lambda queries: index.search(queries.numpy(), k)


def tasks(
    shape: tuple[int, int, int, int], device: torch.device
) -> dict[str, Callable[[], object]]:
    samples, width, size, classes = shape
    centers = torch.randn(classes, width, device=device)
    labels = torch.randint(classes, (samples,), device=device)
    features = centers[labels] + 0.5 * torch.randn(samples, width, device=device)
    loss_fn = noisydml.KNNDenoiser(lambda e, y: e.sum(1), memory_size=samples, k=K).to(device)
    loss_fn.refresh(features, labels)
    search = bare_search(features)
    ids = torch.randperm(samples, device=device)[:size]

    def step() -> None:
        loss_fn(features[ids], labels[ids], sample_ids=ids)

    queries = nn.functional.normalize(features[ids])
    return {"bare": lambda: search(queries), "call": step}


def measure(shape: tuple[int, int, int, int], device: torch.device, repeats: int) -> str:
    samples, width, size, _ = shape
    search, step = tasks(shape, device).values()
    for _ in range(3):
        step()
        search()
    pairs = [(clock(step, device), clock(search, device)) for _ in range(repeats)]
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    ours, bare = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{samples} x {width} | {size} | {ours:.2f} | {bare:.2f} | {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--short", action="store_true", help="the smallest shape, three repeats")
    options = parser.parse_args()
    print(
        "| device | memory | batch | call, ms | bare search, ms | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    shapes = SHAPES[1:2] if options.short else SHAPES
    repeats = 3 if options.short else options.repeats
    for threads in options.threads[: 1 if options.short else None]:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        for shape in shapes:
            torch.manual_seed(0)
            print(
                f"| CPU, {threads} threads | {measure(shape, torch.device('cpu'), repeats)} |",
                flush=True,
            )
    if torch.cuda.is_available():
        for shape in shapes:
            name = torch.cuda.get_device_name()
            print(f"| {name} | {measure(shape, torch.device('cuda'), repeats)} |", flush=True)


if __name__ == "__main__":
    main()
