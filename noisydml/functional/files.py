"""Files that are whole or not there, and arrays read from them."""

from __future__ import annotations

import csv
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

_STREAMS = ("/dev/stdout", "/dev/stderr")
_LIMIT = Lock()  # held while the length of a csv field is another one


@contextmanager
def replacing(path: str | PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """An open file that takes the place of ``path`` when the block has ended without an error.

    After an error what was there before is there still. ``settings`` are those of ``open``. A pipe
    or a device is written to as it is.

    Raises:
        TypeError: unless ``path`` is a path.
        OSError: naming ``path``, if there cannot be such a file.
    """
    require_path(path)
    target = Path(os.path.realpath(path))  # what a link leads to
    given = os.path.abspath(path)
    is_open = given in _STREAMS or given.startswith(("/dev/fd/", "/proc/"))
    if is_open or (target.exists() and not target.is_file()):
        with open(path, mode, **settings) as file:
            yield file
        return
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with _opened(aside, path, mode, **settings) as file:
            yield file
        with suppress(FileNotFoundError):  # there may be none, or none any more
            shutil.copymode(target, aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def require_path(path: object) -> None:
    """Raise TypeError unless it is a path: ``open`` takes a number for an open file."""
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a string or an os.PathLike, got {type(path).__name__}")


def _opened(aside: Path, path: str | PathLike[str], mode: str, **settings: Any) -> IO[Any]:
    try:
        return open(aside, mode, **settings)
    except OSError as error:  # the user knows the path, and not the name aside
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_rows(path: str | PathLike[str], **settings: Any) -> list[list[str]]:
    """The rows of a csv file, an empty list for a blank line; fields may be of any length.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no such file.
    """
    require_path(path)
    with _LIMIT:  # of the whole process
        limit = csv.field_size_limit(2**31 - 1)
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:  # of spreadsheets: a mark
                return list(csv.reader(file, **settings))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no csv file, or a broken one: {error}") from error
        finally:
            csv.field_size_limit(limit)


def read_arrays(path: str | PathLike[str], single: bool = False) -> dict[str, Any]:
    """The arrays of an npz file by name, or the ``single`` one of an npy file by the name "".

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no such file, or is broken.
    """
    kind = "npy" if single else "npz"
    require_path(path)
    with open(path, "rb") as file:  # numpy would leave it open where it is broken
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray) is single:
                return {"": content} if single else {x: content[x] for x in content.files}
        except Exception as error:  # zipfile, zlib and numpy have a dozen kinds
            raise ValueError(f"{path} is no {kind} file, or a broken one: {error}") from error
    raise ValueError(f"{path} must be an {kind} file")
