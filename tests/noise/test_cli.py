"""python -m noisydml.noise."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from noisydml.noise import (
    ClassHierarchy,
    NoisyLabels,
    class_frequency,
    pair_flip,
    semantic,
    small_cluster,
    uniform,
)
from noisydml.noise.cli import main

LABELS = np.repeat(np.arange(6), [10, 20, 30, 40, 50, 60])
NAMES = ["a/x", "a/y", "b/x", "b/y", "b/z", "c"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("labels.npz", label=LABELS, other=np.zeros(3))
    write("labels.csv", ["path", "label", "note"], LABELS)
    write("names.csv", ["path", "label", "note"], [NAMES[i] for i in LABELS])
    np.save("features.npy", np.random.default_rng(0).normal(size=(len(LABELS), 4)))
    Path("tree.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path


def write(path: str, header: list[str], labels: object) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"im, {i}.jpg", label, "é"] for i, label in enumerate(labels))  # type: ignore[call-overload]


def read(path: str) -> tuple[list[str], list[list[str]]]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


ADDED = ["original_label", "is_noisy"]
TREE = ClassHierarchy.from_paths(NAMES)
CALLS = [
    (["uniform", "--seed", "3"], lambda: uniform(LABELS, 0.3, seed=3)),
    (["uniform", "--bernoulli"], lambda: uniform(LABELS, 0.3, exact=False)),
    (["pair_flip"], lambda: pair_flip(LABELS, 0.3)),
    (["class_frequency"], lambda: class_frequency(LABELS, 0.3)),
    (
        ["class_frequency", "--which", "rarest", "--share", "0.7", "--all-targets"],
        lambda: class_frequency(LABELS, 0.3, which="rarest", share=0.7, within=False),
    ),
    (["semantic", "--hierarchy", "tree.txt"], lambda: semantic(LABELS, 0.3, TREE)),
    (
        ["small_cluster", "--features", "features.npy", "--images-per-cluster", "3"],
        lambda: small_cluster(LABELS, 0.3, np.load("features.npy"), images_per_cluster=3),
    ),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "expected"), CALLS, ids=[" ".join(arguments) for arguments, _ in CALLS]
)
@pytest.mark.parametrize("source", ["labels.csv", "labels.npz"])
def test_every_model(
    arguments: list[str], expected: object, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: NoisyLabels = expected()  # type: ignore[operator]
    assert main([*arguments, source, "noisy.npz", "--rate", "0.3"]) == 0
    assert capsys.readouterr().out == wanted.summary() + "\n"
    assert np.array_equal(NoisyLabels.load("noisy.npz").labels, wanted.labels)
    assert main([*arguments, source, "noisy.csv", "--rate", "0.3"]) == 0
    header, rows = read("noisy.csv")
    before = read(source)[1] if source.endswith("csv") else [[""] for _ in LABELS]
    column = header.index("label")
    for i, row in enumerate(rows):
        assert row[:column] == before[i][:column]
        assert row[column + 1 : -2] == before[i][column + 1 :]
        assert row[column] == str(wanted.given[i])
        assert row[-2:] == [str(LABELS[i]), str(int(wanted.is_noisy[i]))]
    assert header[-2:] == ["original_label", "is_noisy"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "expected"), CALLS, ids=[" ".join(arguments) for arguments, _ in CALLS]
)
def test_names_stay_names(arguments: list[str], expected: object) -> None:
    wanted: NoisyLabels = expected()  # type: ignore[operator]
    main([*arguments, "names.csv", "noisy.csv", "--rate", "0.3"])
    _, rows = read("noisy.csv")
    assert [row[1] for row in rows] == [NAMES[i] for i in wanted.given]
    assert [row[3] for row in rows] == [NAMES[i] for i in LABELS]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_follow_the_order_of_the_hierarchy(encoding: str) -> None:
    Path("tree.txt").write_text("\n".join(reversed(NAMES)), encoding=encoding)
    main(["semantic", "names.csv", "noisy.csv", "--rate", "1", "--hierarchy", "tree.txt"])
    _, rows = read("noisy.csv")
    swapped = {"a/x": {"a/y"}, "a/y": {"a/x"}, "b/x": {"b/y", "b/z"}}
    for name, others in swapped.items():
        assert {row[1] for row in rows if row[3] == name} == others


@pytest.mark.usefixtures("here")
def test_classes_that_vanish_are_called_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    write("four.csv", ["path", "label", "note"], ["1", "2", "1", "x"])
    main(["pair_flip", "four.csv", "noisy.csv", "--rate", "0.5"])
    _, rows = read("noisy.csv")
    assert {row[1] for row in rows} == {"1", "2"}
    assert "vanished classes: 1 (x)" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_names_that_look_like_numbers_are_kept() -> None:
    names = ["007", "7", "0x7", "99999999999999999999"]
    write("agents.csv", ["path", "label", "note"], [names[i % 4] for i in range(40)])
    main(["uniform", "agents.csv", "noisy.csv", "--rate", "0.5"])
    _, rows = read("noisy.csv")
    assert [row[3] for row in rows] == [names[i % 4] for i in range(40)]
    assert {row[1] for row in rows} == set(names)
    write("agents.csv", ["path", "label", "note"], [f"{i % 4:03d}" for i in range(40)])
    main(["uniform", "agents.csv", "noisy.csv", "--rate", "0"])
    assert {row[1] for row in read("noisy.csv")[1]} == {"000", "001", "002", "003"}


@pytest.mark.usefixtures("here")
def test_mark_of_spreadsheets() -> None:
    Path("sheet.csv").write_text("label\n1\n2\n", encoding="utf-8-sig")
    main(["uniform", "sheet.csv", "noisy.csv", "--rate", "1"])
    assert read("noisy.csv") == (["label", *ADDED], [["2", "1", "1"], ["1", "2", "1"]])


@pytest.mark.usefixtures("here")
def test_column() -> None:
    write("other.csv", ["x", "class", "y"], LABELS)
    main(["uniform", "other.csv", "noisy.csv", "--rate", "0.1", "--column", "class"])
    assert read("noisy.csv")[0] == ["x", "class", "y", "original_label", "is_noisy"]


def test_as_a_program(here: Path) -> None:
    command = [sys.executable, "-m", "noisydml.noise", "uniform"]
    package = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [*command, str(here / "labels.csv"), str(here / "noisy.csv"), "--rate", "0.5"],
        cwd=package,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("uniform: 105 of 210 labels are wrong (50.0%, 50.0% asked for)")
    assert (here / "noisy.csv").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uniform", "labels.csv", "labels.csv", "--rate", "0.1"], "output must be another file"),
        (["uniform", "labels.csv", "noisy.csv", "--rate", "2"], "rate must be in [0, 1], got 2.0"),
        (["uniform", "none.csv", "noisy.csv", "--rate", "0.1"], "none.csv"),
        (["uniform", "labels.txt", "noisy.csv", "--rate", "0.1"], "files must be .csv or .npz"),
        (["uniform", "labels.csv", "noisy.txt", "--rate", "0.1"], "files must be .csv or .npz"),
        (
            ["uniform", "labels.csv", "noisy.csv", "--rate", "0.1", "--column", "x"],
            "column must be one of ['path', 'label', 'note'] in labels.csv, got 'x'",
        ),
        (
            ["uniform", "labels.npz", "noisy.csv", "--rate", "0.1", "--column", "x"],
            "column must be one of ['label', 'other'] in labels.npz, got 'x'",
        ),
        (
            ["uniform", "labels.npz", "noisy.csv", "--rate", "0.1", "--column", "other"],
            "labels must hold integers, got dtype float64",
        ),
        (["uniform", "broken.npz", "noisy.csv", "--rate", "0.1"], "error:"),
        (["uniform", "names.csv", "noisy.npz", "--rate", "0.1"], "output must be a csv file"),
        (["uniform", "broken.csv", "noisy.csv", "--rate", "0.1"], "got 1 in row 3"),
        (["uniform", "twice.csv", "noisy.csv", "--rate", "0.1"], "give the clean file"),
        (["uniform", "empty.csv", "noisy.csv", "--rate", "0.1"], "column must be one of []"),
        (
            ["semantic", "names.csv", "noisy.csv", "--rate", "0.1", "--hierarchy", "short.txt"],
            "hierarchy must have every label, got none for 'a/y'",
        ),
        (
            ["uniform", "labels.csv", "noisy.csv", "--rate", "0.1", "--spare", "x=1"],
            "spare must be one of ['path', 'label', 'note'] in labels.csv, got 'x'",
        ),
        (
            ["uniform", "labels.csv", "noisy.csv", "--rate", "0.1", "--spare", "note"],
            "spare must be a column of 0 and 1, or COLUMN=VALUE, got 'é' in the column",
        ),
        (
            ["uniform", "labels.npz", "noisy.csv", "--rate", "0.1", "--spare", "x"],
            "spare must be one of ['label', 'other'] in labels.npz, got 'x'",
        ),
        (
            ["uniform", "labels.npz", "noisy.csv", "--rate", "0.1", "--spare", "other"],
            "spare must be a column of 0 and 1, or COLUMN=VALUE, got '0.0' in the column",
        ),
        (
            ["uniform", "labels.csv", "noisy.csv", "--rate", "0.1", "--no-header"],
            "column must be one of ['0', '1', '2'] in labels.csv, got 'label'",
        ),
        (["gauss", "labels.csv", "noisy.csv", "--rate", "0.1"], "invalid choice"),
    ],
    ids=str,
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.npz").write_bytes(Path("labels.npz").read_bytes()[:100])
    Path("broken.csv").write_text("label,x\n1,2\n1\n")
    Path("twice.csv").write_text("label,is_noisy\n1,0\n")
    Path("empty.csv").write_text("")
    Path("short.txt").write_text("a/x\n")
    before = Path("labels.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert Path("labels.csv").read_bytes() == before
    assert not Path("noisy.csv").exists()
    assert not Path("noisy.npz").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize(("arguments", "_"), CALLS, ids=[" ".join(x) for x, _ in CALLS])
def test_missing_labels_and_spared_rows_are_left_alone(
    arguments: list[str], _: object, numbers: bool
) -> None:
    labels = [str(i) if numbers else NAMES[i] for i in LABELS]
    gone = {7: "", 80: "nan", 81: "NaN", 150: "-1"}
    for row, word in gone.items():
        labels[row] = word
    with open("some.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "split"])
        writer.writerows((x, "val" if i % 3 == 0 else "train") for i, x in enumerate(labels))
    call = [*arguments, "some.csv", "noisy.csv", "--rate", "0.5", "--spare", "split=val"]
    assert main(call) == 0
    _, rows = read("noisy.csv")
    alone = np.array([i % 3 == 0 or i in gone for i in range(len(labels))])
    wrong = np.array([row[3] == "1" for row in rows])
    assert not wrong[alone].any()
    assert wrong[~alone].mean() == pytest.approx(0.5, abs=0.15)  # a coin, whole classes
    for row, word in gone.items():
        assert rows[row] == [word, rows[row][1], word, "0"]
    classes = {row[0] for i, row in enumerate(rows) if i not in gone}
    assert not classes & {"", "nan", "NaN", "-1"}
    assert all(row[0] == row[2] for row, spared in zip(rows, alone, strict=True) if spared)


@pytest.mark.usefixtures("here")
def test_a_mask_spares_rows() -> None:
    mask = np.arange(len(LABELS)) % 2 == 0
    np.savez("masked.npz", label=LABELS[:, None], spare=mask)
    for word in (["spare"], ["spare=True"]):
        main(["uniform", "masked.npz", "noisy.npz", "--rate", "0.5", "--spare", *word])
        noisy = NoisyLabels.load("noisy.npz")
        assert np.array_equal(noisy.labels, uniform(LABELS, 0.5, spare=mask).labels)
        assert noisy.spared is not None
        assert np.array_equal(noisy.spared, mask)


@pytest.mark.usefixtures("here")
def test_no_header() -> None:
    Path("single.csv").write_text("4\n\n3\n4\n\n\n")  # a label is missing, the last lines are blank
    main(["uniform", "single.csv", "noisy.csv", "--rate", "1", "--no-header"])
    expected = [["3", "4", "1"], ["", "", "0"], ["4", "3", "1"], ["3", "4", "1"]]
    assert list(csv.reader(Path("noisy.csv").read_text().splitlines())) == expected
    Path("wide.csv").write_text("a,1,0\nb,2,1\nc,3,0\n\n")
    options = ["--no-header", "--column", "1", "--spare", "2"]
    main(["uniform", "wide.csv", "noisy.csv", "--rate", "1", *options])
    assert Path("noisy.csv").read_text().splitlines() == ["a,3,0,1,1", "b,2,1,2,0", "c,1,0,3,1"]


@pytest.mark.usefixtures("here")
def test_long_fields_and_formulas_come_back() -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1)", "x" * 200_000]
    write("odd.csv", ["path", "label", "note"], [names[i % 5] for i in range(20)])
    limit = csv.field_size_limit(1_000_000)
    try:
        main(["uniform", "odd.csv", "noisy.csv", "--rate", "0.5"])
        assert csv.field_size_limit() == 1_000_000
        _, rows = read("noisy.csv")
    finally:
        csv.field_size_limit(limit)
    assert [row[3] for row in rows] == [names[i % 5] for i in range(20)]
    assert {row[1] for row in rows} <= set(names)


@pytest.mark.usefixtures("here")
def test_whole_numbers_with_a_point_are_numbers() -> None:
    """As pandas writes a column of integers in which some are missing."""
    cells = ["-1.0" if i % 9 == 0 else "" if i % 9 == 1 else f"{x}.0" for i, x in enumerate(LABELS)]
    with open("gaps.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "label"], *enumerate(cells)])
    assert main(["pair_flip", "gaps.csv", "noisy.csv", "--rate", "0.4"]) == 0
    kept = np.array([i % 9 > 1 for i in range(len(LABELS))])
    wanted = pair_flip(LABELS[kept], 0.4)
    _, rows = read("noisy.csv")
    assert [row[1] for row, there in zip(rows, kept, strict=True) if there] == list(
        map(str, wanted.labels.tolist())
    )
    assert all(
        row[1] == cell for row, cell, there in zip(rows, cells, kept, strict=True) if not there
    )
    assert main(["pair_flip", "gaps.csv", "noisy.npz", "--rate", "0.4"]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("label,fold\na,0.0\nb,1.0\n", ["--spare", "fold=0"], "spare must name a value of its"),
        ('label,x\na,"19 inch\nb,2\n', [], "is no csv file, or a broken one"),
        ('label,x\na,"5" nail\nb,2\n', [], "is no csv file, or a broken one"),
        (
            "label,x,label\na,1,b\n",
            [],
            "column must be the name of one column of odd.csv, got 'label' of two",
        ),
    ],
)
def test_files_that_would_be_misread(
    text: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.csv").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["uniform", "odd.csv", "out.csv", "--rate", "0.5", *arguments])
    assert message in capsys.readouterr().err
    assert not Path("out.csv").exists()


@pytest.mark.usefixtures("here")
def test_a_first_label_that_is_missing() -> None:
    Path("single.csv").write_text("\n4\n3\n4\n")
    main(["uniform", "single.csv", "noisy.csv", "--rate", "1", "--no-header"])
    assert Path("noisy.csv").read_text().splitlines()[0] == ",,0"


@pytest.mark.usefixtures("here")
def test_a_terminal_that_cannot_show_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("names.csv").write_text("label\nÄ\nb\nb\nb\n", encoding="utf-8")
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1251")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["uniform", "names.csv", "noisy.csv", "--rate", "1"]) == 0
    assert b"labels are wrong" in out.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("here")
def test_numbers_that_are_not_whole_are_names() -> None:
    Path("versions.csv").write_text("label,,\n1.05,a,b\n2.05,a,b\n1.05,a,b\n")
    assert main(["uniform", "versions.csv", "noisy.csv", "--rate", "1"]) == 0
    _, rows = read("noisy.csv")
    assert [row[0] for row in rows] == ["2.05", "1.05", "2.05"]
