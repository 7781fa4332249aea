"""The page to fix labels on: what its file holds, and what a browser makes of it."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit.browser import CHROMIUM, DRIVER, Browser, wait_for

import noisydml
from noisydml import LabelIssues
from noisydml.audit.page import unique_names
from noisydml.audit.pictures import data_uri

SIZE, CLASSES = 12, 3
HOSTILE = [
    "</script><script>document.title = 'run'</script><!--<script>",
    "\"'><img src=x onerror=\"document.title = 'run'\">&amp;",
    "Käfer 🐞\u2028\ud800 \\u003c",
]
PICTURES = np.random.default_rng(0).integers(0, 256, (SIZE, 4, 5, 3)).astype(np.uint8)


def example(suggestions: bool = True, neighbors: bool = True) -> LabelIssues:
    """Six suspects of twelve samples; of 3 and 5 the suggestion is no other label, or none."""
    given = torch.arange(SIZE) % CLASSES
    suggested = (given + 1) % CLASSES
    suggested[3], suggested[5] = given[3], -1
    issues = torch.tensor([7, 2, 3, 5, 0, 10])
    score = torch.ones(SIZE).double()
    score[issues] = torch.linspace(0.01, 0.26, 6).double()
    near = torch.tensor([[1, 2], [3, -1], [4, 5], [6, 7], [8, 9], [11, 0]])
    return LabelIssues(
        issues=issues,
        score=score,
        given_labels=given,
        suggested_labels=suggested if suggestions else None,
        support=torch.full((SIZE,), 0.75).double() if suggestions else None,
        noise_rate=0.5,
        neighbors=near if neighbors else None,
    )


class Blocks(HTMLParser):
    """The JSON blocks of a page as a browser finds them, and how many scripts would run."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.blocks: dict[str, Any] = {}
        self.scripts = 0
        self.inside: str | None = None
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert "src" not in found
        assert "href" not in found or found["href"] == "data:,"
        if tag == "script":
            self.inside = found["id"] if found.get("type") == "application/json" else None
            self.scripts += self.inside is None

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.blocks[self.inside] = json.loads(data)


def written(folder: Path, issues: LabelIssues, **settings: Any) -> Blocks:
    issues.to_html(folder / "page.html", **settings)
    return Blocks(folder / "page.html")


# The file ---------------------------------------------------------------------------------------


def test_the_data(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(SIZE)]
    page = written(tmp_path, example(), images=PICTURES, texts=texts, class_names=["a", "b", "c"])
    data = page.blocks["data"]
    assert page.scripts == 1
    assert data["rows"][0] == {
        "id": 7, "given": 1, "suggested": 2, "score": 0.01, "support": 0.75, "probability": None,
        "copies": [], "near": [1, 2],
    }  # fmt: skip
    assert [row["id"] for row in data["rows"]] == [7, 2, 3, 5, 0, 10]
    assert [row["suggested"] for row in data["rows"]] == [2, 0, None, -1, 1, 2]
    assert data["rows"][1]["near"] == [3]
    assert data["names"] == [[0, "a"], [1, "b"], [2, "c"]]
    # Every sample that is shown, once, in the order in which it is.
    assert [i for i, _ in data["samples"]] == [7, 1, 2, 3, 4, 5, 6, 0, 8, 9, 10, 11]
    assert all(label == i % CLASSES for i, label in data["samples"])
    expected = [[data_uri(PICTURES[i], 128), texts[i]] for i, _ in data["samples"]]
    assert page.blocks["items-0"] == expected


def test_only_what_is_shown_is_asked_for(tmp_path: Path) -> None:
    asked: list[int] = []
    issues = replace(example(), neighbors=None)
    page = written(tmp_path, issues, texts=lambda i: asked.append(i) or "text", top=2)
    assert asked == [7, 2]
    assert page.blocks["items-0"] == [[None, "text"]] * 2
    assert [row["near"] for row in page.blocks["data"]["rows"]] == [[], []]


def test_many_samples_are_in_blocks(tmp_path: Path) -> None:
    count = 450
    issues = LabelIssues(
        torch.arange(count), torch.zeros(count), torch.arange(count), None, None, 1.0
    )
    page = written(tmp_path, issues, texts=map(str, range(count)))
    sizes = [len(page.blocks[f"items-{i}"]) for i in range(3)]
    assert sizes == [200, 200, 50]
    assert page.blocks["items-2"][-1] == [None, "449"]
    assert page.blocks["data"]["rows"][1]["suggested"] is None


def test_another_audit_has_another_key(tmp_path: Path) -> None:
    def key(issues: LabelIssues, **settings: Any) -> str:
        found: str = written(tmp_path, issues, **settings).blocks["data"]["key"]
        return found

    same = key(example())
    assert same == key(example(neighbors=False), images=PICTURES, class_names=["a", "b", "c"])
    other = example()
    other.given_labels[7] = 0
    assert len({same, key(other), key(example(), top=3), key(example(suggestions=False))}) == 4


def test_names(tmp_path: Path) -> None:
    page = written(tmp_path, example(), class_names={0: "crane", 1: "crane", 2: "ox", 9: "gnu"})
    names = page.blocks["data"]["names"]
    assert names == [[0, "crane (0)"], [1, "crane (1)"], [2, "ox"], [3, "gnu"]]
    assert page.blocks["data"]["words"] == ["0", "1", "2", "9"]
    assert written(tmp_path, example()).blocks["data"]["names"] == [[0, "0"], [1, "1"], [2, "2"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "a", "a (1)"], ["a (0)", "a (1) (1)", "a (1) (2)"]),
        (["a", "a (0)", "a"], ["a (0) (0)", "a (0) (1)", "a (2)"]),
        (["a", "b", "a"], ["a (0)", "b", "a (2)"]),
    ],
)
def test_every_class_has_a_name_of_its_own(given: list[str], expected: list[str]) -> None:
    assert list(unique_names(given, {0, 1, 2}).values()) == expected
    assert list(unique_names(None, set(), (1, "1", "b")).values()) == ["1 (int)", "1 (str)", "b"]


def test_many_copies_are_not_all_on_the_page(tmp_path: Path) -> None:
    issues = replace(
        example(),
        score=torch.ones(60).double(),
        given_labels=torch.arange(60) % 2,
        suggested_labels=None,
        support=None,
        contradictions=(torch.arange(60),),
    )
    row = written(tmp_path, issues).blocks["data"]["rows"][0]
    assert row["copies"] == list(range(0, 40, 2))
    assert row["more"] == 10
    assert row["near"] == [*row["copies"], 1]


def test_no_issues(tmp_path: Path) -> None:
    issues = noisydml.find_label_issues(torch.eye(2).repeat(5, 1), torch.arange(2).repeat(5))
    assert issues.neighbors is not None
    assert written(tmp_path, issues, texts=["a"] * 10).blocks["data"]["rows"] == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"images": PICTURES[:5]}, ValueError, "images must have 12 entries, one per sample"),
        ({"images": PICTURES.astype(int)}, TypeError, "images must be uint8"),
        ({"images": PICTURES / 2}, ValueError, "images that are floats must be in"),
        ({"class_names": {"a", "b", "c"}}, TypeError, "one name per class, in order, got one set"),
        ({"class_names": {"a": 0, "b": 1, "c": 1}}, ValueError, "got two for one"),
        ({"texts": "a text"}, TypeError, "texts must be a callable"),
        ({"class_names": ["a", "b"]}, ValueError, "must name every label, got none for 2"),
        ({"class_names": {"a": "x", "b": "y"}}, ValueError, "class_names must be from integers to"),
        ({"class_names": 3}, TypeError, "class_names must have one name per class, in order, got"),
        ({"class_names": np.zeros((3, 2))}, TypeError, "class_names must have one name per class"),
        ({"images": torch.zeros(12, 4, 4, device="meta")}, TypeError, "images must be a dense"),
        ({"images": [torch.eye(4).to_sparse()] * 12}, TypeError, "images must be a dense tensor"),
        ({"images": np.array(5)}, TypeError, "images must be a callable or have one entry per"),
        ({"class_names": "abc"}, TypeError, "class_names must have one name per class"),
        ({"top": -1}, ValueError, "top"),
        ({"image_size": 0}, ValueError, "image_size"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        example().to_html(tmp_path / "page.html", **settings)


def test_a_picture_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("a.wav", b"RIFF\x10\0\0\0WAVEfmt "),
        ("a.txt", b"BMW is a car, no picture"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"must be PNG, .* files, got .*{name}' \(sample 7\)"):
            example().to_html(tmp_path / "page.html", images=[str(tmp_path / name)] * SIZE)
    for wrong, kind in (
        (None, TypeError),
        (np.full((4, 4), 3.0), ValueError),
        (math.nan, ValueError),
    ):
        pictures = [PICTURES[0]] * SIZE
        pictures[5] = wrong
        with pytest.raises(kind, match=r"images .* \(sample 5\)$"):
            example().to_html(tmp_path / "page.html", images=pictures)
    assert not (tmp_path / "page.html").exists()


# In a browser -----------------------------------------------------------------------------------

NAMES = ["ant", "bee", "fly"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        yield browser


def opened(browser: Browser, page: Path, issues: LabelIssues, **settings: Any) -> None:
    """The page as one finds it for the first time."""
    issues.to_html(page, **settings)
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.open(page)


@contextmanager
def sized(browser: Browser, width: int) -> Iterator[None]:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.devtools("Emulation.setDeviceMetricsOverride", **size)
    try:
        yield
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def progress(browser: Browser) -> str:
    return str(browser.js("return document.getElementById('progress').textContent"))


def samples(browser: Browser, rows: str = "#list > li") -> list[int]:
    """The samples of the rows that are drawn, from top to bottom."""
    labels = browser.js(f"return [...document.querySelectorAll('{rows}')].map(x => x.ariaLabel)")
    return [int(label.split(",")[0].removeprefix("Sample ")) for label in labels]


def current(browser: Browser) -> int:
    """The sample whose row is marked."""
    (found,) = samples(browser, "#list > [aria-current]")
    return found


def choose(browser: Browser, box: str, value: str) -> None:
    browser.js(
        "const [box, value] = [document.getElementById(arguments[0]), arguments[1]];"
        "box.value = value; box.dispatchEvent(new Event('change'))",
        box,
        value,
    )


def downloaded(browser: Browser) -> list[list[str]]:
    """The lines of the file that the page gives, the header apart."""
    file = wait_for(lambda: list(browser.downloads.glob("*.csv")))[0]
    wait_for(lambda: file.stat().st_size)
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    file.unlink()
    assert header == ["index", "given", "corrected", "decision"]
    return rows


def test_decisions_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), images=PICTURES, class_names=NAMES)
    browser.press("a", "r", "a", "j", "o", "bee", "Enter")  # 3 has no suggestion: a does nothing
    assert progress(browser) == "3 of 6 decided: 1 accepted, 1 rejected, 1 other; 6 shown"
    assert current(browser) == 0
    browser.press("d")
    assert downloaded(browser) == [
        ["7", "1", "2", "accepted"],
        ["2", "2", "2", "rejected"],
        ["3", "0", "0", "undecided"],
        ["5", "2", "1", "other"],
        ["0", "0", "0", "undecided"],
        ["10", "1", "1", "undecided"],
    ]
    browser.press("u")  # takes back what was decided last
    assert current(browser) == 5
    assert progress(browser).startswith("2 of 6 decided: 1 accepted, 1 rejected, 0 other")
    browser.press("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "a")  # the same again
    assert progress(browser).startswith("1 of 6 decided: 0 accepted, 1 rejected")
    browser.press("u", "u", "u")
    assert progress(browser).startswith("0 of 6 decided")
    browser.press("ArrowDown", "n", "n")
    assert browser.js("return document.getElementById('undo').disabled")


def test_names_that_differ_by_a_space(browser: Browser, tmp_path: Path) -> None:
    names = ["cat", "cat ", "dog"]
    opened(browser, tmp_path / "page.html", example(), class_names=names)
    browser.press("j", "o", "cat ", "Enter")
    browser.press("o", "cat", "Enter", "d")
    assert [row[2:] for row in downloaded(browser)[1:3]] == [["1", "other"], ["0", "rejected"]]


def test_next_undecided(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), class_names=NAMES)
    browser.press("a", "r", "k", "k", "n")
    assert current(browser) == 3
    browser.press("j", "j", "j", "j", "j")
    assert current(browser) == 10
    browser.press("n")  # from the end to the first that is left
    assert current(browser) == 3


def test_nothing_left_to_decide(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), class_names=NAMES)
    browser.press("x", "x", "x", "x", "x", "x", "k", "n")
    assert current(browser) == 0  # stays, and a further key is not for another one
    browser.press("n", "n")
    assert current(browser) == 0
    assert progress(browser).startswith("6 of 6 decided")


def test_escape_leaves_what_was_decided(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), class_names=NAMES)
    browser.press("o", "bee", "Escape")
    assert progress(browser).startswith("0 of 6 decided")
    browser.press("o", "zzz", "Escape")
    focus = "return document.activeElement.tagName + document.querySelector('#list input').value"
    assert browser.js(focus) == "LI"
    browser.press("a", "k", "o", "ant", "Escape")
    assert progress(browser).startswith("1 of 6 decided: 1 accepted")
    browser.press("o", "ant", "Enter", "k", "o", "bee", "Escape")  # another one, chosen before
    assert progress(browser).startswith("1 of 6 decided: 0 accepted, 0 rejected, 1 other")
    browser.press("d")
    assert downloaded(browser)[0] == ["7", "1", "0", "other"]


def test_names_of_several_lines(browser: Browser, tmp_path: Path) -> None:
    names = ["a\nb", "a b", "a\r\nb"]
    issues = replace(example(), classes=tuple(names))
    opened(browser, tmp_path / "page.html", issues)
    browser.press("j", "o", "a b (0)", "Enter", "j", "o", "a b (1)", "Enter", "d")
    rows = downloaded(browser)
    assert [row[2:] for row in (rows[1], rows[3])] == [["a\nb", "accepted"], ["a b", "other"]]


def test_two_tabs_have_the_same_decisions(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    opened(browser, page, example(), class_names=NAMES)
    other = browser.new_tab()
    browser.open(page)
    browser.press("j", "j", "r")
    browser.go_to_tab(browser.tabs()[0])
    wait_for(lambda: progress(browser).startswith("1 of 6 decided"))
    browser.press("a", "a")
    assert progress(browser).startswith("3 of 6 decided: 2 accepted, 1 rejected")
    browser.go_to_tab(other)
    wait_for(lambda: progress(browser).startswith("3 of 6 decided: 2 accepted, 1 rejected"))
    browser.close_tab()


def test_decisions_by_mouse(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), images=PICTURES, class_names=NAMES)
    assert browser.js("return document.querySelectorAll('.accept:disabled').length") == 1
    browser.click("#list > li:nth-child(2) .accept")
    assert current(browser) == 2
    browser.click("#list > li:nth-child(3) input")
    browser.press("wasp", "Enter")
    message = "return document.querySelector('#list > li:nth-child(3) input').validationMessage"
    assert browser.js(message) == "There is no such class."
    assert progress(browser).startswith("1 of 6 decided")
    browser.js("document.activeElement.value = ''")
    browser.press("fly", "Enter")
    assert browser.js(message) == ""
    browser.click("#list > li:nth-child(1) .reject")
    assert progress(browser).startswith("3 of 6 decided: 1 accepted, 1 rejected, 1 other")
    pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map(x => x.textContent)"
    assert browser.js(pressed) == ["Reject", "Accept"]
    browser.click("#list > li:nth-child(1) .reject")
    browser.click("#undo")
    browser.click("#undo")
    browser.click("#download")
    assert [row[3] for row in downloaded(browser)[:3]] == ["undecided", "accepted", "other"]


def test_sort_and_filter(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), texts=lambda i: f"text {i}")
    assert samples(browser) == [7, 2, 3, 5, 0, 10]
    choose(browser, "sort", "given")
    assert samples(browser) == [3, 0, 7, 10, 2, 5]
    choose(browser, "sort", "suggested")
    assert samples(browser) == [2, 0, 7, 10, 5, 3]  # none of these, and no suggestion, last
    choose(browser, "class", "0")  # given or suggested
    assert samples(browser) == [2, 0, 3]
    browser.press("a")
    choose(browser, "show", "open")
    assert samples(browser) == [0, 3]
    choose(browser, "show", "done")
    assert samples(browser) == [2]
    choose(browser, "class", "1")
    assert samples(browser) == []
    assert browser.js("return document.getElementById('empty').checkVisibility()")
    browser.press("a", "j", "n", "o")  # nothing to decide about
    assert progress(browser) == "1 of 6 decided: 1 accepted, 0 rejected, 0 other; 0 shown"


def labelled() -> LabelIssues:
    """Three suspects with names, of which 4 is a copy of 2 and of no suspect's label."""
    return LabelIssues(
        issues=torch.tensor([2, 0, 1]),
        score=torch.tensor([0.5, 0.75, 0.25, 1.0, 1.0]).double(),
        given_labels=torch.tensor([0, 1, 2, -1, 0]),
        suggested_labels=torch.tensor([1, -1, 0, 2, 0]),
        support=torch.full((5,), 0.875).double(),
        noise_rate=0.5,
        neighbors=torch.tensor([[3, 4], [1, 2], [0, -1]]),
        probability=torch.tensor([0.25, 0.5, 0.015, 1.0, 1.0]).double(),
        contradictions=(torch.tensor([2, 4]),),
        classes=('a "b", c', "bee", "fly"),
    )


def test_the_data_of_names_and_copies(tmp_path: Path) -> None:
    data = written(tmp_path, labelled()).blocks["data"]
    assert data["words"] == ['a "b", c', "bee", "fly"]
    assert data["names"] == [[0, 'a "b", c'], [1, "bee"], [2, "fly"]]
    assert [row["id"] for row in data["rows"]] == [2, 0, 1, 4]
    assert [row["suggested"] for row in data["rows"]] == [0, 1, -1, None]
    assert [row["probability"] for row in data["rows"]] == [0.015, 0.25, 0.5, 1.0]
    assert [row["copies"] for row in data["rows"]] == [[4], [], [], [2]]
    assert [row["near"] for row in data["rows"]] == [[4, 3], [1, 2], [0], [2]]
    assert dict(data["samples"])[3] == -1
    german = {"bee": "Biene", "fly": "Fliege", 'a "b", c': "Ameise", "wasp": "Wespe"}
    data = written(tmp_path, labelled(), class_names=german).blocks["data"]
    assert data["names"] == [[0, "Ameise"], [1, "Biene"], [2, "Fliege"]]
    with pytest.raises(ValueError, match="must name every label, got none for fly"):
        labelled().to_html(tmp_path / "page.html", class_names={'a "b", c': "a", "bee": "b"})
    with pytest.raises(TypeError, match="must be a mapping from label to name"):
        labelled().to_html(tmp_path / "page.html", class_names=["a", "b", "c"])


def test_what_names_classes(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    expected = [[0, "ant"], [1, "bee"], [2, "fly"]]
    for names in (
        {"fly": 2, "ant": 0, "bee": 1},  # torchvision's class_to_idx
        {2: "fly", 0: "ant", 1: "bee"},
        {"2": "fly", "0": "ant", "1": "bee"},
        pd.Series(["fly", "ant", "bee"], index=[2, 0, 1]),
        pd.Series([2, 0, 1], index=["fly", "ant", "bee"]),
        np.array(["ant", "bee", "fly"]),
        pd.Index(["ant", "bee", "fly"]),
        iter(["ant", "bee", "fly"]),
    ):
        assert written(tmp_path, example(), class_names=names).blocks["data"]["names"] == expected


def test_labels_beyond_the_numbers_of_a_browser(browser: Browser, tmp_path: Path) -> None:
    large = 2**53 + 1 + torch.arange(CLASSES)
    given, suggested = example().given_labels, (example().given_labels + 1) % CLASSES
    issues = replace(example(), given_labels=large[given], suggested_labels=large[suggested])
    opened(browser, tmp_path / "page.html", issues)
    browser.press("a", "d")
    assert downloaded(browser)[0] == ["7", str(2**53 + 2), str(2**53 + 3), "accepted"]


def test_removing_and_names(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    opened(browser, page, labelled(), images=PICTURES[:5])
    assert samples(browser) == [2, 0, 1, 4]
    text = browser.js("return document.querySelector('#list > li .labels').innerText")
    assert "1.5 % likely to be right, suggestion supported by 88 %" in text
    assert 'the same as sample 4, given a "b", c' in text
    assert browser.js("return document.querySelectorAll('.near .copy').length") == 2
    assert "none of these" in browser.js("return document.querySelectorAll('.labels')[2].innerText")
    browser.press("a", "x", "a")
    assert progress(browser).startswith(
        "3 of 4 decided: 1 accepted, 0 rejected, 0 other, 2 removed"
    )
    pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map(x => x.textContent)"
    assert browser.js(pressed) == ["Accept", "Remove", "Remove"]
    label = browser.js("return document.querySelectorAll('#list > li')[2].ariaLabel")
    assert label == "Sample 1, given bee, suggested none of these, removed"
    browser.open(page)  # decisions are kept by the names of labels
    browser.press("d")
    file = wait_for(lambda: list(browser.downloads.glob("*.csv")))[0]
    fixed, leave_out = noisydml.apply_corrections(
        ['a "b", c', "bee", "fly", None, 'a "b", c'], file
    )
    assert fixed == ['a "b", c', "bee", 'a "b", c', None, 'a "b", c']
    assert leave_out.tolist() == [0, 1]
    assert [row[2:] for row in downloaded(browser)] == [
        ['a "b", c', "accepted"], ["", "removed"], ["", "removed"], ['a "b", c', "undecided"],
    ]  # fmt: skip


def test_many_at_once(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), class_names=NAMES)
    browser.press("r")  # of sample 7, which stays rejected
    choose(browser, "class", "1")
    assert samples(browser) == [7, 0, 10]
    many = "return document.getElementById('many').textContent"
    assert browser.js(many) == "2 undecided here:"
    browser.click("#accept-all")
    assert progress(browser).startswith("3 of 6 decided: 2 accepted, 1 rejected, 0 other; 3")
    choose(browser, "class", "")
    browser.click("#undo")  # all of them
    assert progress(browser).startswith("1 of 6 decided: 0 accepted, 1 rejected")
    browser.click("#below")
    browser.press("0.1")
    assert samples(browser) == [7, 2]
    browser.click("#remove-all")
    assert (
        progress(browser) == "2 of 6 decided: 0 accepted, 1 rejected, 0 other, 1 removed; 2 shown"
    )
    disabled = "return [...document.querySelectorAll('header button:disabled')].map(x => x.id)"
    assert browser.js(disabled) == ["accept-all", "reject-all", "remove-all"]
    browser.click("#below")
    browser.press("Escape")
    browser.js("const b = document.getElementById('below'); b.value = ''; b.oninput()")
    browser.click("#accept-all")  # 3 has no suggestion, and that of 5 is to remove it
    assert progress(browser).startswith(
        "5 of 6 decided: 2 accepted, 1 rejected, 0 other, 2 removed"
    )
    browser.click("#reject-all")
    assert progress(browser).startswith(
        "6 of 6 decided: 2 accepted, 2 rejected, 0 other, 2 removed"
    )


def test_below_a_probability(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", labelled())
    assert (
        browser.js("return document.getElementById('measure').textContent")
        == "Probability below, %"
    )
    browser.click("#below")
    browser.press("40")
    assert samples(browser) == [2, 0]
    issues = labelled()
    assert issues.probability is not None
    issues.probability[2] = math.nan  # as of whom nobody could judge
    opened(browser, tmp_path / "page.html", issues)
    browser.click("#below")
    browser.press("40")
    assert samples(browser) == [0]


def test_enlarging(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), images=PICTURES, class_names=NAMES)
    size = (
        "const box = document.querySelector('#large img').getBoundingClientRect();"
        "return [box.width > 0.8 * innerWidth, box.bottom <= innerHeight, box.right <= innerWidth]"
    )
    is_open = "return document.getElementById('large').open"
    assert not browser.js(is_open)
    browser.press("e")
    assert browser.js(size) == [True, True, True]
    assert browser.js("return document.querySelector('#large').innerText") == "sample 7, given bee"
    browser.press("a", "x")  # meant for the list, which is covered
    assert progress(browser).startswith("0 of 6")
    browser.press("e")
    assert not browser.js(is_open)
    browser.click("#list > li:nth-child(2) .near img")
    assert browser.js("return document.querySelector('#large').innerText") == "sample 3, given ant"
    browser.click("#large img")
    assert not browser.js(is_open)
    browser.press("e", "Escape", "a")
    assert progress(browser).startswith("1 of 6")


def test_decisions_survive_a_reload(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    opened(browser, page, example())
    browser.press("a", "j", "r")
    before = progress(browser)
    browser.open(page)
    assert progress(browser) == before
    assert before.startswith("2 of 6 decided: 1 accepted, 1 rejected")
    example(suggestions=False).to_html(page)  # another audit
    browser.open(page)
    assert progress(browser).startswith("0 of 6 decided")
    assert browser.js("return document.querySelector('#sort [value=suggested]')") is None


def test_without_storage(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    example().to_html(page)
    refuse = "Object.defineProperty(window, 'localStorage', {get() {throw new Error('refused')}})"
    added = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    browser.open(page)
    browser.devtools("Page.removeScriptToEvaluateOnNewDocument", **added)
    browser.press("a")
    assert progress(browser).startswith("1 of 6 decided")
    note = browser.js("return document.getElementById('keeps').textContent")
    assert note == "This browser keeps no decisions: download before you leave."


def test_hostile_names_and_texts_are_text(browser: Browser, tmp_path: Path) -> None:
    texts = [HOSTILE[i % 3] for i in range(SIZE)]
    browser.log("browser")
    settings = {"texts": texts, "class_names": HOSTILE, "title": HOSTILE[0]}
    opened(browser, tmp_path / "page.html", example(), **settings)
    assert browser.js("return document.title") == " ".join(HOSTILE[0].split())
    # As JSON, because half of a surrogate pair gets no other way out of the browser.
    all_texts = "[...document.querySelectorAll('.item div')].map(x => x.textContent)"
    shown = json.loads(browser.js(f"return JSON.stringify({all_texts})"))
    assert shown == [texts[i] for i in (7, 2, 3, 5, 0, 10)]
    given = browser.js("return document.querySelector('#list > li:nth-child(5) b').textContent")
    assert given == HOSTILE[0]
    assert browser.js("return document.querySelectorAll('#list img').length") == 0
    assert browser.js("return document.querySelectorAll('script:not([type])').length") == 1
    assert browser.log("browser") == []


def test_no_other_script_runs_and_nothing_is_fetched(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    browser.log("performance")
    opened(browser, page, example(), images=PICTURES)
    loaded = "return [...document.images].every(x => x.complete && x.naturalWidth === 5)"
    wait_for(lambda: browser.js(loaded))
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    # The browser's own pages, such as the one that its first window shows, fetch what they like.
    addresses = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == page.as_uri()
    }
    assert page.as_uri() in addresses
    others = {url for url in addresses if not url.startswith("data:")} - {page.as_uri()}
    assert not others

    text = page.read_text(encoding="utf-8")
    added = "<script>document.title = 'run'</script><img src='https://example.org/x.png'></body>"
    page.write_text(text.replace("</body>", added), encoding="utf-8")
    browser.open(page)
    assert browser.js("return document.title") == "Labels to check"
    refused = [entry["message"] for entry in browser.log("browser")]
    assert len(refused) == 2
    assert all("Content Security Policy" in message for message in refused)


def test_few_of_many_rows_are_drawn(browser: Browser, tmp_path: Path) -> None:
    count = 1000
    issues = LabelIssues(
        torch.arange(count),
        torch.linspace(0, 0.3, count).double(),
        torch.arange(count) % CLASSES,
        torch.arange(1, count + 1) % CLASSES,
        torch.ones(count).double(),
        1.0,
    )
    opened(browser, tmp_path / "page.html", issues, images=lambda i: PICTURES[i % SIZE])
    assert len(samples(browser)) < 20
    browser.js("document.getElementById('scroll').scrollTop = 1e9")
    wait_for(lambda: 999 in samples(browser))
    assert 0 not in samples(browser)
    assert len(samples(browser)) < 20
    last = "return document.querySelector('#list > li:last-child').getBoundingClientRect().bottom"
    assert abs(browser.js(last) - browser.js("return innerHeight")) < 2
    browser.press("j")  # back to where one was
    assert current(browser) == 1
    assert samples(browser)[:2] == [0, 1]
    assert browser.js("return document.activeElement.ariaLabel").startswith("Sample 1,")
    browser.press(*"a" * 30)
    assert current(browser) == 31
    visible = "const box = document.activeElement.getBoundingClientRect();" \
        "return box.top >= 0 && box.bottom <= innerHeight + 1"  # fmt: skip
    assert browser.js(visible)


CONTRAST = """
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  const color = getComputedStyle(e).backgroundColor;
  return /, 0\\)$/.test(color) && e.parentElement ? ground(e.parentElement) : color;
};
const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
return [...document.body.querySelectorAll("*")]
  .filter((e) => own(e) && e.checkVisibility() && !e.disabled)
  .map((e) => [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a))
  .map(([a, b]) => (a + 0.05) / (b + 0.05));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(browser: Browser, tmp_path: Path, scheme: str) -> None:
    opened(browser, tmp_path / "page.html", example(), images=PICTURES, class_names=NAMES)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.devtools("Emulation.setEmulatedMedia", features=media)
    browser.press("a")
    ratios = browser.js(CONTRAST)
    assert len(ratios) > 40
    assert min(ratios) > 4.5  # WCAG 2, level AA
    page = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert page == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    unnamed = "return [...document.querySelectorAll('img, input, select, button')].filter(x =>" \
        "!(x.alt || x.ariaLabel || x.textContent || x.labels?.length)).length"  # fmt: skip
    assert browser.js(unnamed) == 0


@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.parametrize("pictures", [True, False])
def test_nothing_is_cut_off(browser: Browser, tmp_path: Path, width: int, pictures: bool) -> None:
    """What is too long scrolls inside its row."""
    near = torch.arange(8).repeat(6, 1)
    settings = {"texts": lambda i: f"{i} " + 40 * "long " + 200 * "x"}
    settings |= {"images": PICTURES} if pictures else {}
    names = ["a name of many words " * 4, "Donau" * 20, "short"]
    issues = replace(example(), neighbors=near)
    with sized(browser, width):
        opened(browser, tmp_path / "page.html", issues, class_names=names, **settings)
        over = (
            "return [...document.querySelectorAll('#list > li')].flatMap(row => [...row.children]"
            ".map(x => [x, x.getBoundingClientRect(), row.getBoundingClientRect()]).filter("
            "([_, a, b]) => a.bottom > b.bottom || a.right > b.right).map(([x]) => x.className))"
        )
        assert browser.js("return document.querySelectorAll('.near li').length") >= 24
        assert browser.js(over) == []


def test_a_narrow_window(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", example(), images=PICTURES, class_names=NAMES)
    with sized(browser, 420):
        tops = "return [...document.querySelectorAll('#list > li')].map(x => x.offsetTop)"
        wait_for(lambda: browser.js(tops)[:3] == [0, 332, 664])
        assert browser.js("return document.documentElement.scrollWidth") <= 420
