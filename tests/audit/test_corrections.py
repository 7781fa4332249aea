"""What was decided on the page, in the labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisydml import apply_corrections, find_label_issues

HEADER = "index,given,corrected,decision"
NUMBERS = ["3,1,0,accepted", "1,0,0,rejected", "2,1,,removed", "0,0,7,other", "4,0,0,undecided"]
NAMES = [
    "3,bee,ant,accepted", "1,ant,ant,rejected", "2,bee,,removed",
    '0,ant,"a ""long"", long name",other', "4,ant,ant,undecided",
]  # fmt: skip
LONG = 'a "long", long name'


def file(folder: Path, lines: list[str]) -> Path:
    path = folder / "corrected_labels.csv"
    path.write_text("\r\n".join([HEADER, *lines, ""]), encoding="utf-8")
    return path


def test_integers(tmp_path: Path) -> None:
    path, before, after = file(tmp_path, NUMBERS), [0, 0, 1, 1, 0], [7, 0, 1, 0, 0]
    tensor = torch.tensor(before, dtype=torch.int16)
    for labels in (
        before, tuple(before), np.array(before), tensor, np.array(before)[:, None],
        np.array(before, dtype=np.uint64), np.array(before, dtype=float), range(0),
    ):  # fmt: skip
        if len(labels) == 0:
            continue
        fixed, leave_out = apply_corrections(labels, path)
        assert type(fixed) is (list if isinstance(labels, tuple) else type(labels))
        if hasattr(labels, "dtype"):
            assert fixed.dtype == labels.dtype
            assert fixed.shape == labels.shape
            assert labels.reshape(-1).tolist() == before  # not changed
            fixed = fixed.reshape(-1).tolist()
        assert fixed == after
        assert leave_out.tolist() == [2]
        assert leave_out.dtype == np.int64


def test_names(tmp_path: Path) -> None:
    path = file(tmp_path, NAMES)
    before, after = ["ant", "ant", "bee", "bee", "ant"], [LONG, "ant", "bee", "ant", "ant"]
    for labels in (before, np.array(before), np.array(before, dtype=object)):
        fixed, leave_out = apply_corrections(labels, path)
        assert list(fixed) == after
        assert leave_out.tolist() == [2]
    pd = pytest.importorskip("pandas")
    index = [5, 5, 6, 7, 8]
    series = pd.Series(before, index=index, name="y")
    fixed, _ = apply_corrections(series, path)
    pd.testing.assert_series_equal(fixed, pd.Series(after, index=index, name="y"))
    fixed, _ = apply_corrections(series.to_frame(), path)
    assert fixed["y"].tolist() == after
    kinds = series.astype(pd.CategoricalDtype(["bee", "ant", LONG]))
    assert apply_corrections(kinds, path)[0].tolist() == after
    pl = pytest.importorskip("polars")
    assert apply_corrections(pl.Series(before), path)[0] == after


def test_large_integers_bools_and_labels_that_are_missing(tmp_path: Path) -> None:
    large = 2**62 + 1
    path = file(tmp_path, [f"0,{large},{large + 1},accepted", f"1,,{large},other"])
    assert apply_corrections([large, None, 5], path)[0] == [large + 1, large, 5]
    assert apply_corrections(np.array([large, -1, 5]), path)[0].tolist() == [large + 1, large, 5]
    path = file(tmp_path, ["0,True,False,accepted"])
    assert apply_corrections([True, True], path)[0] == [False, True]


def test_twice_is_once(tmp_path: Path) -> None:
    path = file(tmp_path, NUMBERS)
    once, _ = apply_corrections([0, 0, 1, 1, 0], path)
    assert apply_corrections(once, path)[0] == once


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["5,0,1,accepted"], r"index must be in \[0, 5\), got '5' in line 2"),
        (["-1,0,1,accepted"], r"index must be in \[0, 5\), got '-1'"),
        (["0,0,1,maybe"], "decision must be one of"),
        (["1,0,0,rejected", "0,9,1,accepted"], "label 0 is 0, and 9 in line 3"),
        (["0,0,wasp,accepted"], "corrected must be a label, got 'wasp' in line 2"),
        (["0,0,1"], "must be a file with the columns"),
        (['0,0,"1,accepted'], "must be a file that the page gave"),
        # As of the files of two people in one.
        (["0,0,1,accepted", "0,0,0,rejected"], "one for each sample, got another for 0 in line 3"),
        (["0,0,1,accepted", "0,0,,removed"], "one for each sample, got another for 0 in line 3"),
        (["0,0,1,accepted", "0,0,7,other"], "one for each sample, got another for 0 in line 3"),
        # What stands for no label is one thing, or it is another file.
        (["0,,1,other", "2,,0,other"], "label 2 is 1, and none in line 3"),
    ],
)
def test_files_of_something_else(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_corrections([0, 0, 1, 1, 0], file(tmp_path, lines))


def test_two_files_in_one_that_agree(tmp_path: Path) -> None:
    lines = ["0,0,1,accepted", "0,0,0,undecided", "0,0,1,other", "1,0,,removed", "1,0,,removed"]
    fixed, leave_out = apply_corrections([0, 0, 1], file(tmp_path, lines))
    assert (fixed, leave_out.tolist()) == ([1, 0, 1], [1])


def test_a_cell_that_was_emptied_is_no_class(tmp_path: Path) -> None:
    """As by ``pandas.read_csv``, for which NA is no name."""
    labels = ["cat", "NA", "dog", "cat"]
    for line in ("0,cat,,accepted", "0,cat,,other"):
        with pytest.raises(ValueError, match="corrected must be a label, got '' in line 2"):
            apply_corrections(labels, file(tmp_path, [line]))
    assert apply_corrections(["", "a"], file(tmp_path, ["1,a,,accepted"]))[0] == ["", ""]
    assert apply_corrections(["", "a"], file(tmp_path, ["0,,a,accepted"]))[0] == ["a", "a"]


def test_no_such_file(tmp_path: Path) -> None:
    arguments: Any = ([0, 1], tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError):
        apply_corrections(*arguments)
    for content in (b"", b"\xff\xfe\x00", b"sample_id,score\n"):
        arguments[1].write_bytes(content)
        with pytest.raises(ValueError, match="path must be a file"):
            apply_corrections(*arguments)


def test_names_that_a_spreadsheet_takes_for_formulas_come_back(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1)"]
    labels = np.array(names * 10)
    labels[5] = names[3]
    spread = 0.1 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    issues = find_label_issues(torch.eye(4).repeat(10, 1) + spread, labels)
    issues.to_csv(tmp_path / "issues.csv")
    with open(tmp_path / "issues.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["given_label"], row["suggested_label"]) == (names[3], names[1])
    with open(tmp_path / "corrected_labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "given", "corrected", "decision"])
        writer.writerow([5, names[3], names[1], "accepted"])
    assert apply_corrections(labels, tmp_path / "corrected_labels.csv")[0].tolist() == names * 10


@pytest.mark.parametrize("labels", [5, None])
def test_labels_that_are_none(labels: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="labels must have one entry per sample, got"):
        apply_corrections(labels, file(tmp_path, ["0,0,1,accepted"]))


def test_labels_of_a_generator(tmp_path: Path) -> None:
    corrected, _ = apply_corrections(iter([0, 1]), file(tmp_path, ["0,0,1,accepted"]))
    assert corrected == [1, 1]


def test_labels_that_are_written_alike(tmp_path: Path) -> None:
    """Each decision of the page ends at its own class."""
    labels = [1, "1", "1", 1, "b"] * 12
    spread = 0.1 * np.random.default_rng(0).normal(size=(60, 3))
    embeddings = np.eye(3)[[0, 1, 1, 0, 2] * 12] + spread
    labels[0], labels[1] = "1", 1
    issues = find_label_issues(embeddings, labels)
    assert sorted(issues.issues.tolist()) == [0, 1]
    issues.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["words"] == ["1 (int)", "1 (str)", "b"]
    assert data["names"] == [[0, "1 (int)"], [1, "1 (str)"], [2, "b"]]
    lines = [
        f"{row['id']},{data['words'][row['given']]},{data['words'][row['suggested']]},accepted"
        for row in data["rows"]
    ]
    fixed, _ = apply_corrections(labels, file(tmp_path, lines))
    assert fixed == [1, "1", "1", 1, "b"] * 12
    with pytest.raises(ValueError, match="label 0 is 1, and 1 in line 2"):
        apply_corrections(labels, file(tmp_path, ["0,1,b,accepted"]))


def test_objects_of_pandas_come_back_as_they_came(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    path = file(tmp_path, ["0,1,0,accepted", "2,0,1,other"])
    for labels in (
        pd.Index([1, 0, 0], name="y"),
        pd.Index([1, None, 0], dtype="Int64", name="y"),
        pd.CategoricalIndex([1, 1, 0], name="y"),
        pd.Categorical([1, 1, 0], categories=[2, 1, 0]),
        pd.array([1, None, 0], dtype="Int64"),
    ):
        before = list(labels)
        fixed, _ = apply_corrections(labels, path)
        assert type(fixed) is type(labels)
        assert fixed.dtype == labels.dtype
        assert list(fixed)[::2] == [0, 1]
        assert getattr(fixed, "name", None) == getattr(labels, "name", None)
        assert str(list(labels)) == str(before)
    fixed, _ = apply_corrections(pd.RangeIndex(3), file(tmp_path, ["0,0,2,other"]))
    assert fixed.tolist() == [2, 1, 2]
    path = file(tmp_path, ["0,a,b,accepted"])
    fixed, _ = apply_corrections(pd.Index(["a", "b"], name="y"), path)
    pd.testing.assert_index_equal(fixed, pd.Index(["b", "b"], name="y"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.uint8])
def test_tensors_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 1]).to(dtype)
    fixed, _ = apply_corrections(labels, file(tmp_path, ["0,0,7,other"]))
    assert fixed.dtype == dtype
    assert fixed.tolist() == [7, 1, 1]
    path = file(tmp_path, [f"0,0,{2**24 + 1},other"])
    kinds = [labels] if dtype == torch.bfloat16 else [labels, labels.numpy()]
    for each in kinds:
        with pytest.raises(
            ValueError, match=r"labels must be of a dtype that holds all.* 16777217"
        ):
            apply_corrections(each, path)


NUMBERS_OF_NUMPY = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64"]


@pytest.mark.parametrize("dtype", [*NUMBERS_OF_NUMPY, "Int8", "category", "bool"])
def test_columns_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    pd = pytest.importorskip("pandas")
    labels = pd.Series([0, 1, 1, 0], index=[5, 5, 6, 7], name="y").astype(dtype)
    words = ["False", "True"] if dtype == "bool" else ["0", "1"]
    path = file(
        tmp_path, ["0,{},{},accepted".format(*words), "2,{},{},accepted".format(*words[::-1])]
    )
    if dtype.startswith("float"):  # they are written as the integers that they stand for
        path = file(tmp_path, ["0,0,1,accepted", "2,1,0,accepted"])
    for column in (labels, labels.to_frame(), pd.Index(labels)):
        before = column.copy()
        fixed, _ = apply_corrections(column, path)
        after = fixed.iloc[:, 0] if fixed.ndim == 2 else fixed
        assert after.dtype == labels.dtype
        assert list(after) == [1, 1, 0, 0]
        assert type(fixed) is type(column)
        assert before.equals(column)
    if dtype != "bool":
        beyond = 2**60 + 1 if dtype.startswith("float") else 2**40
        path = file(tmp_path, [f"0,0,{beyond},other"])
        for column in (labels, labels.to_frame()):
            with pytest.raises(ValueError, match="labels must be of a dtype that holds all"):
                apply_corrections(column, path)
