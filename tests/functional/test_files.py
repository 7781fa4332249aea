"""Files that are whole or not there."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import IO

import numpy as np
import pytest

from noisydml.functional.files import read_rows, replacing
from noisydml.noise import NoisyLabels


def half(file: IO[str]) -> None:
    file.write("half")
    file.flush()
    raise KeyError


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(KeyError), replacing(path) as file:
        half(file)
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")
    with path.open() as reader:
        with replacing(path) as file:
            file.write("after")
            file.flush()
            assert path.read_text() == "before"
        assert reader.read() == "before"  # not written over
    assert path.read_text() == "after"
    with pytest.raises(KeyboardInterrupt), replacing(path, "wb") as file:
        raise KeyboardInterrupt
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_its_place_its_link_and_its_rights(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o604)
    link.symlink_to(path)
    with replacing(link) as file:
        file.write("after")
    assert link.is_symlink()
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o604
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / ("n" * 250)) as file:  # a name as long as names may be
            file.write("new")
    finally:
        os.umask(mask)
    assert (tmp_path / ("n" * 250)).stat().st_mode & 0o777 == 0o640
    with replacing("/dev/null") as file:  # no file to replace
        file.write("gone")
    assert not Path("/dev/null").is_file()
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass


def test_noisy_labels_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, path = NoisyLabels([1, 0], [True, False], [0, 0]), tmp_path / "noisy.npz"
    noisy.save(path)
    before = path.read_bytes()

    def full(file: object, **content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        noisy.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("to", ["pipe", "file"])
def test_what_a_stream_is_written_to(to: str, tmp_path: Path) -> None:
    script = """
import os
from noisydml.functional.files import replacing
with replacing("/dev/stdout") as file:
    file.write("table")
os.write(1, b"after")
"""
    out = tmp_path / "log"
    command = [sys.executable, "-c", script]
    if to == "pipe":
        printed = subprocess.run(command, capture_output=True, check=True).stdout
    else:
        with out.open("ab") as log:
            log.write(b"before")
            log.flush()
            subprocess.run(command, stdout=log, check=True)
        printed = out.read_bytes()
    assert printed == b"tableafter"  # what is opened by its name to be written begins anew


def test_threads_leave_the_length_of_a_field_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" * 1000)
    limit = csv.field_size_limit()
    threads = [Thread(target=lambda: [read_rows(path) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert csv.field_size_limit() == limit
