"""Labels and embeddings of every kind that people have."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from noisydml import find_label_issues
from noisydml.audit.labels import names_of, read_embeddings, read_labels

NAN = float("nan")


def read(value: Any, unlabeled: Any = -1) -> tuple[list[int], tuple[Any, ...] | None]:
    codes, classes = read_labels(value, len(value), unlabeled)
    assert codes.dtype == torch.int64
    return codes.tolist(), classes


def integers() -> dict[str, Any]:
    kinds = {
        name: np.array([5, 0, 5, 2], dtype=name)
        for name in ("u1", "u2", "u4", "u8", "i1", "i2", "i8", ">i4", "f4", "f8", object)
    }
    tensors = {
        str(dtype): torch.tensor([5, 0, 5, 2], dtype=dtype)
        for dtype in (torch.int16, torch.int64, torch.uint16, torch.uint32, torch.uint64)
    }
    lists = {
        "list": [5, 0, 5, 2],
        "range": range(4),
        "list of tensors": list(torch.tensor([5, 0, 5, 2])),
        "list of scalars": list(np.array([5, 0, 5, 2], dtype=np.uint16)),
        "column": np.array([[5], [0], [5], [2]]),
        "list of lists": [[5], [0], [5], [2]],
        "strided": np.array([5, 2, 0, 0, 5, 0, 2, 1])[::2],
    }
    return kinds | tensors | lists


@pytest.mark.parametrize("kind", integers())
def test_integers_are_their_own_codes(kind: Any) -> None:
    expected = [0, 1, 2, 3] if kind == "range" else [5, 0, 5, 2]
    assert read(integers()[kind]) == (expected, None)


@pytest.mark.parametrize(
    ("value", "codes", "classes"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (("b", "a", None), [1, 0, -1], ("a", "b")),
        (np.array(["b", "a"]), [1, 0], ("a", "b")),
        (np.array([b"b", b"a"]), [1, 0], (b"a", b"b")),
        (np.array(["b", None, NAN, "a"], dtype=object), [1, -1, -1, 0], ("a", "b")),
        (np.array([["b"], ["a"]]), [1, 0], ("a", "b")),
        ([True, False, True], [1, 0, 1], (False, True)),
        (torch.tensor([True, False]), [1, 0], (False, True)),
        ([True, None], [0, -1], (True,)),
        (["1", 1, "1"], [1, 0, 1], (1, "1")),
        ([2**63, 2**70, 2**63], [0, 1, 0], (2**63, 2**70)),
        (np.array([2**64 - 1, 7], dtype=np.uint64), [1, 0], (7, 2**64 - 1)),
        (
            np.array(["2024-01-02", "NaT", "2024-01-01"], dtype="M8[ns]"),
            [1, -1, 0],
            (np.datetime64("2024-01-01", "ns"), np.datetime64("2024-01-02", "ns")),
        ),
        ([datetime.date(2024, 1, 1)] * 2, [0, 0], (datetime.date(2024, 1, 1),)),
        ([], [], None),
        ([None, NAN], [-1, -1], None),
    ],
)
def test_names(value: Any, codes: list[int], classes: Any) -> None:
    found = read(value)
    assert found == (codes, classes)
    assert [type(x) for x in found[1] or ()] == [type(x) for x in classes or ()]


def test_large_integers_stay_apart() -> None:
    large = [2**62 + 1, 2**62, 2**53 + 1]
    for value in (large, np.array(large), torch.tensor(large), np.array(large, dtype=object)):
        assert read(value) == (large, None)
    assert read([2**62 + 1, None]) == ([2**62 + 1, -1], None)


def test_who_has_no_label() -> None:
    assert read([3, None, -1, NAN, 4]) == ([3, -1, -1, -1, 4], None)
    assert read(np.array([3.0, NAN, 4.0])) == ([3, -1, 4], None)
    assert read(np.ma.masked_array([3, 9, 4], [False, True, False])) == ([3, -1, 4], None)
    assert read([3, 255, 4], unlabeled=255) == ([3, -1, 4], None)
    assert read(["b", "?", "a"], unlabeled="?") == ([1, -1, 0], ("a", "b"))
    assert read(["-1", "1"]) == ([0, 1], ("-1", "1"))  # a name is no number
    assert read([True, False], unlabeled=1) == ([1, 0], (False, True))
    for missing in (float("nan"), np.datetime64("NaT")):
        assert read([3, 255, 4], unlabeled=missing) == ([3, 255, 4], None)
    assert read([-1, 1, -1], unlabeled=None) == ([0, 1, 0], (-1, 1))
    assert read([-1, -1]) == ([-1, -1], None)
    with pytest.raises(ValueError, match=r"must not be negative, got -100; unlabeled=-100 says"):
        read([-100, 1, 2])
    with pytest.raises(ValueError, match=r"more classes than 1, as -1 .* say unlabeled=None"):
        read([-1, 1, -1, 1])


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
@pytest.mark.parametrize("kind", ["M8", "m8"])
def test_categories_of_times_are_those_of_the_column(kind: str, unit: str) -> None:
    pd = pytest.importorskip("pandas")
    times = np.array([1, 0, 1, 2]).astype(f"{kind}[{unit}]")
    codes, classes = read(pd.Series(times))
    for column in (
        pd.Series(times).astype("category"), pd.Categorical(times), pd.CategoricalIndex(times),
    ):  # fmt: skip
        assert read(column) == (codes, classes)
        assert classes is not None
        assert all(isinstance(name, np.generic) for name in classes)


def test_the_label_that_stands_for_none_is_read_as_labels_are() -> None:
    names, floats = np.array(["b", "?", "a"]), np.array([3.0, 0.0, 4.0])
    assert read(names, unlabeled=np.str_("?")) == ([1, -1, 0], ("a", "b"))
    for unlabeled in (0, 0.0, np.float32(0), np.int8(0), torch.tensor(0), torch.tensor(0.0)):
        assert read(floats, unlabeled) == ([3, -1, 4], None)
        assert read(floats.astype(int), unlabeled) == ([3, -1, 4], None)
        assert read([1, "a", 0], unlabeled) == ([0, 1, -1], (1, "a"))
        assert read([1.5, "a", 0.0], unlabeled) == ([0, 1, -1], (1.5, "a"))
    assert read([2**53 + 1, 2**53], float(2**53)) == ([2**53 + 1, -1], None)
    assert read([True, False], np.bool_(True)) == ([-1, 0], (False,))
    for unlabeled in (
        0.5,
        NAN,
        np.inf,
        "3",
        True,
        datetime.date(2024, 1, 1),
        datetime.timedelta(3),
    ):
        assert read(floats, unlabeled) == ([3, 0, 4], None)
    assert read(np.array([3, 4], "m8[s]"), 3)[0] == [0, 1]
    moments = ["2024-01-01T01:02:03", "2024-01-02", "2024-01-03"]
    one = datetime.datetime(2024, 1, 1, 1, 2, 3)
    for unit in ("s", "ms", "us", "ns"):
        for unlabeled in (one, np.datetime64(one), np.datetime64(one, "ns")):
            assert read(np.array(moments, f"M8[{unit}]"), unlabeled)[0] == [-1, 0, 1]
            assert read([one, datetime.datetime(2024, 1, 2)], unlabeled)[0] == [-1, 0]
    for unlabeled in (datetime.timedelta(days=1), np.timedelta64(24, "h")):
        assert read(np.array([1, 2, 3], "m8[D]"), unlabeled)[0] == [-1, 0, 1]
    pd = pytest.importorskip("pandas")
    stamps = pd.Series(pd.to_datetime(moments, format="ISO8601"))
    for column in (stamps, list(stamps), stamps.astype("category"), stamps.astype("M8[ns]")):
        for unlabeled in (stamps[0], one, np.datetime64(one)):
            assert read(column, unlabeled)[0][0] == -1
            assert -1 not in read(column, unlabeled)[0][1:]
    assert read(stamps, stamps.dt.tz_localize("UTC")[0])[0] == [0, 1, 2]
    spans = pd.Series(pd.to_timedelta([1, 2], unit="D"))
    assert read(spans, spans[0])[0] == read(spans, datetime.timedelta(1))[0] == [-1, 0]


def test_durations_are_labels() -> None:
    spans = np.array([2, 1, "NaT"], "m8[s]")
    assert read(spans) == ([1, 0, -1], (np.timedelta64(1, "s"), np.timedelta64(2, "s")))
    assert read(list(spans))[0] == [1, 0, -1]
    python = [datetime.timedelta(2), datetime.timedelta(1), None]
    assert read(python) == ([1, 0, -1], (python[1], python[0]))
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for column in (pd.Series(python), pd.Series(python).astype("category"), pl.Series(python)):
        assert read(column)[0] == [1, 0, -1]


def test_dates_of_columns_are_those_of_python() -> None:
    dates = [datetime.date(2024, 1, 2), None, datetime.date(2024, 1, 1)]
    expected = ([1, -1, 0], (dates[2], dates[0]))
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    for column in (dates, pl.Series(dates), pl.Series(dates).to_frame(), pa.array(dates)):
        assert read(column) == expected
        assert read(column, dates[0])[1] == (dates[2],)


def test_columns_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    index = [9, 3, 3]
    series = {
        "int": pd.Series([5, 0, 5], index=index),
        "Int64": pd.Series([5, None, 2**53 + 1], dtype="Int64", index=index),
        "float": pd.Series([5, None, 2], index=index),
        "str": pd.Series(["b", None, "a"], index=index),
        "bool": pd.Series([True, None, False], dtype="boolean"),
        "integer categories": pd.Series([7, 0, 7], dtype="category"),
        "arrow": pd.Series(["b", "a", None], dtype="str"),
    }
    expected = {
        "int": ([5, 0, 5], None),
        "Int64": ([5, -1, 2**53 + 1], None),
        "float": ([5, -1, 2], None),
        "str": ([1, -1, 0], ("a", "b")),
        "bool": ([1, -1, 0], (False, True)),
        "integer categories": ([7, 0, 7], None),
        "arrow": ([1, 0, -1], ("a", "b")),
    }
    for name, column in series.items():
        assert read(column) == expected[name], name
        assert read(column.to_frame()) == expected[name], name
        assert read(pd.Index(column)) == expected[name], name
    sizes = pd.Categorical(["big", "small", None], categories=["small", "middle", "big"])
    for value in (sizes, pd.Series(sizes), pd.Series(sizes).to_frame(), pd.CategoricalIndex(sizes)):
        assert read(value) == ([2, 0, -1], ("small", "middle", "big"))
    times = pd.Series(pd.to_datetime(["2024-01-02", None, "2024-01-01"]))
    assert read(times)[0] == [1, -1, 0]


def test_columns_of_polars() -> None:
    pl = pytest.importorskip("polars")
    large = 2**53 + 1
    for column, expected in [
        (pl.Series("y", [5, None, large]), ([5, -1, large], None)),
        (pl.Series("y", [5, 0, large], dtype=pl.UInt64), ([5, 0, large], None)),
        (pl.Series("y", ["b", None, "a"]), ([1, -1, 0], ("a", "b"))),
        (pl.Series("y", ["b", None, "a"], dtype=pl.Categorical), ([1, -1, 0], ("a", "b"))),
        (
            pl.Series("y", ["b", None, "a"], dtype=pl.Enum(["b", "c", "a"])),
            ([0, -1, 2], ("b", "c", "a")),
        ),
        (pl.Series("y", [True, False, None]), ([1, 0, -1], (False, True))),
    ]:
        assert read(column) == expected
        assert read(column.to_frame()) == expected


def test_columns_of_pyarrow() -> None:
    pa = pytest.importorskip("pyarrow")
    large = 2**53 + 1
    for column, expected in [
        (pa.array([5, None, large]), ([5, -1, large], None)),
        (pa.array(["b", None, "a"]), ([1, -1, 0], ("a", "b"))),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ([1, 0, 1], ("a", "b"))),
        (pa.chunked_array([["b"], [None, "a"]]), ([1, -1, 0], ("a", "b"))),
        (pa.array([True, False]), ([1, 0], (False, True))),
    ]:
        assert read(column) == expected
        assert read(pa.table({"y": column})) == expected


def test_names_come_back() -> None:
    codes, classes = read_labels(["b", None, "a"], 3)
    assert names_of(codes, classes) == ["b", None, "a"]
    assert names_of(torch.tensor([4, -1]), None) == [4, None]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([0.5, 1, 2], TypeError, "labels must be integers or names, got 0.5"),
        (np.array([1.0, np.inf]), TypeError, "labels must be integers or names, got inf"),
        (torch.rand(3) + 0.1, TypeError, "labels must be integers or names"),
        (np.array([2.0**60, 1]), TypeError, r"labels beyond 2\*\*53 must be integers"),
        (np.array([1j, 2]), TypeError, "labels must be integers or names, got complex"),
        ([[0, 1], [2, 3]], ValueError, r"labels must have shape \(N,\) or \(N, 1\), got \(2, 2\)"),
        ([[0, 1], [2]], TypeError, "labels must be integers or names, got list"),
        ([{0}, {1}], TypeError, "got set"),
        ([np.arange(2), np.arange(3)], TypeError, "got ndarray"),
        ([(1, 2), 3], TypeError, "got tuple"),
        ([True, 1], TypeError, "labels must be of one kind, got bool and integer"),
        ({0, 1}, TypeError, "labels must have one entry per sample, got set"),
        ({"a": 0}, TypeError, "got dict"),
        ("abc", TypeError, "got str"),
        (torch.tensor([0, 1]).to_sparse(), TypeError, "labels must be a dense tensor"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), TypeError, "labels must be a dense"),
        (np.zeros((2, 2, 1)), ValueError, r"got \(2, 2, 1\)"),
    ],
)
def test_what_is_no_label(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(value)


def test_another_number_of_labels() -> None:
    with pytest.raises(TypeError, match="unlabeled must be integers or names, got list"):
        read([0, 1], unlabeled=[])
    pl = pytest.importorskip("polars")
    with pytest.raises(TypeError, match="labels must have one entry per sample, got LazyFrame"):
        read_labels(pl.LazyFrame({"y": [1]}), 1)
    with pytest.raises(ValueError, match="labels must have 4 entries, one per embedding, got 3"):
        read_labels(["a", "b", "a"], 4)
    with pytest.raises(TypeError, match="labels must have one entry per sample, got int"):
        read_labels(3, 3)


ROWS = [[0.5, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(ROWS),
        torch.tensor(ROWS, requires_grad=True),
        np.array(ROWS),
        np.array(ROWS, dtype=">f4"),
        np.array(ROWS, dtype=np.float16),
        np.array(ROWS, dtype=np.longdouble),
        np.array(ROWS)[::-1][::-1],
        ROWS,
        tuple(map(tuple, ROWS)),
        [np.array(row) for row in ROWS],
        [torch.tensor(row) for row in ROWS],
        np.array(ROWS, dtype=object),
    ],
)
def test_embeddings(value: Any) -> None:
    found = read_embeddings(value)
    assert found.is_floating_point()
    assert not found.requires_grad
    assert found.tolist() == ROWS


def test_a_read_only_array() -> None:
    rows = np.array(ROWS)
    rows.flags.writeable = False
    assert read_embeddings(rows).tolist() == ROWS  # torch would warn


def test_masked_entries_are_refused() -> None:
    rows = np.ma.masked_array(np.array(ROWS * 4), False)
    assert read_embeddings(rows).tolist() == ROWS * 4
    rows[3, 1] = np.ma.masked
    for value in (rows, list(rows), [rows[:2], rows[2:]], rows.astype(np.float16)):
        with pytest.raises(ValueError, match="embeddings must be finite, got a masked entry"):
            find_label_issues(value, [0, 1] * 4)


def test_columns_of_decimals() -> None:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pa = pytest.importorskip("pyarrow")
    columns = {"a": [Decimal("0.5"), Decimal(2)], "b": [1.0, 3.0]}
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        assert read_embeddings(frame).tolist() == ROWS
    with pytest.raises(ValueError, match="embeddings must be finite"):
        read_embeddings(pd.DataFrame({"a": [Decimal(1), Decimal("NaN")]}))


def test_embeddings_in_data_frames() -> None:
    pd = pytest.importorskip("pandas")
    mixed = {"a": [0.5, 2.0], "b": [1, 3]}
    for frame in (
        pd.DataFrame(mixed, index=[7, 7]),
        pd.DataFrame(mixed).astype({"a": "Float64", "b": "UInt8"}),
        pd.DataFrame(mixed).astype({"a": "float32"}),
        pd.Series([np.array(row) for row in ROWS]),
    ):
        assert read_embeddings(frame).tolist() == ROWS
    assert read_embeddings(pd.DataFrame({"a": [1, 2], "b": [True, False]})).tolist() == [
        [1, 1], [2, 0],
    ]  # fmt: skip
    assert read_embeddings(pd.DataFrame({"a": [1, 2]})).dtype == torch.float64
    with pytest.raises(ValueError, match="embeddings must be finite"):
        read_embeddings(pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": ["1", "2"]}).a
                        .to_frame())  # fmt: skip
    with pytest.raises(TypeError, match="embeddings must hold numbers, got str"):
        read_embeddings(pd.DataFrame({"a": [1.0, 2], "b": ["x", "y"]}))
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    for frame in (
        pl.DataFrame(mixed),
        pl.Series(ROWS),
        pl.Series(ROWS, dtype=pl.Array(pl.Float32, 2)),
        pa.table(mixed),
    ):
        assert read_embeddings(frame).tolist() == ROWS


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(4, 2).int(), TypeError, "embeddings must be a floating-point tensor"),
        (np.ones((4, 2), dtype=int), TypeError, "embeddings must be a floating-point tensor"),
        (np.ones((4, 2), dtype=complex), TypeError, "embeddings must be a floating-point tensor"),
        (["one text", "another"], TypeError, "embeddings must hold numbers, got dtype <U"),
        (np.array([["a", "b"]], dtype=object), TypeError, "embeddings must hold numbers, got str"),
        ("a text", TypeError, "embeddings must be rows of numbers, got str"),
        ({1.0, 2.0}, TypeError, "embeddings must be rows of numbers, got set"),
        (3.0, TypeError, "embeddings must have one entry per sample, got float"),
        ([[1.0, 2.0], [3.0]], ValueError, "embeddings must have rows of one length"),
        ([torch.ones(2), torch.ones(3)], ValueError, "embeddings must have rows of one length"),
        ([np.ones(2), np.ones(3)], ValueError, "embeddings must have rows of one length"),
        (torch.ones(4), ValueError, "embeddings must have 2 dimensions"),
        ([[1.0, NAN]], ValueError, "embeddings must be finite"),
        ([[], []], ValueError, "embeddings must have at least 1 column, got 0"),
        ([[1.0, None]], ValueError, "embeddings must be finite, got a missing value"),
        (torch.ones(2, 2).to_sparse(), TypeError, "embeddings must be a dense tensor"),
        (torch.ones(2, 2, device="meta"), TypeError, "embeddings must be a dense tensor"),
        (torch.ones(2, 2).to(torch.float8_e5m2), TypeError, "embeddings must have a dtype"),
    ],
)
def test_what_is_no_embedding(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_embeddings(value)


def test_the_answer_is_the_same_for_every_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(60) % 3
    embeddings = torch.eye(3)[codes] + 0.2 * torch.randn(60, 3, generator=generator)
    codes[:4] = (codes[:4] + 1) % 3
    plain = find_label_issues(embeddings, codes)
    names = np.array(["ant", "bee", "fly"])[codes]
    named = find_label_issues(embeddings.numpy(), names)
    assert torch.equal(named.issues, plain.issues)
    assert torch.equal(named.score, plain.score)
    assert named.classes == ("ant", "bee", "fly")
    assert plain.classes is None


def test_samples_without_a_label_get_suggestions() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(90) % 3
    embeddings = torch.eye(3)[true] + 0.1 * torch.randn(90, 3, generator=generator)
    labels = true.clone()
    labels[::4] = -1
    labels[5] = (true[5] + 1) % 3
    found = find_label_issues(embeddings, labels, k=10)
    assert found.issues.tolist() == [5]
    assert abs(found.noise_rate - 1 / int((labels >= 0).sum())) < 1e-3
    assert torch.equal(found.suggested_labels, true)
    assert torch.equal(found.score.isnan(), labels < 0)
    assert torch.equal(found.given_labels, labels)
    there = labels >= 0  # the others have no vote
    without = find_label_issues(embeddings[there], labels[there], k=10)
    torch.testing.assert_close(found.score[there], without.score, rtol=0, atol=0.01)
    nobody = find_label_issues(embeddings, [None] * 90)
    assert len(nobody.issues) == 0
    assert (nobody.suggested_labels == -1).all()
