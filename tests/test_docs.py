"""Every code block of the documentation and the README runs, as it is printed."""

from __future__ import annotations

import doctest
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()
]

# A fence, its language, and what stands before the fence that closes it. Fences may be indented.
_FENCE = re.compile(
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the first line of code, counted from 0


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        width = len(match["indent"])
        code = "".join(line[width:] or "\n" for line in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, text.count("\n", 0, match.start("code"))))
    return found


def run(page: Path) -> int:
    """Execute a page's blocks in one namespace; how many there were."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for block in blocks(page):
        if block.language == "python":
            # Empty lines in front, so that a traceback names the line of the page.
            source = "\n" * block.line + block.code
            exec(compile(source, str(page), "exec", dont_inherit=True), namespace)
        elif block.language == "pycon":
            run_doctest(block, page, namespace)
        else:
            continue
        count += 1
    return count


def run_doctest(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.code, namespace, page.name, str(page), block.line
    )
    report: list[str] = []
    result = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert result.attempted, f"{page.name}, line {block.line}: a pycon block without an example"
    assert not result.failed, "".join(report)
    namespace.update(test.globs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # what a block writes does not stay
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(page)


def test_pages_have_code() -> None:
    """The blocks are found at all."""
    languages = {page.name: {block.language for block in blocks(page)} for page in PAGES}
    assert "python" in languages["index.md"]
    assert {"python", "pycon"} <= languages["confidence.md"]


def test_every_fence_names_its_language() -> None:
    """A block without a language would be skipped in silence."""
    for page in PAGES:
        fences = re.findall(r"^[ ]*```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page.name
        assert all(fences[::2]), f"{page.name} has a code block without a language"
        assert not any(fences[1::2]), f"{page.name} has a fence inside a fence"


def test_a_failing_block_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run(page)
    assert failure.traceback[-1].lineno == 4  # the fifth line of the page
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x\n2\n```\n")
    with pytest.raises(AssertionError, match=r'page\.md", line 6'):
        run(page)
