"""Small Cluster noise beside the draw that the authors of PRISM published for Cars196.

As many classes (98) and images (8,054) as the training half of Cars196 has, a rate of 25 %, and two
kinds of made-up features: class centers with noise in 128 dimensions after a ReLU, and noise
without any classes in 512 dimensions. A group is what was moved from one class into another.

    python examples/benchmarks/small_cluster_draws.py --seeds 3
"""

import argparse
import time

import numpy as np

from noisydml import noise

CLASSES, IMAGES, RATE = 98, 8054, 0.25
SIZES = (1, 2, 3, 4)
# Counted in the published list of labels.
PUBLISHED = {"classes": 25, "noisy": 25.6, "groups": 908, "sizes": (484, 187, 87, 52)}


def made_up(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and features (N, D)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(IMAGES) % CLASSES)
    if kind == "noise":
        features = rng.normal(size=(IMAGES, 512))
    else:
        centers = rng.normal(size=(CLASSES, 128))
        features = np.maximum(centers[labels] + rng.normal(size=(IMAGES, 128)), 0)
    return labels, features.astype(np.float32)


def row(name: str, removed: int, noisy: float, groups: int, sizes: np.ndarray, seconds: str) -> str:
    shares = "".join(f"{100 * size / groups:>8.1f}" for size in sizes)
    return f"{name:<16}{removed:>9}{noisy:>9.1f}{groups:>8}{shares}{seconds:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    heads = "".join(f"{f'of {size}, %':>8}" for size in SIZES)
    print(f"{'features':<16}{'removed':>9}{'noisy, %':>9}{'groups':>8}{heads}{'seconds':>9}")
    published = (PUBLISHED[key] for key in ("classes", "noisy", "groups", "sizes"))
    print(row("published", *published, "-"))
    for kind in ("relu", "noise"):
        for seed in range(options.seeds):
            labels, features = made_up(kind, seed)
            start = time.perf_counter()
            noisy = noise.small_cluster(labels, RATE, features, seed=seed)
            seconds = time.perf_counter() - start
            counts = noisy.transition_matrix(counts=True, sparse=True).tocoo()
            moved = counts.data[counts.row != counts.col]
            sizes = np.bincount(moved, minlength=5)[list(SIZES)]
            name, removed = f"{kind}, seed {seed}", len(noisy.vanished)
            print(row(name, removed, 100 * noisy.rate, len(moved), sizes, f"{seconds:.1f}"))


if __name__ == "__main__":
    main()
