"""The benchmarks for a GPU: what is cut or fails is said, and the page is that of the file."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = str(ROOT / "examples" / "benchmarks")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "path", [FOLDER, *sys.path])


def script(name: str) -> Any:
    return importlib.import_module(name)


def run(path: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own, as it forks."""
    code = f"import sys; sys.path.insert(0, {FOLDER!r})\nimport gpu\n{before}\ngpu.main()"
    command = [sys.executable, "-c", code, "--short", "--output", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


QUICK = ["synchronisations", "limits", "judge"]  # all of them run with the examples


@pytest.mark.slow
def test_a_part_runs_and_has_a_table(tmp_path: Path) -> None:
    done = run(tmp_path / "gpu.json", "--parts", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == QUICK
    for name, part in found["parts"].items():
        assert part["status"] == "finished"
        assert not any(script("gpu_page").told(record) for record in part["records"])
        page = script("gpu_page").rewritten(f"A.\n\n<!-- gpu {name} -->\n\nx\n\nB.", found)
        assert len(page.split("\n\n")[2].splitlines()) == 2 + len(part["records"]) > 2
        assert page.endswith("\n\nB.")


STOPPED = """
import time
def hangs(*_):
    yield {"samples": 1}
    time.sleep(60)
def breaks(*_):
    yield {"samples": 1}
    raise RuntimeError("out of memory")
gpu.PARTS.update(judge=(hangs, 2), limits=(breaks, 9))
"""


def test_a_part_that_does_not_finish_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "gpu.json", "--parts", "judge", "limits", before=STOPPED)
    assert done.returncode == 1  # one has failed
    found = json.loads((tmp_path / "gpu.json").read_text())
    for name, said in {"judge": "cut after 2 s", "limits": "failed: RuntimeError"}.items():
        assert found["parts"][name]["records"] == [{"samples": 1}]
        assert found["parts"][name]["status"].startswith(said)
        assert said in script("gpu_page").status(found)


def test_the_parts_take_less_than_eight_minutes() -> None:
    assert sum(seconds for _, seconds in script("gpu").PARTS.values()) < 460


def test_a_wait_is_counted() -> None:
    """What CUDA warns of; here by a step that warns itself."""
    assert torch.cuda.is_available() or script("gpu").waits(_warn, torch.device("cpu")) == 1


def _warn() -> None:
    warnings.warn("called a synchronizing CUDA operation", stacklevel=1)


def test_the_page_is_that_of_the_file() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert page.count("<!-- gpu ") == 1 + len(script("gpu").PARTS)
    assert script("gpu_page").rewritten(page, script("gpu_page").measured()) == page
