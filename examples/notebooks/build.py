"""Make the notebooks of this folder from their scripts, and execute them.

    python examples/notebooks/build.py
    python examples/notebooks/build.py own_filter
    python examples/notebooks/build.py --check --short

The scripts (percent format) are the source. `--check` executes them afresh and writes nothing; it
fails if a cell fails or warns, or if a notebook has other cells than its script or is too large.
`--short` trains less.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
LARGEST = 300_000  # bytes of a notebook
SHORTER = {  # what is put in the place of what
    "compare_wrappers": ("SEEDS, EPOCHS, CLASSES, SIZE = 0.3, range(3), 10,",
                         "SEEDS, EPOCHS, CLASSES, SIZE = 0.3, range(2), 2,"),
    "own_filter": ("epochs=15", "epochs=2"),
    "train_robustly": ("epochs=20", "epochs=3"),
}  # fmt: skip


def read(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # by default random, and another one each time
        cell.metadata = {}
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Fill in the outputs; a cell that fails raises, and so does one that warns."""
    client = NotebookClient(
        notebook,
        timeout=900,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
        extra_arguments=["--log-level=ERROR"],  # no word about sockets of this machine
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{output['text']}\nwas written to stderr by\n{cell.source}")


def shortened(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The same that trains less, if it trains for long."""
    long, short = SHORTER.get(name, ("", ""))
    if not any(long in cell.source for cell in notebook.cells):
        raise ValueError(f"{name} has no {long!r} any more: see SHORTER")
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace(long, short) if long else cell.source
    return notebook


def sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def problem_of(path: Path, notebook: nbformat.NotebookNode) -> str | None:
    """What is wrong with the file of a notebook."""
    if not path.exists():
        return "is missing"
    if sources(nbformat.read(path, as_version=4)) != sources(notebook):
        return "has other cells than its script"
    if path.stat().st_size > LARGEST:
        return f"is larger than {LARGEST} bytes"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of notebooks, without a suffix; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--short", action="store_true", help="with --check: train less")
    options = parser.parse_args()
    if options.short and not options.check:
        parser.error("--short is for --check: what is written has been trained in full")
    scripts = sorted(path for path in FOLDER.glob("*.py") if path.name != Path(__file__).name)
    unknown = set(options.names) - {script.stem for script in scripts}
    if unknown:
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")

    failed = False
    for script in scripts:
        if options.names and script.stem not in options.names:
            continue
        path, notebook = script.with_suffix(".ipynb"), read(script)
        start = time.perf_counter()
        execute(shortened(notebook, script.stem) if options.short else notebook)
        seconds = time.perf_counter() - start
        if not options.check:
            nbformat.write(notebook, path)
        problem = problem_of(path, notebook)
        failed = failed or problem is not None
        state = f"{path.name} {problem}" if problem else f"{path.stat().st_size / 1000:.0f} kB"
        print(f"{script.stem}: executed in {seconds:.0f} s, {state}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
