"""Embeddings and labels as people have them: tensors, arrays, lists, names, data frames.

pandas, polars and pyarrow are never imported; their columns are known by what they can do. Names
are Python objects and are read one by one, once.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisydml.functional.checks import MISSING, is_missing, require_dense, require_floating

Classes = tuple[Any, ...] | None  # what the codes stand for; None where they are the labels

_EXACT = 2**53  # beyond it one float stands for several integers


def read_embeddings(value: Any) -> Tensor:
    """(N, D) finite floating point, detached, on the device where they are.

    Tensors, arrays and sequences (of rows: tensors, arrays or lists) must be floating point. The
    columns of a data frame may hold any numbers.
    """
    if not isinstance(value, Tensor):
        value = _rows_of(value)
    require_dense("embeddings", value)
    require_floating("embeddings", value, ndim=2)
    if value.shape[1] == 0:
        raise ValueError("embeddings must have at least 1 column, got 0")
    if not value.isfinite().all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    embeddings: Tensor = value.detach()
    return embeddings


def read_labels(value: Any, length: int | None, unlabeled: Any = -1) -> tuple[Tensor, Classes]:
    """The given labels as codes, and what the codes stand for.

    Args:
        value: (N,) or (N, 1) labels of a kind that :func:`noisydml.find_label_issues` takes.
        length: N, the number of embeddings; None for any.
        unlabeled: the label of those that have none, beside None, NaN, NA and NaT; None for no
            other.

    Returns:
        (N,) int64 codes on the CPU, -1 for no label; and None where the labels are integers that
        are not negative, which are their own codes, else the distinct labels, of which a code is
        the position: ascending, or in the order of the categories.
    """
    array, order = _column(value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"labels must have shape (N,) or (N, 1), got {array.shape}")
    if length is not None and len(array) != length:
        raise ValueError(f"labels must have {length} entries, one per embedding, got {len(array)}")
    given, missing = _plain(array)
    if unlabeled is not None:
        same = _same(given, unlabeled)
        missing[~missing] = same
        given = given[~same]
        if given.dtype.kind == "i" and len(given):
            _refuse_doubtful(given, unlabeled if same.any() else None)
    codes = np.full(len(array), -1, dtype=np.int64)
    if given.dtype.kind == "i" and (given >= 0).all():
        codes[~missing] = given
        return torch.from_numpy(codes), None
    names = given.tolist()
    classes = _ascending(set(names)) if order is None else tuple(order)
    code = {name: position for position, name in enumerate(classes)}
    codes[~missing] = [code[name] for name in names]
    return torch.from_numpy(codes), classes


def names_of(codes: Tensor, classes: Classes) -> list[Any]:
    """What codes stand for; None for those below 0."""
    names = [None if code < 0 else code for code in codes.tolist()]
    return names if classes is None else [None if i is None else classes[i] for i in names]


def words_of(labels: Iterable[Any]) -> list[str]:
    """What each of several labels is called where it is written: 1 and "1" by their types, too."""
    labels = list(labels)
    words = dict(enumerate(map(str, labels)))
    return list(unique(words, lambda i: type(labels[i]).__name__).values())


def unique(names: dict[int, str], mark: Callable[[int], Any]) -> dict[int, str]:
    """The names; two that are alike are each followed by the mark of its key, in brackets.

    Raises:
        ValueError: where this does not tell them apart.
    """
    for _ in range(10):  # a name may look like one with a mark
        count = Counter(names.values())
        if len(count) == len(names):
            return names
        names = {
            key: name if count[name] == 1 else f"{name} ({mark(key)})"
            for key, name in names.items()
        }
    twice = count.most_common(1)[0][0]
    raise ValueError(f"classes must be written differently, got two that are {twice}")


def refuse_masked(name: str, value: Any) -> None:
    """Raise ValueError for an array of NumPy of which an entry is masked."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"{name} must be finite, got a masked entry")


def _rows_of(value: Any) -> Tensor:
    if isinstance(value, (str, bytes, Mapping, Set)):
        raise TypeError(f"embeddings must be rows of numbers, got {type(value).__name__}")
    framed = hasattr(value, "columns")
    if not (hasattr(value, "to_numpy") or hasattr(value, "__array__")):
        value = list(_iterable("embeddings", value))
    for each in value if isinstance(value, list) else [value]:
        refuse_masked("embeddings", each)
    try:
        if isinstance(value, list) and value and all(isinstance(row, Tensor) for row in value):
            return torch.stack(value)
        rows = _array(value)
        if rows.dtype.kind == "O" and rows.ndim == 1 and len(rows):  # an array or list in each
            rows = np.stack([np.asarray(row) for row in rows])
    except (RuntimeError, ValueError) as error:
        raise ValueError("embeddings must have rows of one length") from error
    if rows.dtype.kind == "O":
        odd = [x for x in rows.flat if not isinstance(x, (Real, Decimal, np.bool_))]
        if any(type(x).__name__ not in MISSING for x in odd):
            raise TypeError(f"embeddings must hold numbers, got {type(odd[0]).__name__}")
        if odd:
            raise ValueError("embeddings must be finite, got a missing value")
        rows = rows.astype(np.float64)
    if rows.dtype.kind not in "biufc":
        raise TypeError(f"embeddings must hold numbers, got dtype {rows.dtype}")
    if rows.dtype.kind == "f":  # no long double, and the byte order of the machine
        rows = rows.astype(f"=f{min(rows.dtype.itemsize, 8)}", copy=False)
    elif framed and rows.dtype.kind in "biu":
        rows = rows.astype(np.float64)
    return torch.from_numpy(np.require(rows, requirements=["C", "W"]))


def _column(value: Any) -> tuple[NDArray[Any], list[Any] | None]:
    """An array of whatever kind, and the categories in their order, where there are any."""
    if isinstance(value, Tensor):
        require_dense("labels", value)
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy(), None
    if isinstance(value, (str, bytes, Mapping, Set)):
        raise TypeError(f"labels must have one entry per sample, got {type(value).__name__}")
    if isinstance(value, np.ma.MaskedArray):
        hidden, value = np.ma.getmaskarray(value), value.data.astype(object)
        value[hidden] = None
    value = only_column(value)
    if not (hasattr(value, "to_numpy") or hasattr(value, "__array__")):
        return objects(list(_iterable("labels", value))), None
    array = _array(value)
    listed = getattr(value, "to_pylist", None) or getattr(value, "to_list", None)
    # Integers, some of them missing? And dates, without a time, are Python's.
    if listed is not None and (array.dtype.kind == "f" or array.dtype == "M8[D]"):
        array = objects(listed())
    order = getattr(getattr(value, "dtype", None), "categories", None)
    if order is not None and getattr(getattr(order, "dtype", None), "kind", None) in ("M", "m"):
        return array, list(order.to_numpy())  # as the entries are: NumPy's, whatever the unit
    # polars' Categorical has those of all columns there are, in no order.
    return array, getattr(order, "to_list", lambda: None)()


def only_column(frame: Any) -> Any:
    """The column of a frame that has one, which is of its own kind; anything else as it is."""
    if getattr(frame, "shape", ())[1:] != (1,):
        return frame
    if hasattr(frame, "iloc"):  # pandas
        return frame.iloc[:, 0]
    if hasattr(frame, "to_series"):  # polars
        return frame.to_series(0)
    return frame.column(0) if hasattr(frame, "column") else frame  # pyarrow


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "to_pylist") and hasattr(value, "to_numpy"):  # of pyarrow
        return np.asarray(value.to_numpy(zero_copy_only=False))
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)


def objects(listed: list[Any]) -> NDArray[Any]:
    """An array that holds the very objects; a list of lists gives it two dimensions."""
    if listed and all(isinstance(x, (list, tuple)) for x in listed):
        return np.array(listed, dtype=object)
    array = np.empty(len(listed), dtype=object)
    array[:] = listed
    return array


def _iterable(name: str, value: Any) -> Iterable[Any]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must have one entry per sample, got {type(value).__name__}")
    return value


def _plain(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The entries that are not missing, int64 or objects, and which of all are missing."""
    if array.dtype.kind == "f":
        return _whole(array[~np.isnan(array)].astype(np.float64)), np.isnan(array)
    if array.dtype.kind in "iu" and (len(array) == 0 or int(array.max()) < 2**63):
        return array.astype(np.int64), np.zeros(len(array), dtype=np.bool_)
    listed = list(array) if array.dtype.kind in "Mm" else array.tolist()  # ns would be integers
    if any(issubclass(kind, (Tensor, np.generic)) for kind in _types(listed)):
        listed = [_python(x) for x in listed]
    missing = np.zeros(len(listed), dtype=np.bool_)
    if any(_may_miss(kind) for kind in _types(listed)):
        missing[:] = [_may_miss(type(x)) and is_missing(x) for x in listed]
    given = [x for x, gone in zip(listed, missing.tolist(), strict=True) if not gone]
    kinds = {_kind(kind) for kind in _types(given)}
    if "bool" in kinds and len(kinds) > 1:
        raise TypeError(f"labels must be of one kind, got {' and '.join(sorted(kinds))}")
    if kinds == {"integer"} or not kinds:
        try:
            return np.array(given, dtype=np.int64), missing
        except OverflowError:
            pass  # larger ones are names
    elif kinds <= {"integer", "float"}:
        return _whole(np.array(given, dtype=np.float64)), missing
    return objects(given), missing


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _python(value: Any) -> Any:
    """The object of Python that a scalar of torch or NumPy is; dates stay, for their precision."""
    dated = isinstance(value, (np.datetime64, np.timedelta64))
    scalar = isinstance(value, (Tensor, np.generic)) and value.ndim == 0 and not dated
    return value.item() if scalar else value


def _may_miss(kind: type) -> bool:
    return issubclass(kind, (float, np.generic)) or kind.__name__ in MISSING


def _kind(label: type, name: str = "labels") -> str:
    if issubclass(label, (bool, np.bool_)):
        return "bool"
    if issubclass(label, (np.datetime64, datetime.date)):
        return "date"
    if issubclass(label, (np.timedelta64, datetime.timedelta)):  # NumPy's would be an integer
        return "duration"
    if issubclass(label, Integral):
        return "integer"
    if issubclass(label, Real):
        return "float"
    if issubclass(label, (complex, tuple, Tensor)) or not issubclass(label, Hashable):
        raise TypeError(f"{name} must be integers or names, got {label.__name__}")
    return label.__name__


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    """Floats that stand for integers, as those in a column with missing ones do."""
    if odd := values[np.isinf(values) | (values != np.floor(values))].tolist():
        raise TypeError(f"labels must be integers or names, got {odd[0]}")
    if (np.abs(values) > _EXACT).any():
        raise TypeError("labels beyond 2**53 must be integers, as floats they are the same")
    return values.astype(np.int64)


def _same(given: NDArray[Any], label: Any) -> NDArray[np.bool_]:
    """Where labels are that one, and of its kind: 1 is no True, and no "1", but it is 1.0."""
    label = _python(label)
    if is_missing(label):  # which stands for none anyway
        return np.zeros(len(given), dtype=np.bool_)
    kind = _kind(type(label), "unlabeled")
    if kind == "float" and label == label // 1:
        kind, label = "integer", int(label)
    if given.dtype.kind == "i":
        return np.asarray(given == label) if kind == "integer" else np.zeros(len(given), np.bool_)
    kinds = {"integer", "float"} if kind == "integer" else {kind}
    alike = {each for each in _types(given) if _kind(each) in kinds}
    if not alike:
        return np.zeros(len(given), dtype=np.bool_)
    if kind in ("date", "duration"):
        label = _numpy(label)
        same = (type(x) in alike and _numpy(x) == label for x in given)
    else:
        same = (type(x) in alike and x == label for x in given)
    return np.fromiter(same, dtype=np.bool_, count=len(given))


def _numpy(time: Any) -> Any:
    """A date or duration as NumPy's, which compare across units; with a time zone as it is."""
    if isinstance(time, np.generic) or getattr(time, "tzinfo", None) is not None:
        return time
    if isinstance(time, datetime.timedelta):
        return getattr(time, "to_timedelta64", lambda: np.timedelta64(time))()
    return getattr(time, "to_datetime64", lambda: np.datetime64(time))()


def _refuse_doubtful(given: NDArray[np.int64], unlabeled: Any) -> None:
    """Where -1 or another negative number may be a class, or may stand for no label."""
    least = given.min()
    if least < 0:
        raise ValueError(
            f"labels must not be negative, got {least}; unlabeled={least} says that it stands for "
            "no label, unlabeled=None that it is a class"
        )
    if unlabeled == -1 and least == given.max():
        raise ValueError(
            f"labels must have more classes than {least}, as -1 stands for no label; if it is a "
            "class, say unlabeled=None"
        )


def _ascending(names: set[Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(names))
    except TypeError:  # of several kinds
        return tuple(sorted(names, key=lambda name: (type(name).__name__, str(name))))
