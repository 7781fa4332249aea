"""Makes a page for each object that api.md lists, and its place in the menu.

A hook of MkDocs. ``::: noisydml.robust`` in api.md becomes an item of a list, with the first line
of the docstring, and the page api/robust.md.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from rst_to_markdown import to_markdown

OVERVIEW = "api.md"
_OBJECT = re.compile(r"^::: noisydml\.([\w.]+)$", re.MULTILINE)


def public(path: str) -> str:
    """Without the module, where that is named like the function which the package exports."""
    return re.sub(r"\.(\w+)\.\1$", r".\1", path)


def on_config(config: MkDocsConfig) -> None:
    """Replaces the menu's entry for the overview by a group: itself, and a group a heading."""
    text = Path(config.docs_dir, OVERVIEW).read_text(encoding="utf-8")
    menu: list[Any] = [{"Overview": OVERVIEW}]
    for section in text.split("\n## ")[1:]:
        names = map(public, _OBJECT.findall(section))
        pages = [{name.rpartition(".")[2]: f"api/{name}.md"} for name in names]
        menu.append({section.partition("\n")[0]: pages})
    for group in config.nav or []:
        for entries in group.values():
            if {"API": OVERVIEW} in entries:
                entries[entries.index({"API": OVERVIEW})] = {"API": menu}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages."""
    for path in _OBJECT.findall(files.src_uris[OVERVIEW].content_string):
        name = public(path)
        page = f"::: noisydml.{path}\n    options:\n      heading: noisydml.{name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes lists of links of the overview's objects."""
    if page.file.src_uri != OVERVIEW:
        return markdown
    package = griffe.load("noisydml", search_paths=["."], resolve_aliases=True)

    def item(match: re.Match[str]) -> str:
        name, docstring = public(match[1]), package[match[1]].docstring
        first = to_markdown(docstring.value if docstring else "").partition("\n")[0]
        return f"* [`{name}`](api/{name}.md): {first}"

    return _OBJECT.sub(item, markdown)
