"""Write the tables of docs/gpu.md anew, from the file of gpu.py.

    python examples/benchmarks/gpu_page.py

A table is the paragraph after a comment ``<!-- gpu shares -->`` that names a part of gpu.py, and
after ``<!-- gpu status -->`` stands what has run. Where nothing was measured it says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "examples" / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"

Record = dict[str, Any]


def percent(values: list[float]) -> str:
    low, median, high = (100 * value for value in values)
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def times(values: list[float]) -> str:
    low, median, high = values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


# The columns of each part: heading, and what of a record stands there.
COLUMNS: dict[str, dict[str, Any]] = {
    "contract": {
        "file": lambda r: f"`{r['file']}`",
        "passed": lambda r: r["passed"],
        "skipped": lambda r: r["skipped"],
        "failed": lambda r: ", ".join(f"`{name}`" for name in r["failed"]) or "none",
    },
    "synchronisations": {
        "wrapper": lambda r: r["wrapper"],
        "its own": lambda r: r.get("own", "-"),
        "with `ContrastiveLoss`": lambda r: r.get("step", "-"),
        "`ContrastiveLoss` alone": lambda r: r.get("loss", "-"),
    },
    "shares": {
        "C": lambda r: r["classes"],
        "N": lambda r: r["samples"],
        "B": lambda r: r["batch"],
        "wrapper": lambda r: r["wrapper"],
        "rows": lambda r: r["rows"],
        "step, ms": lambda r: f"{r['step_ms'][1]:.1f}",
        "kernels": lambda r: r.get("kernels") or "-",
        "busy, %": lambda r: f"{100 * r['busy']:.2f}" if r.get("kernels") else "-",
        "own, %": lambda r: percent(r["own"]),
        "more, %": lambda r: percent(r["more"]),
    },
    "limits": {
        "wrapper": lambda r: f"`{r['wrapper']}`",
        "C": lambda r: r["classes"],
        "N": lambda r: r["samples"],
        "D": lambda r: r["width"],
        "B": lambda r: r["batch"],
        "part": lambda r: r["part"],
        "times the limit": lambda r: times(r["ratio"]),
    },
    "judge": {
        "samples": lambda r: r["samples"],
        "classes": lambda r: r["classes"],
        "seconds": lambda r: r["seconds"],
        "memory, GB": lambda r: "-" if r["bytes"] is None else f"{r['bytes'] / 1e9:.1f}",
        "rate, of wrong": lambda r: f"{r['rate']:.3f}, {r['wrong']:.3f}",
        "precision": lambda r: f"{r['precision']:.3f}",
        "recall": lambda r: f"{r['recall']:.3f}",
    },
    "tables": {
        "data": lambda r: r["table"],
        "loss": lambda r: r["method"],
        "seed": lambda r: r["seed"],
        "P@1": lambda r: f"{r['p_at_1']:.1f}",
        "MAP@R": lambda r: f"{r['map_at_r']:.1f}",
    },
}
# Records that come as they get done.
SORTED_BY = {"contract": ("file",), "tables": ("table", "method", "seed")}
TOLD = ("skipped", "cut", "failed")  # a record of this one name is a sentence, not a row


def told(record: Record) -> bool:
    return any(set(record) <= {key, "table"} for key in TOLD)


def table(name: str, run: Record) -> str:
    """Markdown of what was measured of a part."""
    part = run.get("parts", {}).get(name, {"records": []})
    rows = [record for record in part["records"] if not told(record)]
    rows.sort(key=lambda record: [record[key] for key in SORTED_BY.get(name, ())])
    if not rows:
        return "*Not measured: no run of this part is in the repository.*"
    columns = COLUMNS[name]
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[str(make(record)) for make in columns.values()] for record in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def status(run: Record) -> str:
    """Where each part was measured, and whether that is all of it."""
    lines = []
    for name in COLUMNS:
        part = run.get("parts", {}).get(name)
        if part is None:
            lines.append(f"* `{name}`: missing")
            continue
        said = [", ".join(map(str, record.values())) for record in part["records"] if told(record)]
        where = f"{part.get('device', 'no device')}, torch {run['torch']}, {part['seconds']} s"
        lines.append(f"* `{name}`: {'; '.join([where, part['status'], *said])}")
    return "\n".join(lines)


def rewritten(page: str, run: Record) -> str:
    """The page with its tables made anew."""
    blocks = page.split("\n\n")
    for i, block in enumerate(blocks):
        comment = block.splitlines()[-1] if block else ""
        if comment.startswith("<!-- gpu ") and comment.endswith(" -->"):
            name = comment.removeprefix("<!-- gpu ").removesuffix(" -->")
            blocks[i + 1] = status(run) if name == "status" else table(name, run)
    return "\n\n".join(blocks)


def measured() -> Record:
    """The run in the repository; empty if there is none, or a short one, which says nothing."""
    found: Record = json.loads(RUN.read_text(encoding="utf-8")) if RUN.exists() else {}
    return {} if found.get("short") else found


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rewritten(page, measured()), encoding="utf-8")


if __name__ == "__main__":
    main()
