"""The command line: a noisy copy of a file of labels, and its summary."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from noisydml import noise
from noisydml.functional.files import read_arrays, read_rows, replacing
from noisydml.noise.checks import UNLABELED
from noisydml.noise.random import Integers

_ADDED = ["original_label", "is_noisy"]
_NAMED = 5  # values of a column that a message tells
_MISSING = ("", "nan", str(UNLABELED))
_WHOLE = re.compile(r"\A(-?\d+)\.0+\Z")  # as pandas writes whole numbers, where some are missing
_SAYS = {"1": True, "true": True, "0": False, "false": False}
_MODELS = {
    "uniform": "to any other class",
    "pair_flip": "to the next class",
    "class_frequency": "in the largest or rarest classes only",
    "small_cluster": "whole classes dissolve into small clusters",
    "semantic": "to classes nearby in a hierarchy",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read labels, make some of them wrong, write them, print the summary and return 0.

    Bad arguments and files end the program with status 2 and a message. By default the arguments
    are the program's own.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    try:
        summary = _run(**options)
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    # The file is written: neither names that the terminal cannot show nor a reader that is gone
    # are errors.
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(BrokenPipeError):
        print(summary.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m noisydml.noise",
        description="Write a copy of a file of labels in which some are wrong.",
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, text in _MODELS.items():
        model = models.add_parser(name, help=text, description=f"Wrong labels: {text}.")
        add = model.add_argument
        add("input", help="csv file, or npz file; an empty label, nan and -1 are none")
        add("output", help="csv file, or npz file for NoisyLabels.load")
        add("--rate", type=float, required=True, help="share of wrong labels, 0 to 1")
        add("--seed", type=int, default=0, help="integer, 0 or more (0)")
        text = "the csv column or npz array of the labels (label)"
        add("--column", help=text)
        text = "the csv file has none: columns are called 0, 1, ..., and a single one is the labels"
        add("--no-header", dest="header", action="store_false", help=text)
        text = (
            "rows to leave alone: a csv column or npz array of 0 and 1, or COLUMN=VALUE for those "
            "that hold a value, such as split=val"
        )
        add("--spare", metavar="COLUMN", help=text)
        if name != "small_cluster":
            text = "a coin a sample, no exact shares"
            add("--bernoulli", dest="exact", action="store_false", help=text)
        if name == "class_frequency":
            add("--which", choices=("largest", "rarest"), default="largest")
            add("--share", type=float, default=0.5, help="of the classes (0.5)")
            text = "wrong labels from all classes"
            add("--all-targets", dest="within", action="store_false", help=text)
        if name == "small_cluster":
            add("--features", required=True, help="npy file, (N, D), a row for every label")
            add("--images-per-cluster", type=int, default=2)
        if name == "semantic":
            text = (
                "text file, a line for every class: the path to it, such as Greek/alpha; "
                "labels are the lines, or the numbers of the lines, from 0"
            )
            add("--hierarchy", required=True, help=text)
    return parser


def _run(
    model: str,
    input: str,
    output: str,
    column: str | None,
    header: bool,
    spare: str | None,
    **options: Any,
) -> str:
    """Read, corrupt, write and sum up; other options go by the names of the model's arguments."""
    if os.path.exists(output) and os.path.samefile(input, output):
        raise ValueError("output must be another file than input")
    for path in (input, output):
        if not path.endswith((".csv", ".npz")):
            raise ValueError(f"files must be .csv or .npz, got {path}")
    if "features" in options:
        options["features"] = read_arrays(options["features"], single=True)[""]
    if "hierarchy" in options:
        with open(options["hierarchy"], encoding="utf-8-sig") as file:
            paths = file.read().rstrip("\r\n").splitlines()
        options["hierarchy"] = noise.ClassHierarchy.from_paths(paths)
    default, names = "label", None
    if input.endswith(".csv"):
        titles, rows = _read_csv(input, header)
        columns: list[Any] = [[row[i] for row in rows] for i in range(len(titles))]
        if not header and len(titles) < 2:
            default = "0"
    else:
        arrays = read_arrays(input)
        titles, columns = list(arrays), list(arrays.values())
    place = _place("column", default if column is None else column, titles, input)
    labels = columns[place]
    if spare is not None:
        name, equals, value = spare.partition("=")
        cells = columns[_place("spare", name, titles, input)]
        options["spare"] = _spared(cells, value if equals else None)
    if input.endswith(".csv"):
        labels, names = _numbered(labels, options.get("hierarchy"))
    else:
        titles, rows, place = ["label"], [[str(x)] for x in np.ravel(labels).tolist()], 0
    if names is not None and output.endswith(".npz"):
        raise ValueError("output must be a csv file if labels are not numbers")
    noisy: noise.NoisyLabels = getattr(noise, model)(labels, **options)
    if output.endswith(".npz"):
        noisy.save(output)
        return noisy.summary()
    # The rows as they were, with the noisy label in its column and the truth in two new ones.
    with replacing(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow([*titles, *_ADDED])
        found = noisy.given.tolist(), noisy.original.tolist(), noisy.is_noisy.tolist()
        for row, label, original, wrong in zip(rows, *found, strict=True):
            cells = (label, original) if names is None else (names[label], names[original])
            if original == UNLABELED:
                cells = (row[place], row[place])
            writer.writerow([*row[:place], cells[0], *row[place + 1 :], cells[1], int(wrong)])
    return replace(noisy, labels=noisy.given, kept_classes=None).summary(names)


def _read_csv(path: str, header: bool) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, their numbers without a header, and the rows."""
    rows = read_rows(path, strict=True)
    while rows and not rows[-1]:
        rows.pop()  # blank lines at the end
    width = next((len(row) for row in rows if row), 0)
    if width == 1:
        rows = [row or [""] for row in rows]
    titles = rows.pop(0) if header and rows else list(map(str, range(width)))
    for number, row in enumerate(rows, start=1 + header):
        if len(row) != width:
            raise ValueError(
                f"{path} must have {width} fields a row, got {len(row)} in row {number}"
            )
    for name in _ADDED:
        if name in titles:
            raise ValueError(f"{path} must not have a column {name!r} yet; give the clean file")
    return titles, rows


def _place(option: str, name: str, names: list[str], path: str) -> int:
    if name not in names:
        raise ValueError(f"{option} must be one of {names} in {path}, got {name!r}")
    if names.count(name) > 1:
        raise ValueError(f"{option} must be the name of one column of {path}, got {name!r} of two")
    return names.index(name)


def _numbered(
    cells: list[str], tree: noise.ClassHierarchy | None
) -> tuple[Integers, Sequence[str] | None]:
    """Numbers as they are; names as positions in the tree or in order, and all names."""
    plain = [_WHOLE.sub(r"\1", cell.strip().casefold()) for cell in cells]
    there = [i for i, cell in enumerate(plain) if cell not in _MISSING]
    given, written = [cells[i] for i in there], [plain[i] for i in there]
    labels = np.full(len(cells), UNLABELED, dtype=np.int64)
    with contextlib.suppress(ValueError, OverflowError):
        numbers = np.array(list(map(int, written)), dtype=np.int64)
        if list(map(str, numbers)) == written:  # "007" is a name
            labels[there] = numbers
            return labels, None
    found = sorted(set(given))
    names = found if tree is None else tree.classes
    place = {name: i for i, name in enumerate(names)}
    for name in found:
        if name not in place:
            raise ValueError(f"hierarchy must have every label, got none for {name!r}")
    labels[there] = [place[name] for name in given]
    return labels, names


def _spared(cells: Any, value: str | None) -> list[bool]:
    """Which of the N cells hold the value, or say yes."""
    words = [str(cell) for cell in np.ravel(cells).tolist()]
    if value is None:
        for word in words:
            if word.casefold() not in _SAYS:
                raise ValueError(
                    "spare must be a column of 0 and 1, or COLUMN=VALUE, "
                    f"got {word!r} in the column"
                )
        return [_SAYS[word.casefold()] for word in words]
    if words and value not in words:
        few = ", ".join(map(repr, sorted(set(words))[:_NAMED]))
        raise ValueError(f"spare must name a value of its column, got {value!r}, not one of {few}")
    return [word == value for word in words]
