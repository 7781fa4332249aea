"""What the memory of KNNDenoiser and its index cost with many samples, exact and compressed.

    python examples/benchmarks/memory_scale.py

Unit vectors of 64 numbers around class centers, 20 samples a class, of which three in ten have a
wrong label. For each number of samples and each index: bytes a sample as FAISS stores it (of the
torch index as it is held), seconds to build it, milliseconds a query, the share of the 50 exact
neighbours that are found, and for how many of the queries the vote comes to the same decision as
with exact neighbours, and to a right one. One thread. At the end what that comes to with 1, 10 and
100 million samples.
"""

from __future__ import annotations

import argparse
import math
import time

import faiss
import torch
from torch import Tensor

from noisydml.functional import neighbor_label_score, neighbor_weights
from noisydml.memory import FeatureMemory
from noisydml.memory.index import FaissIndex, NeighborIndex, TorchIndex
from noisydml.memory.neighbors import Neighborhood

WIDTH, PER_CLASS, NOISE, K, SHARPNESS, THRESHOLD = 64, 20, 0.3, 50, 2.0, 0.5


def indexes(samples: int) -> dict[str, NeighborIndex]:
    """By name; the number of cells grows with the root of the samples."""
    cells = 2 ** round(math.log2(math.sqrt(samples)))
    return {
        "Flat": FaissIndex("Flat"),
        "torch, float16": TorchIndex(dtype=torch.float16),
        "SQfp16": FaissIndex("SQfp16"),
        f"IVF{cells},Flat": FaissIndex(f"IVF{cells},Flat"),
        f"IVF{cells},Flat, nprobe=16": FaissIndex(f"IVF{cells},Flat", nprobe=16),
        f"IVF{cells},SQ8, nprobe=16": FaissIndex(f"IVF{cells},SQ8", nprobe=16),
        f"IVF{cells},SQ4, nprobe=16": FaissIndex(f"IVF{cells},SQ4", nprobe=16),
    }


def make_data(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, given labels, and which of them are wrong."""
    generator = torch.Generator().manual_seed(0)
    classes = samples // PER_CLASS
    true = torch.randint(classes, (samples,), generator=generator)
    features = torch.randn(classes, WIDTH, generator=generator)[true]
    features = features + 0.8 * torch.randn(samples, WIDTH, generator=generator)
    wrong = torch.rand(samples, generator=generator) < NOISE
    other = torch.randint(classes - 1, (samples,), generator=generator)
    given = torch.where(wrong, (true + 1 + other) % classes, true)
    return torch.nn.functional.normalize(features), given, wrong


def stored(index: NeighborIndex) -> int:
    """Bytes of what an index holds."""
    if isinstance(index, TorchIndex):
        return index.size * index.width * torch.finfo(index.dtype).bits // 8
    return len(faiss.serialize_index(index._faiss))  # type: ignore[attr-defined]


def measure(samples: int, queries: int) -> None:
    features, given, wrong = make_data(samples)
    ids = torch.arange(queries)
    exact: tuple[Tensor, Tensor] | None = None
    for name, index in indexes(samples).items():
        hood = Neighborhood(index, "cosine")
        start = time.process_time()
        hood.build(features, given)
        built = time.process_time() - start
        start = time.process_time()
        position = torch.cat([index.search(features[i], K, i).position for i in ids.split(64)])
        searched = 1e3 * (time.process_time() - start) / queries
        distance, near, known = hood.neighbors(features[ids], given[ids], K, ids)
        weights = neighbor_weights(distance, SHARPNESS)
        vote = neighbor_label_score(hood.labels_at(near), given[ids], weights)
        keep = torch.where(known, vote.score, 1.0) >= THRESHOLD
        if exact is None:
            exact = position, keep
        found = (position.unsqueeze(2) == exact[0].unsqueeze(1)).any(dim=1)
        recall = found.double().mean()
        same, right = ((keep == other).double().mean() for other in (exact[1], ~wrong[ids]))
        print(
            f"| {samples} | `{name}` | {stored(index) / samples:.0f} | {built:.1f} | {searched:.2f}"
            f" | {100 * recall:.1f} | {100 * same:.1f} | {100 * right:.1f} |",
            flush=True,
        )


def memory_bytes(samples: int, dtype: torch.dtype) -> float:
    """Bytes a sample of the FeatureMemory, measured."""
    memory = FeatureMemory(samples, WIDTH, dtype=dtype)
    return sum(b.numel() * b.element_size() for b in memory.state_dict().values()) / samples


def extrapolate() -> None:
    """By formula: two memories of a feature, a label and an id, the index, its labels and rows."""
    half, single = (memory_bytes(1000, dtype) for dtype in (torch.float16, torch.float32))
    settings = [
        ("float32, exact", single, 4 * WIDTH),
        ("float16, `SQfp16`", half, 2 * WIDTH),
        ("float16, `IVF...,SQ8`", half, WIDTH + 8),
        ("float16, `IVF...,SQ4`", half, WIDTH // 2 + 8),
    ]
    print(
        f"\nGB on every rank, D = {WIDTH}\n\n"
        "| memory, index | bytes a sample | 1M | 10M | 100M |\n|---|---|---|---|---|"
    )
    for name, memory, index in settings:
        each = round(2 * memory + index + 16)
        sizes = " | ".join(f"{each * millions / 1e3:.2f}" for millions in (1, 10, 100))
        print(f"| {name} | 2 x {memory:.0f} + {index} + 16 = {each} | {sizes} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--short", action="store_true", help="2,000 samples, 64 queries")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print(
        "| samples | index | bytes a sample | build, s | query, ms | recall, % | same decision, % "
        "| right decision, % |\n|---|---|---|---|---|---|---|---|"
    )
    for samples in [2_000] if options.short else options.samples:
        measure(samples, 64 if options.short else options.queries)
    extrapolate()


if __name__ == "__main__":
    main()
