"""Files that are whole or not there: written beside, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any


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
