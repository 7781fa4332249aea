"""Shows the docstrings' reStructuredText in a Markdown page: mathematics, roles and examples.

An extension of griffe, which reads the docstrings for mkdocstrings.
"""

import re
from pathlib import Path
from typing import Any

import griffe

_RULES = (
    (re.compile(r":math:`([^`]+)`"), r"\\(\1\\)"),
    # ".. math::" and the indented lines below it, up to the first line that is not.
    (
        re.compile(r"^([ ]*)\.\. math::\n((?:\1[ ]+\S.*\n?)+)", re.MULTILINE),
        r"\n\1$$\n\2\1$$\n",
    ),
    # griffe knows the plural as a section of code; the singular would become quoted text.
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),
    (re.compile(r"``([^`]+)``"), r"`\1`"),
)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(~?)([^`]+)`")
# The objects that have a page, by their names without the modules.
_PAGES = {
    path.rpartition(".")[2]: path
    for path in re.findall(
        r"^::: (\S+)$", (Path(__file__).parent / "api.md").read_text(encoding="utf-8"), re.MULTILINE
    )
}


def _reference(match: re.Match[str]) -> str:
    """A link, where what is named has a page; "~" asks for the last part of the name only."""
    name = match[2].rpartition(".")[2]
    text = f"`{name if match[1] else match[2]}`"
    return f"[{text}][{_PAGES[name]}]" if name in _PAGES else text


def to_markdown(text: str) -> str:
    """The docstring in Markdown."""
    text = _ROLE.sub(_reference, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RstToMarkdown(griffe.Extension):
    """Converts every docstring once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
