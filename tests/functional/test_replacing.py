"""What was there stays until the new file is whole."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from noisydml.functional.files import read_arrays, read_rows, replacing
from noisydml.language import TextEncoder, embed_names
from noisydml.noise import NoisyLabels
from noisydml.noise.cli import main

LABELS = np.arange(300) % 7
NOISY = NoisyLabels(labels=LABELS, is_noisy=np.zeros(300, bool), original=LABELS)


class Full:
    """A disk that is full after some bytes."""

    def __init__(self, file: Any, left: int = 100) -> None:
        self.file, self.left = file, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.left -= len(content)
        if self.left < 0:
            raise OSError("No space left on device")
        return int(self.file.write(content))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path, source, output = (tmp_path / name for name in ("labels.npz", "in.csv", "out.csv"))
    NOISY.save(path)
    source.write_text("label\n" + "\n".join(map(str, LABELS)))
    output.write_text("precious")
    before = path.read_bytes()

    def full(*arguments: Any, **options: Any) -> Any:
        file = open(*arguments, **options)  # noqa: SIM115
        return Full(file) if any(mode in str(arguments[1:]) for mode in "wx") else file

    with mock.patch("noisydml.functional.files.open", full, create=True):
        with pytest.raises(OSError, match="No space"):
            NOISY.save(path)
        with pytest.raises(SystemExit) as exit_:
            main(["uniform", str(source), str(output), "--rate", "0.2"])
    assert exit_.value.code == 2
    assert path.read_bytes() == before
    assert output.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "labels.npz", "out.csv"]


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with replacing(link, "w") as written:
        written.write("new")
    assert link.is_symlink()
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)


def status(arguments: list[str]) -> Any:
    try:
        return main([*arguments, "--column", "labels"])
    except SystemExit as exit_:
        return exit_.code


def test_flipped_bytes_of_a_file_have_one_error(tmp_path: Path) -> None:
    rng, path, output = random.Random(0), tmp_path / "labels.npz", tmp_path / "out.npz"
    NOISY.save(path)
    whole = path.read_bytes()
    refused = 0
    for attempt in range(800):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 3, 30])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            NoisyLabels.load(path)
        except ValueError:
            refused += 1
        if attempt < 60:
            assert status(["uniform", str(path), str(output), "--rate", "0.1"]) in (0, 2)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"label\n" + b"1" * 140_000, b"\x00" * 9])
@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_the_command_line_ends_with_a_sentence(
    content: bytes, suffix: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / f"in{suffix}"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["uniform", str(path), str(tmp_path / "out.csv"), "--rate", "0.1"])
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_cache_is_shared_by_threads_and_made_anew_where_it_is_broken(tmp_path: Path) -> None:
    encoder = TextEncoder("lengths", lambda: lambda texts: torch.tensor([[len(t)] for t in texts]))
    names, failures = [f"name {i}" for i in range(20)], []
    expected = embed_names(names, encoder)

    def call() -> None:
        try:
            for _ in range(5):
                for old in tmp_path.glob("*.npy"):
                    old.unlink(missing_ok=True)
                assert torch.equal(embed_names(names, encoder, cache=tmp_path), expected)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for rows in (np.zeros((3, 1), np.float32), np.full((20, 1), np.nan, np.float32), None):
        if rows is None:
            path.write_bytes(whole[:-9])
        else:
            np.save(path, rows)
        assert torch.equal(embed_names(names, encoder, cache=tmp_path), expected)
        assert path.read_bytes() == whole


def test_what_is_no_path_is_refused_by_name(tmp_path: Path) -> None:
    for use in (lambda: replacing(3).__enter__(), lambda: read_arrays(3), lambda: read_rows(3)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"path must be a string or an os\.PathLike, got int"):
            use()
    path = tmp_path / "none" / "labels.csv"
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass
    assert caught.value.filename == str(path)  # and not the name of the file beside it
