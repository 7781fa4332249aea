"""What the noise models cost: seconds and peak memory for many labels of many classes.

Each model runs in a process of its own, so that its peak memory is its own. The peak counts all
that the process holds: the interpreter, torch, the labels and, for ``semantic``, the hierarchy.
The baseline is such a process that only imports the library and makes the labels. ``small_cluster``
is left out: it clusters features, class by class, and its time is that of scikit-learn.

    python examples/benchmarks/noise_cost.py
    python examples/benchmarks/noise_cost.py --short
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from noisydml import noise

MODELS = ("baseline", "uniform", "pair_flip", "class_frequency", "semantic")
CHILDREN = 10  # of a node of the hierarchy


def hierarchy(n_classes: int) -> noise.ClassHierarchy:
    """Every node with ten children, the last ones perhaps with fewer."""
    digits = len(str(n_classes - 1))
    return noise.ClassHierarchy.from_paths(["/".join(f"{i:0{digits}}") for i in range(n_classes)])


def measure(model: str, n_labels: int, n_classes: int, exact: bool) -> dict[str, float]:
    """Seconds and peak megabytes of this process, for one model."""
    labels = np.random.default_rng(0).permutation(np.arange(n_labels) % n_classes)
    start = time.perf_counter()
    if model == "semantic":
        tree = hierarchy(n_classes)
        building = time.perf_counter() - start
        start = time.perf_counter()
        noise.semantic(labels, 0.3, tree, exact=exact)
    else:
        building = 0.0
        if model != "baseline":
            getattr(noise, model)(labels, 0.3, exact=exact)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    per_megabyte = 1e6 if sys.platform == "darwin" else 1e3
    return {"seconds": seconds, "building": building, "megabytes": peak / per_megabyte}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--short", action="store_true", help="10,000 labels of 1,000 classes")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--bernoulli", action="store_true", help="a coin a sample")
    options = parser.parse_args()
    if options.short:
        options.labels, options.classes = 10_000, 1_000
    if options.one:
        exact = not options.bernoulli
        print(json.dumps(measure(options.one, options.labels, options.classes, exact)))
        return

    print(f"{options.labels} labels, {options.classes} classes, 30 % wrong")
    print(f"{'model':<16}{'seconds':>9}{'hierarchy, s':>14}{'peak, MB':>10}")
    for model in MODELS:
        command = [sys.executable, __file__, "--one", model]
        command += ["--labels", str(options.labels), "--classes", str(options.classes)]
        command += ["--bernoulli"] * options.bernoulli
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(run.stdout)
        print(
            f"{model:<16}{result['seconds']:>9.2f}{result['building']:>14.2f}"
            f"{result['megabytes']:>10.0f}"
        )


if __name__ == "__main__":
    main()
