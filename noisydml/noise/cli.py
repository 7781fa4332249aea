"""The command line: a noisy copy of a file of labels, and its summary."""

from __future__ import annotations

import argparse
import csv
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisydml.noise.class_frequency import class_frequency
from noisydml.noise.hierarchy import ClassHierarchy
from noisydml.noise.noisy_labels import NoisyLabels
from noisydml.noise.pair_flip import pair_flip
from noisydml.noise.semantic import semantic
from noisydml.noise.small_cluster import small_cluster
from noisydml.noise.uniform import uniform

_ADDED = ["original_label", "is_noisy"]


@dataclass(frozen=True)
class Table:
    """A file of labels: its header, its rows and which column holds the label."""

    header: list[str]
    rows: list[list[str]]
    column: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Read labels, make some of them wrong, write them and print the summary.

    Args:
        arguments: those of the command line; default: the program's own.

    Returns:
        0. Bad arguments and files end the program with status 2 and a message.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if os.path.exists(options.output) and os.path.samefile(options.input, options.output):
            raise ValueError("output must be another file than input")
        noisy = _run(options)
    except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        parser.error(str(error))
    print(noisy.summary())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m noisydml.noise",
        description="Write a copy of a file of labels in which some are wrong.",
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, text in (
        ("uniform", "to any other class"),
        ("pair_flip", "to the next class"),
        ("class_frequency", "in the largest or rarest classes only"),
        ("small_cluster", "whole classes dissolve into small clusters"),
        ("semantic", "to classes nearby in a hierarchy"),
    ):
        model = models.add_parser(name, help=text, description=f"Wrong labels: {text}.")
        _add_common(model)
        if name != "small_cluster":
            model.add_argument(
                "--bernoulli", action="store_true", help="a coin a sample, no exact shares"
            )
        if name == "class_frequency":
            model.add_argument("--which", choices=("largest", "rarest"), default="largest")
            model.add_argument("--share", type=float, default=0.5, help="of the classes (0.5)")
            model.add_argument(
                "--all-targets", action="store_true", help="wrong labels from all classes"
            )
        if name == "small_cluster":
            model.add_argument(
                "--features", required=True, help="npy file, (N, D), a row for every label"
            )
            model.add_argument("--images-per-cluster", type=int, default=2)
        if name == "semantic":
            model.add_argument(
                "--hierarchy",
                required=True,
                help="text file, a line for every class: the path to it, such as Greek/alpha; "
                "labels are the lines, or the numbers of the lines, from 0",
            )
    return parser


def _add_common(model: argparse.ArgumentParser) -> None:
    model.add_argument("input", help="csv file with a header, or npz file")
    model.add_argument("output", help="csv file, or npz file for NoisyLabels.load")
    model.add_argument("--rate", type=float, required=True, help="share of wrong labels, 0 to 1")
    model.add_argument("--seed", type=int, default=0, help="integer, 0 or more (0)")
    model.add_argument(
        "--column", default="label", help="the csv column or npz array of the labels (label)"
    )


def _run(options: argparse.Namespace) -> NoisyLabels:
    for path in (options.input, options.output):
        if not path.endswith((".csv", ".npz")):
            raise ValueError(f"files must be .csv or .npz, got {path}")
    table = _read_csv(options.input, options.column) if options.input.endswith(".csv") else None
    labels, names = _labels_of(table) if table else (_read_npz(options.input, options.column), None)
    if names is not None and options.output.endswith(".npz"):
        raise ValueError("output must be a csv file if labels are not numbers")
    tree = None
    if options.model == "semantic":
        tree = _read_hierarchy(options.hierarchy)
        if names is not None:
            place = {name: i for i, name in enumerate(tree.classes)}
            unknown = [name for name in names if name not in place]
            if unknown:
                raise ValueError(f"hierarchy must have every label, got none for {unknown[0]!r}")
            labels = np.array([place[name] for name in names], dtype=np.int64)[labels]
            names = list(tree.classes)
    noisy = _corrupt(options, labels, tree)
    if options.output.endswith(".npz"):
        noisy.save(options.output)
    else:
        _write_csv(options.output, table, noisy, names)
    return noisy


def _corrupt(options: argparse.Namespace, labels: Any, tree: ClassHierarchy | None) -> NoisyLabels:
    if options.model == "small_cluster":
        features = np.load(options.features, allow_pickle=False)
        return small_cluster(
            labels,
            options.rate,
            features,
            images_per_cluster=options.images_per_cluster,
            seed=options.seed,
        )
    common: dict[str, Any] = {"seed": options.seed, "exact": not options.bernoulli}
    if options.model == "class_frequency":
        return class_frequency(
            labels,
            options.rate,
            which=options.which,
            share=options.share,
            within=not options.all_targets,
            **common,
        )
    if tree is not None:
        return semantic(labels, options.rate, tree, **common)
    model = {"uniform": uniform, "pair_flip": pair_flip}[options.model]
    return model(labels, options.rate, **common)


def _read_csv(path: str, column: str) -> Table:
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
        rows = list(csv.reader(file))
    if not rows or column not in rows[0]:
        raise ValueError(
            f"column must be one of {rows[0] if rows else []}, the header of {path}, got {column!r}"
        )
    header, place = rows[0], rows[0].index(column)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path} must have {len(header)} fields a row, got {len(row)} in row {number}"
            )
    for name in _ADDED:
        if name in header:
            raise ValueError(f"{path} must not have a column {name!r} yet; give the clean file")
    return Table(header, rows[1:], place)


def _labels_of(table: Table) -> tuple[NDArray[np.int64], list[str] | None]:
    """Numbers as they are; names as positions among the sorted names, which come second."""
    given = [row[table.column] for row in table.rows]
    try:
        numbers = np.array([int(label) for label in given], dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = None
    if numbers is None or [str(number) for number in numbers] != given:  # "007" is a name, too
        names, codes = np.unique(given, return_inverse=True)
        return codes.astype(np.int64), [str(name) for name in names]
    return numbers, None


def _read_npz(path: str, array: str) -> Any:
    with open(path, "rb") as file:  # numpy would leave it open where it is broken
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} must be an npz file")
        if array not in archive.files:
            raise ValueError(f"column must be one of {archive.files} in {path}, got {array!r}")
        return archive[array]


def _read_hierarchy(path: str) -> ClassHierarchy:
    with open(path, encoding="utf-8") as file:
        return ClassHierarchy.from_paths(file.read().splitlines())


def _write_csv(path: str, table: Table | None, noisy: NoisyLabels, names: list[str] | None) -> None:
    """The rows as they were, with the noisy label in its column and the truth in two new ones.

    Names stay names; numbers are those of ``noisy.labels``.
    """
    given = noisy.labels if names is None else noisy.given
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(table.header if table else ["label"]), *_ADDED])
        for i in range(len(noisy)):
            label, original = (
                x if names is None else names[x] for x in (int(given[i]), int(noisy.original[i]))
            )
            row = list(table.rows[i]) if table else [""]
            row[table.column if table else 0] = str(label)
            writer.writerow([*row, original, int(noisy.is_noisy[i])])
