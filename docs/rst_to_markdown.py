"""Shows the docstrings' reStructuredText in a Markdown page: mathematics, roles and examples.

An extension of griffe, which reads the docstrings for mkdocstrings.
"""

import re
from typing import Any

import griffe

_RULES = (
    (re.compile(r":math:`([^`]+)`"), r"\\(\1\\)"),
    (re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]+)`"), r"`\1`"),
    # ".. math::" and the indented lines below it, up to the first line that is not.
    (
        re.compile(r"^([ ]*)\.\. math::\n((?:\1[ ]+\S.*\n?)+)", re.MULTILINE),
        r"\n\1$$\n\2\1$$\n",
    ),
    # griffe knows the plural as a section of code; the singular would become quoted text.
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),
    (re.compile(r"``([^`]+)``"), r"`\1`"),
)


def to_markdown(text: str) -> str:
    """The docstring in Markdown."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RstToMarkdown(griffe.Extension):
    """Converts every docstring once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
