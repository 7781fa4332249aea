"""Tables and figures from the runs of train.py, and the tables of a Markdown page written anew.

    python examples/benchmarks/report.py results/*.jsonl --table recipe=omniglot columns=noise
    python examples/benchmarks/report.py results/*.jsonl --page docs/results.md
    python examples/benchmarks/report.py results/*.jsonl --figure docs/images/results_omniglot.png

In a page a table is the paragraph after a comment that says what it shows:

    <!-- table recipe=omniglot loss=multi-similarity columns=noise value=map_at_r -->

``rows`` (method, if not said otherwise) and ``columns`` are fields of a run, or several with
commas between them; ``value`` is a number that it ends with, or ``recovered``, the share of the
damage that is undone: (method - plain) / (GroundTruthFilter - plain) of MAP@R, in %. Several values
stand side by side. All else selects runs, by one value or by several with | between them. Mean and
standard deviation over the seeds, whose number stands in brackets where it is not 3.

    <!-- regret -->

is what ``robust`` gains and loses beside the other methods, over the seeds in common.
"""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from image_sets import NOISES
from methods import LOSSES, METHODS
from train import read

Record = dict[str, Any]
HEADINGS = {
    "p_at_1": "R@1",
    "map_at_r": "MAP@R",
    "best_p_at_1": "P@1",
    "recovered": "recovered",
    "kept": "kept",
    "kept_right": "of them right",
    "labels_right": "labels right",
    "noise_rate": "rate",
}
# N2D2, Table 2, first three columns: P@1 at 10, 20 and 50 % symmetric noise.
PUBLISHED = {
    ("MS", "plain"): (96.42, 95.77, 94.13),
    ("SCAF", "plain"): (95.98, 95.42, 92.98),
    ("ST", "plain"): (96.23, 95.86, 94.35),
    ("MS", "GroundTruthFilter"): (96.22, 96.28, 96.02),
    ("SCAF", "GroundTruthFilter"): (96.38, 96.53, 95.71),
    ("ST", "GroundTruthFilter"): (97.16, 97.06, 96.63),
    ("MS", "PRISMFilter (rate given)"): (95.71, 94.06, 86.81),
    ("SCAF", "PRISMFilter (rate given)"): (96.14, 95.9, 94.22),
    ("ST", "PRISMFilter (rate given)"): (96.58, 96.27, 93.91),
    ("MS", "KNNDenoiser (counts)"): (94.17, 93.58, 92.56),
    ("SCAF", "KNNDenoiser (counts)"): (95.04, 94.66, 93.89),
    ("ST", "KNNDenoiser (counts)"): (96.23, 96.16, 95.27),
}
for _loss in ("MS", "SCAF", "ST"):  # the same by an index that is quicker
    PUBLISHED[_loss, "KNNDenoiser (counts, IVF)"] = PUBLISHED[_loss, "KNNDenoiser (counts)"]
RATES = (0.1, 0.2, 0.5)
# What ``robust`` is: with a judgement before the first step, else the one line, which from scratch
# is start="train".
JUDGED, TRAINED = "robust (judged start)", "robust (trained start)"
PRETRAINED = (JUDGED, "robust")
FROM_SCRATCH = {
    "omniglot": (JUDGED, "PRISMFilter"), "mnist": (JUDGED, TRAINED), "cifar100": (JUDGED, TRAINED)
}  # fmt: skip
TOLD = ("PRISMFilter (rate given)", "SmallLossFilter (rate given)")
FIGURE = ("plain", "PRISMFilter", "PRISMFilter (rate given)", "KNNDenoiser (0.25)",
          "GroundTruthFilter")  # fmt: skip


def field(record: Record, name: str) -> str:
    """A field of a run as a table shows it."""
    if name == "noise":
        rate = f" {record['rate']:.0%}" if record["rate"] else ""
        return str(record["noise"]).replace("_", " ") + rate
    return f"{record['rate']:.0%}" if name == "rate" else str(record[name])


def number(record: Record, name: str) -> float | None:
    """What a run ended with, a rate in %; of what is logged the last epoch's. None for NaN."""
    value = record.get(name, record["last"].get(name))
    if value is None or math.isnan(value):
        return None
    return float(value) * (100 if name == "noise_rate" else 1)


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    seeds = f" ({len(values)})" if len(values) != 3 else ""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}{seeds}"


def recovered(records: list[Record], cell: list[Record]) -> str:
    """By the means over the seeds, as a difference of single runs may be next to nothing."""
    means = {}
    for method in ("plain", "GroundTruthFilter"):
        same = [r for r in records if r["method"] == method and like(r, cell[0])]
        if not same:
            return "-"
        means[method] = np.mean([r["map_at_r"] for r in same])
    own = np.mean([r["map_at_r"] for r in cell])
    return f"{100 * (own - means['plain']) / (means['GroundTruthFilter'] - means['plain']):.0f} %"


def like(one: Record, other: Record) -> bool:
    return all(one[n] == other[n] for n in ("recipe", "loss", "noise", "rate", "epochs", "steps"))


def cell_text(records: list[Record], cell: list[Record], value: str) -> str:
    if not cell:
        return "-"
    if value == "recovered":
        return recovered(records, cell)
    text = spread([x for r in cell if (x := number(r, value)) is not None])
    known = PUBLISHED.get((cell[0]["loss"], cell[0]["method"]))
    if value == "best_p_at_1" and known is not None and cell[0]["rate"] in RATES:
        text += f", published {known[RATES.index(cell[0]['rate'])]:.1f}"
    return text


def order(name: str, record: Record) -> tuple[int, float]:
    """Methods and losses in the order of methods.py, noises in that of image_sets.py."""
    if name == "noise":
        return NOISES.index(record["noise"]), record["rate"]
    if name == "rate":
        return 0, record["rate"]
    known = {"method": list(METHODS), "loss": list(LOSSES)}.get(name, [record[name]])
    return known.index(record[name]), 0


def selected(records: list[Record], wanted: dict[str, str]) -> list[Record]:
    return [r for r in records if all(field(r, n) in v.split("|") for n, v in wanted.items())]


def table(records: list[Record], wanted: dict[str, str]) -> str:
    """Markdown; see above for what may be wanted."""
    wanted = dict(wanted)
    rows = wanted.pop("rows", "method").split(",")
    columns = wanted.pop("columns", "")
    values = wanted.pop("value", "p_at_1,map_at_r").split(",")
    chosen = selected(records, wanted)

    def in_order(names: list[str]) -> list[tuple[str, ...]]:
        ordered = sorted(chosen, key=lambda r: [order(name, r) for name in names])
        return list(dict.fromkeys(tuple(field(r, name) for name in names) for r in ordered))

    found = in_order(rows)
    heads = [head for (head,) in in_order([columns])] if columns else []
    titles = [f"{h}, {HEADINGS[v]}" if len(values) > 1 else h for h in heads for v in values]
    lines = [[*rows, *(titles or [HEADINGS[v] for v in values])]]
    lines.append(["---"] * len(lines[0]))
    for each in found:
        own = [r for r in chosen if tuple(field(r, name) for name in rows) == each]
        parts = [[r for r in own if field(r, columns) == h] for h in heads] or [own]
        lines.append([*each, *(cell_text(records, part, v) for part in parts for v in values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(record: Record) -> float:
    """MAP@R in the last epoch; R@1 where that was not measured."""
    return float(record.get("map_at_r", record["p_at_1"]))


def regret(records: list[Record]) -> str:
    """What ``robust`` gains over the plain loss, and loses to who knows more; the worst first."""
    lines = []
    for cell in dict.fromkeys((r["recipe"], r["loss"], r["noise"], r["rate"]) for r in records):
        same = [r for r in records if (r["recipe"], r["loss"], r["noise"], r["rate"]) == cell]
        runs = {m: {r["seed"]: r for r in same if r["method"] == m} for m in METHODS}
        ours = FROM_SCRATCH.get(cell[0], PRETRAINED)
        robust = next((runs[m] for m in ours if runs[m].keys() & runs["plain"].keys()), {})

        def behind(others: dict[int, Record], robust: dict[int, Record] = robust) -> float | None:
            seeds = others.keys() & robust.keys()
            differences = [measured(robust[s]) - measured(others[s]) for s in seeds]
            return float(np.mean(differences)) if differences else None

        gain = behind(runs["plain"])
        if gain is None:
            continue
        told = [d for m in TOLD if (d := behind(runs[m])) is not None]
        one = next(iter(robust.values()))
        figures = (gain, min(told, default=None), behind(runs["GroundTruthFilter"]))
        rate = spread([x for r in robust.values() if (x := number(r, "noise_rate")) is not None])
        words = [one["recipe"], one["loss"], field(one, "noise"), one["method"]]
        words += ["-" if x is None else f"{x:+.1f}" for x in figures]
        lines.append((gain, [*words, rate, str(len(robust.keys() & runs["plain"].keys()))]))
    head = ["recipe", "loss", "noise", "as", "minus plain", "minus the best that was told",
            "minus ground truth", "estimated rate", "seeds"]  # fmt: skip
    table = [head, ["---"] * len(head), *(words for _, words in sorted(lines))]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def rewritten(page: str, records: list[Record]) -> str:
    """The page with its tables made anew."""
    blocks = page.split("\n\n")
    for i, block in enumerate(blocks):
        comment = block.splitlines()[-1] if block else ""
        if comment == "<!-- regret -->":
            blocks[i + 1] = regret(records)
        if comment.startswith("<!-- table ") and comment.endswith(" -->"):
            words = shlex.split(comment.removeprefix("<!-- table ").removesuffix(" -->"))
            blocks[i + 1] = table(records, dict(word.split("=", 1) for word in words))
    return "\n\n".join(blocks)


def cycles(records: list[Record], wanted: dict[str, str]) -> str:
    """What relabelling has done by the end of each epoch, in %; Markdown."""
    chosen = selected(records, wanted)
    names = ("relabelled", "relabelled_right", "relabelled_were_right")
    lines = [["noise", "epoch", "relabelled", "of them now right", "of them right before"]]
    lines.append(["---"] * len(lines[0]))
    for noise in dict.fromkeys(field(r, "noise") for r in chosen):
        logs = [r["log"] for r in chosen if field(r, "noise") == noise]
        for epoch, entries in enumerate(zip(*logs, strict=True), start=1):
            if all(names[0] in entry for entry in entries):
                cells = [spread([entry[name] for entry in entries]) for name in names]
                lines.append([noise, str(epoch), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def load(paths: list[Path]) -> list[Record]:
    """The runs of several files, each once, with the last line of their logs."""
    keys = ("recipe", "loss", "method", "noise", "rate", "seed", "epochs", "steps", "runner")
    found = [record for path in paths for record in read(path) if "recipe" in record]
    records = {tuple(record.get(key) for key in keys): record for record in found}.values()
    return [{**r, "last": r["log"][-1] if r.get("log") else r.get("last", {})} for r in records]


def figure(records: list[Record], path: Path) -> None:
    """MAP@R of the filters under each noise, multi-similarity loss on Omniglot; a dot is a seed."""
    import matplotlib.pyplot as plt

    chosen = [r for r in records if (r["recipe"], r["loss"]) == ("omniglot", "multi-similarity")]
    ordered = sorted(chosen, key=lambda r: order("noise", r))
    noises = list(dict.fromkeys(field(r, "noise") for r in ordered))
    fig, ax = plt.subplots(figsize=(8, 3.7), layout="constrained")
    for i, method in enumerate(FIGURE):
        own = [r for r in chosen if r["method"] == method]
        places = [noises.index(field(r, "noise")) + 0.16 * (i - 2) for r in own]
        values = [r["map_at_r"] for r in own]
        means = {x: np.mean([v for p, v in zip(places, values, strict=True) if p == x])
                 for x in places}  # fmt: skip
        ax.bar(list(means), list(means.values()), 0.16, color=f"C{i}", label=method)
        ax.plot(places, values, ".", color="black", markersize=3)
    ax.set_xticks(range(len(noises)), noises)
    ax.set_xlim(-0.5, len(noises) - 0.5)
    ax.set_ylabel("MAP@R, unseen characters (%)")
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside upper center", ncols=3, frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="files of train.py")
    parser.add_argument("--table", nargs="+", metavar="NAME=VALUE", help="print this table")
    parser.add_argument("--cycles", nargs="+", metavar="NAME=VALUE", help="relabelling by epoch")
    parser.add_argument("--page", type=Path, help="a page whose tables to write anew")
    parser.add_argument("--figure", type=Path, help="a PNG file to draw")
    options = parser.parse_args()
    records = load(options.runs)
    if options.table:
        print(table(records, dict(word.split("=", 1) for word in options.table)))
    if options.cycles:
        print(cycles(records, dict(word.split("=", 1) for word in options.cycles)))
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(rewritten(page, records), encoding="utf-8")
    if options.figure:
        figure(records, options.figure)


if __name__ == "__main__":
    main()
