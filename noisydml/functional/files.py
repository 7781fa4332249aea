"""Files that are whole or not there, and arrays read from them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextmanager
def replacing(path: str | PathLike[str], mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """An open file that takes the place of ``path`` when the block has ended without an error.

    After an error what was there before is there still. ``settings`` are those of ``open``. A pipe
    or a device is written to as it is.
    """
    target = Path(os.path.realpath(path))  # what a link leads to
    if target.exists() and not target.is_file():
        with open(target, mode, **settings) as file:
            yield file
        return
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, mode, **settings) as file:
            yield file
        with suppress(FileNotFoundError):  # there may be none, or none any more
            shutil.copymode(target, aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def read_arrays(path: str | PathLike[str], single: bool = False) -> dict[str, Any]:
    """The arrays of an npz file by name, or the ``single`` one of an npy file by the name "".

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no such file, or is broken.
    """
    kind = "npy" if single else "npz"
    with open(path, "rb") as file:  # numpy would leave it open where it is broken
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray) is single:
                return {"": content} if single else {x: content[x] for x in content.files}
        except Exception as error:  # zipfile, zlib and numpy have a dozen kinds
            raise ValueError(f"{path} is no {kind} file, or a broken one: {error}") from error
    raise ValueError(f"{path} must be an {kind} file")
