"""How long `import noisydml` takes beside the imports that it cannot do without.

    python examples/benchmarks/import_time.py
    python examples/benchmarks/import_time.py --repeats 3 --rows 0

Each import is timed in a process of its own, the two interleaved: noisydml, and torch with the
losses and distances of pytorch-metric-learning (which by itself imports nothing). It is processor
time, so that other programs on the machine count little. Then, from `python -X importtime`, which
modules the difference is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

BASE = "import torch, pytorch_metric_learning.losses, pytorch_metric_learning.distances"
TIMED = "import time; t = time.process_time(); {}; print(time.process_time() - t)"
MODULES = "{}; import sys; print(*sys.modules)"


def seconds(statement: str) -> float:
    return float(python("-c", TIMED.format(statement)).stdout)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def spread(values: list[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def own_modules(statement: str) -> list[tuple[float, str]]:
    """Milliseconds of each module that the statement imports beside ``BASE``, without those
    that it imports in turn; the slowest first.
    """
    both = f"{MODULES.format(BASE)}; {MODULES.format(statement)}"
    loaded, more = (set(line.split()) for line in python("-c", both).stdout.splitlines())
    rows = []
    for line in python("-X", "importtime", "-c", statement).stderr.splitlines():
        own, _, name = (cell.strip() for cell in line.removeprefix("import time:").split("|"))
        if own.isdecimal() and name in more - loaded:
            rows.append((int(own) / 1000, name))
    return sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", type=int, default=12, help="of the table of modules")
    options = parser.parse_args()

    seconds("import noisydml")  # once, so that compiled files and the disk's cache are there
    pairs = [(seconds(BASE), seconds("import noisydml")) for _ in range(options.repeats)]
    base, own = ([pair[i] for pair in pairs] for i in (0, 1))
    print(f"torch and pytorch_metric_learning: {spread(base, 2)} s")
    print(f"noisydml, which imports both: {spread(own, 2)} s")
    print(f"ratio: {spread([b / a for a, b in pairs], 3)}, {options.repeats} repeats")

    modules = own_modules("import noisydml")
    print(f"\n{len(modules)} modules more, {sum(ms for ms, _ in modules):.0f} ms; the slowest:")
    for milliseconds, name in modules[: options.rows]:
        print(f"{milliseconds:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
