"""The documentation's site: it builds, notices what is broken, and needs no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from audit.browser import CHROMIUM, DRIVER, Browser, wait_for

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")
pytestmark = pytest.mark.slow


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What ``mkdocs serve`` does first, with the settings of mkdocs.yml alone."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=source,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    return folder


def test_what_is_broken_fails(tmp_path: Path) -> None:
    for name in ("docs", "noisydml"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("\n[a page](nowhere.md), [a heading](choose.md#no-such-heading)\n")
    docstring = tmp_path / "noisydml" / "wrappers" / "robust.py"
    source = docstring.read_text()
    assert source.count("    Args:\n") == 1
    docstring.write_text(source.replace("    Args:\n", "    Args:\n        unheard_of: nothing.\n"))

    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "warnings in strict mode" in done.stdout
    for broken in ("nowhere.md", "no-such-heading", "unheard_of"):
        assert broken in done.stdout


def test_every_object_has_a_page(site: Path) -> None:
    objects = re.findall(r"^::: noisydml\.(\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    overview = (site / "api" / "index.html").read_text()
    for path in objects:
        name = re.sub(r"\.(\w+)\.\1$", r".\1", path)
        page = (site / "api" / name / "index.html").read_text()
        assert f'id="noisydml.{path}"' in page
        assert re.search('class="doc doc-object doc-(class|function)"', page), path
        assert f'<a href="{name}/"><code>{name}</code></a>: ' in overview
    assert len(list((site / "api").glob("*/index.html"))) == len(objects)


def test_signatures_are_wrapped(site: Path) -> None:
    page = (site / "api" / "PRISMFilter" / "index.html").read_text()
    signature = re.sub("<[^>]+>", "", page[page.index('class="doc-signature') :])
    assert re.search(r"\n +memory_size: int,\n", signature)


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)\b[^>]*\ssrc="([^"]+)"|<link\b[^>]*\shref="([^"]+)"'
    )
    for page in site.rglob("*.html"):
        for source, link in loaded.findall(page.read_text()):
            assert not (source or link).startswith(("http:", "https:", "//")), page
    assert (site / "katex" / "LICENSE").exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def shorten_search(site: Path) -> None:
    """To one entry: each page makes its index, which takes as long as all the rest of a page."""
    index = site / "search" / "search_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "docs": content["docs"][:1]}))


def test_pages_on_a_phone(browser: Browser, address: str, site: Path) -> None:
    """Formulas are drawn, nothing is wider than the window, and nothing is missing."""
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=420, height=900, deviceScaleFactor=1, mobile=True,
    )  # fmt: skip
    formulas = 0
    for number, page in enumerate(sorted(site.rglob("index.html"))):
        if number == 1:
            shorten_search(site)
        browser.log("browser")
        browser.open(address + page.parent.relative_to(site).as_posix())
        wait_for(lambda: browser.js("return document.readyState === 'complete'"))
        marked, drawn, failed, wide = browser.js("""
            const count = (selector) => document.querySelectorAll(selector).length;
            return [count('.arithmatex'), count('.arithmatex > :is(.katex, .katex-display)'),
                    count('.katex-error'), document.documentElement.scrollWidth - innerWidth]""")
        assert marked == drawn, page
        assert not failed, page
        assert wide <= 0, page
        assert not browser.log("browser"), page
        formulas += marked
    assert formulas > 100
