"""The command line: a noisy copy of a file of labels, and its summary."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from noisydml import noise
from noisydml.functional.files import read_arrays, replacing
from noisydml.noise.random import Integers

_ADDED = ["original_label", "is_noisy"]
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
        noisy = _run(**options)
    except (OSError, TypeError, ValueError, csv.Error) as error:
        parser.error(str(error))
    print(noisy.summary())
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
        add("input", help="csv file with a header, or npz file")
        add("output", help="csv file, or npz file for NoisyLabels.load")
        add("--rate", type=float, required=True, help="share of wrong labels, 0 to 1")
        add("--seed", type=int, default=0, help="integer, 0 or more (0)")
        text = "the csv column or npz array of the labels (label)"
        add("--column", default="label", help=text)
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


def _run(model: str, input: str, output: str, column: str, **options: Any) -> noise.NoisyLabels:
    """Read, corrupt and write; the other options go by the names of the model's arguments."""
    if os.path.exists(output) and os.path.samefile(input, output):
        raise ValueError("output must be another file than input")
    for path in (input, output):
        if not path.endswith((".csv", ".npz")):
            raise ValueError(f"files must be .csv or .npz, got {path}")
    if "features" in options:
        options["features"] = read_arrays(options["features"], single=True)[""]
    if "hierarchy" in options:
        with open(options["hierarchy"], encoding="utf-8") as file:
            options["hierarchy"] = noise.ClassHierarchy.from_paths(file.read().splitlines())
    names: Sequence[str] | None = None
    if input.endswith(".csv"):
        header, rows = _read_csv(input, column)
        place = header.index(column)
        labels, names = _numbered([row[place] for row in rows], options.get("hierarchy"))
    else:
        labels = _read_npz(input, column)
        header, rows, place = ["label"], [[""]] * np.size(labels), 0
    if names is not None and output.endswith(".npz"):
        raise ValueError("output must be a csv file if labels are not numbers")
    noisy: noise.NoisyLabels = getattr(noise, model)(labels, **options)
    if output.endswith(".npz"):
        noisy.save(output)
        return noisy
    # The rows as they were, with the noisy label in its column and the truth in two new ones.
    given = noisy.labels if names is None else noisy.given
    with replacing(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *_ADDED])
        for row, label, original, wrong in zip(
            rows, given.tolist(), noisy.original.tolist(), noisy.is_noisy.tolist(), strict=True
        ):
            cells = (label, original) if names is None else (names[label], names[original])
            writer.writerow([*row[:place], cells[0], *row[place + 1 :], cells[1], int(wrong)])
    return noisy


def _read_csv(path: str, column: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
        header, *rows = list(csv.reader(file)) or [[]]
    if column not in header:
        raise ValueError(f"column must be one of {header}, the header of {path}, got {column!r}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path} must have {len(header)} fields a row, got {len(row)} in row {number}"
            )
    for name in _ADDED:
        if name in header:
            raise ValueError(f"{path} must not have a column {name!r} yet; give the clean file")
    return header, rows


def _numbered(
    given: list[str], tree: noise.ClassHierarchy | None
) -> tuple[Integers, Sequence[str] | None]:
    """Numbers as they are; names as positions in the tree or in order, and all names."""
    with contextlib.suppress(ValueError, OverflowError):
        numbers = np.array([int(label) for label in given], dtype=np.int64)
        if [str(number) for number in numbers] == given:  # "007" is a name
            return numbers, None
    found = sorted(set(given))
    names = found if tree is None else tree.classes
    place = {name: i for i, name in enumerate(names)}
    for name in found:
        if name not in place:
            raise ValueError(f"hierarchy must have every label, got none for {name!r}")
    return np.array([place[name] for name in given], dtype=np.int64), names


def _read_npz(path: str, array: str) -> Any:
    arrays = read_arrays(path)
    if array not in arrays:
        raise ValueError(f"column must be one of {list(arrays)} in {path}, got {array!r}")
    return arrays[array]
