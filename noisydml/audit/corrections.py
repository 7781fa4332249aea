"""What has been decided on the page, put into the labels."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisydml.audit.labels import names_of, read_labels, words_of
from noisydml.functional.files import read_rows

_COLUMNS = ["index", "given", "corrected", "decision"]
_DECISIONS = ("accepted", "rejected", "other", "removed", "undecided")


def apply_corrections(labels: Any, path: str | PathLike[str]) -> tuple[Any, NDArray[np.int64]]:
    r"""The labels as corrected on the page of :meth:`noisydml.LabelIssues.to_html`.

    Args:
        labels: (N,) or (N, 1), the given labels, as :func:`find_label_issues` got them.
        path: of the CSV file that the page gives.

    Returns:
        The labels, as they came: a tensor, array or pandas object, or a list for all other kinds;
        and the ascending indices, int64, of the samples that were removed, to be left out.

    Raises:
        TypeError: for labels of another kind.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, belongs to other labels, or says two things of a sample,
            as two files in one may; for a label that the dtype of the others does not hold.

    Example:
        >>> import pathlib, tempfile
        >>> from noisydml import apply_corrections
        >>> lines = ["index,given,corrected,decision", "0,cat,dog,accepted", "2,dog,,removed"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "corrected_labels.csv")
        ...     _ = path.write_text("\n".join(lines))
        ...     labels, leave_out = apply_corrections(["cat", "cat", "dog"], path)
        >>> labels, leave_out
        (['dog', 'cat', 'dog'], array([2]))
    """
    codes, classes = read_labels(labels, None, unlabeled=None)
    known = names_of(codes, classes)
    there = {*known, *(classes or ())} - {None}
    label_of = dict(zip(words_of(there), there, strict=True))
    word_of = {label: word for word, label in label_of.items()}
    if set(map(type, label_of.values())) == {bool}:
        label_of = {"False": False, "True": True}
    corrected: dict[int, Any] = {}
    decided: dict[int, tuple[str, bool]] = {}
    unlabeled: set[Any] = set()  # what stands for no label: one label of the given ones at most
    for line, row in enumerate(_read(path), start=2):
        place = f"line {line} of {path}"
        index, given, word, decision = row
        if not index.isdecimal() or int(index) >= len(known):
            raise ValueError(f"index must be in [0, {len(known)}), got {index!r} in {place}")
        sample = int(index)
        if decision not in _DECISIONS:
            raise ValueError(f"decision must be one of {_DECISIONS}, got {decision!r} in {place}")
        there_now = word_of.get(known[sample], "")
        if there_now not in (given, word):
            unlabeled.add(there_now)
            if given or len(unlabeled) > 1:
                raise ValueError(
                    f"labels must be those of the page: label {sample} is {known[sample]}, "
                    f"and {given or 'none'} in {place}"
                )
        if decision == "undecided":
            continue
        result = (word, decision == "removed")
        if decided.setdefault(sample, result) != result:
            raise ValueError(
                f"decisions must be one for each sample, got another for {sample} in {place}"
            )
        if decision in ("accepted", "other"):
            corrected[sample] = _label(word, label_of, place)
    removed = [sample for sample, (_, leaves) in decided.items() if leaves]
    return _with(labels, corrected, known), np.unique(np.array(removed, dtype=np.int64))


def _read(path: str | PathLike[str]) -> list[list[str]]:
    try:
        header, *rows = [row for row in read_rows(path, strict=True) if row]
    except ValueError as error:
        raise ValueError(f"path must be a file that the page gave, got {path}") from error
    if header != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        raise ValueError(f"path must be a file with the columns {_COLUMNS}, got {path}")
    return rows


def _label(word: str, label_of: dict[str, Any], place: str) -> Any:
    if word in label_of:
        return label_of[word]
    kinds = set(map(type, label_of.values()))  # for a class that no sample has had
    if kinds <= {int} and word.removeprefix("-").isdecimal():
        return int(word)
    if kinds == {str} and word:
        return word
    raise ValueError(f"corrected must be a label, got {word!r} in {place}")


def _with(labels: Any, corrected: dict[int, Any], known: list[Any]) -> Any:
    """Labels of the same kind, with others at some places."""
    rows, values = list(corrected), list(corrected.values())
    if isinstance(labels, Tensor):
        plain = labels.detach().cpu()  # NumPy has no bfloat16
        array = (plain.double() if plain.is_floating_point() else plain).numpy()
        fixed = torch.from_numpy(_with(array, corrected, known)).to(labels.dtype)
        _refuse_rounded(fixed, corrected)
        return fixed.to(labels.device)
    if isinstance(labels, np.ndarray):
        named = labels.dtype.kind in "US"  # whose width depends on the longest
        changed = labels.astype(object) if named else labels.copy()
        flat = changed.reshape(-1)
        try:
            with np.errstate(over="ignore"):  # which is seen below
                for row, value in corrected.items():
                    flat[row] = value
        except OverflowError as error:
            raise ValueError(f"labels must be of a dtype that holds all: {error}") from error
        _refuse_rounded(changed, corrected)
        return changed.astype(labels.dtype.kind) if named else changed
    pandas = type(labels).__module__.partition(".")[0] == "pandas"
    if pandas and hasattr(labels, "to_series"):  # an index
        column = _with(labels.to_series(), corrected, known)
        return column.set_axis(column.array).index.rename(labels.name)
    if pandas or hasattr(labels, "iloc"):
        changed = labels.copy()
        place = getattr(changed, "iloc", changed)  # a Categorical or another array has none
        column = place[:, 0] if changed.ndim == 2 else changed
        if getattr(column.dtype, "kind", "O") in "iuf" and isinstance(column.dtype, np.dtype):
            values = _with(column.to_numpy(), corrected, known)[rows]
        try:
            if rows:
                place[(rows, 0) if changed.ndim == 2 else rows] = values
        except (TypeError, ValueError) as error:  # as of a Categorical, which has no such class
            raise ValueError(f"labels must be of a dtype that holds all: {error}") from error
        return changed
    return [corrected.get(i, label) for i, label in enumerate(known)]


def _refuse_rounded(changed: Any, corrected: dict[int, Any]) -> None:
    """Raise where a number that was put into an array or tensor has become another."""
    flat = changed.reshape(-1)
    for row, value in corrected.items():
        number = flat[row].item() if hasattr(flat[row], "item") else value
        if isinstance(value, int) and number != value:
            raise ValueError(
                f"labels must be of a dtype that holds all, got {value} for {changed.dtype}"
            )
