"""Writing a file that others may need: what was there stays until the new one is whole."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that takes its place when all has been written.

    With an exception in between ``path`` is as before. The arguments are those of ``open``. What
    is no regular file, such as a pipe, is written to at once.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from noisydml.files import replacing
        >>> path = Path(tempfile.mkdtemp(), "labels.txt")
        >>> with replacing(path, "w") as file:
        ...     _ = file.write("0 1")
        >>> path.read_text()
        '0 1'
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():
        with open(target, mode, **options) as file:
            yield file
        return
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, mode, **options) as file:
            yield file
        if target.exists():
            shutil.copymode(target, aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
