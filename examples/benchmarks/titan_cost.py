"""What a step of PrototypicalMixer costs on the CPU beside the bare product of features and means.

    python examples/benchmarks/titan_cost.py --threads 1

Ratios to ``z @ means.T``, medians of interleaved repeats with their range, and the memory that a
step adds to what its buffers take.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisydml import PrototypicalMixer
from noisydml.functional import clustering_loss, gaussian_log_density
from noisydml.pml.batch import Batch


def no_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.sum(dim=1)


def peak_mb(start: bool = False) -> float:
    """The most memory that the process has had since the last start (Linux, glibc)."""
    if start:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and kept would hide what is added
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


def prepared(
    classes: int, width: int, samples: int, size: int, device: torch.device
) -> tuple[PrototypicalMixer, Tensor, Tensor, Tensor]:
    """A mixer in its first cycle, and a batch: features, labels and ids."""
    torch.manual_seed(0)
    z = torch.randn(size, width, device=device)
    labels = torch.randint(classes, (size,), device=device)
    loss_fn = PrototypicalMixer(no_loss, classes, width, memory_size=samples, max_retrieved=0).to(
        device
    )
    memory = loss_fn.prototypes.memory
    memory.features.normal_()
    memory.labels.random_(classes)
    ids = torch.randint(samples, (size,), device=device)
    loss_fn(z, labels, sample_ids=ids)

    start = time.perf_counter()
    loss_fn.end_epoch()
    print(f"beginning a cycle: {time.perf_counter() - start:.1f} s without refinement")
    return loss_fn, z, labels, ids


def tasks(
    loss_fn: PrototypicalMixer, z: Tensor, labels: Tensor, ids: Tensor
) -> dict[str, Callable[[], object]]:
    """What is timed; the first two are the limits."""
    means, variances, counts = (
        getattr(loss_fn.prototypes, n) for n in ("means", "variances", "counts")
    )
    z_graph = z.clone().requires_grad_()
    return {
        "bare product": lambda: z @ means.T,
        "bare product and its gradient": lambda: (z_graph @ means.T).sum().backward(),
        "log-densities": lambda: gaussian_log_density(z, means, variances, counts),
        "judging a batch": lambda: loss_fn.judge(Batch(z, labels, sample_ids=ids)),
        "clustering loss": lambda: clustering_loss(z, labels, means, counts),
        "clustering loss and its gradient": lambda: (
            clustering_loss(z_graph, labels, means, counts).sum().backward()
        ),
        "whole step, forward": lambda: loss_fn(z, labels, sample_ids=ids),
        "whole step and its gradient": lambda: loss_fn(z_graph, labels, sample_ids=ids).backward(),
    }


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512, help="D")
    parser.add_argument("--classes", type=int, default=11_318, help="C")
    parser.add_argument("--batch", type=int, default=64, help="B")
    parser.add_argument("--samples", type=int, default=59_551, help="entries of the memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--short", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    if options.short:
        options.classes, options.samples, options.repeats = 500, 2000, 3
    torch.set_num_threads(options.threads)
    sizes = options.classes, options.width, options.samples, options.batch
    calls = tasks(*prepared(*sizes, torch.device("cpu")))
    calls["bare product and its gradient"]()
    before = peak_mb(start=True)
    calls["whole step and its gradient"]()
    print(f"a step, forward and backward, adds {peak_mb() - before:.0f} MB")

    times = medians(calls, options.repeats)
    print(f"bare product: {1000 * np.median(times['bare product']):.1f} ms")
    print("| part | times the bare product | times the bare product and its gradient |")
    print("|---|---|---|")
    for name, values in times.items():
        beside = [times["bare product"], times["bare product and its gradient"]]
        ratios = [np.array(values) / np.array(other) for other in beside]
        cells = [f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})" for r in ratios]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
