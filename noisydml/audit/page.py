"""A page to fix labels on: one HTML file that needs no server, no network and no other file.

The page with its style and script is ``page.html``. What is put into it here is JSON, so that
nothing in a label or a text is ever read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from os import PathLike
from typing import Any

from noisydml.audit.pictures import data_uri, item_getter
from noisydml.functional.checks import require_count

_PER_BLOCK = 200  # samples whose pictures and texts the page parses at once

ClassNames = Mapping[int, str] | Iterable[str]


def write(
    path: str | PathLike[str],
    rows: Sequence[dict[str, Any]],
    near: Sequence[Sequence[int]],
    labels: Sequence[int],
    images: Any,
    texts: Any,
    class_names: ClassNames | None,
    image_size: int,
    title: str,
) -> None:
    """Write the page of :meth:`noisydml.LabelIssues.to_html`, which tells the other arguments.

    ``rows`` are the suspects that are shown, ``near`` the samples nearest to each, -1 for none,
    and ``labels`` the given labels of all N samples, -1 for unknown ones.
    """
    require_count("image_size", image_size)
    picture = None if images is None else item_getter("images", images, len(labels))
    text = None if texts is None else item_getter("texts", texts, len(labels))

    def item(i: int) -> tuple[str | None, str | None]:
        return (
            None if picture is None else data_uri(picture(i), image_size),
            None if text is None else str(text(i)),
        )

    suspects = [_suspect(row, ids) for row, ids in zip(rows, near, strict=True)]
    key = [[row["id"], row["given"], row["suggested"], row["score"]] for row in suspects]
    # Each sample once, in the order in which the page first shows it.
    samples = list(dict.fromkeys(i for row in suspects for i in (row["id"], *row["near"])))
    classes = {*labels, *(row.get("suggested_label", -1) for row in rows)} - {-1}
    data = {
        "title": title,
        # Under this the browser keeps the decisions: another audit has another.
        "key": "noisydml:" + hashlib.sha256(_json(key)).hexdigest(),
        "rows": suspects,
        "samples": [[i, labels[i]] for i in samples],
        "names": list(unique_names(class_names, classes).items()),
        "perBlock": _PER_BLOCK,
    }
    head, tail = _template()
    with open(path, "wb") as file:
        file.write(head + _block("data", data))
        for start in range(0, len(samples), _PER_BLOCK):
            items = [item(i) for i in samples[start : start + _PER_BLOCK]]
            file.write(_block(f"items-{start // _PER_BLOCK}", items))
        file.write(tail)


def unique_names(class_names: ClassNames | None, classes: set[int]) -> dict[int, str]:
    """Every class with a name of its own, in the order of the labels; a label unless named.

    ``classes`` are the labels that must have a name.
    """
    if class_names is None:
        return {label: str(label) for label in sorted(classes)}
    if isinstance(class_names, str):
        raise TypeError("class_names must have one name per class, got one str")
    pairs = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names)
    names = {int(label): str(name) for label, name in pairs}
    missing = classes - names.keys()
    if missing:
        raise ValueError(f"class_names must name every label, got none for {min(missing)}")
    count = Counter(names.values())
    return {
        label: name if count[name] == 1 else f"{name} ({label})"
        for label, name in sorted(names.items())
    }


def _suspect(row: dict[str, Any], near: Sequence[int]) -> dict[str, Any]:
    suggested = row.get("suggested_label", -1)
    known = suggested >= 0 and suggested != row["given_label"]
    return {
        "id": row["sample_id"],
        "given": row["given_label"],
        "suggested": suggested if known else None,
        "score": round(row["score"], 4),
        "support": round(row["support"], 4) if known else None,
        "near": [i for i in near if i >= 0],
    }


def _json(value: Any) -> bytes:
    """ASCII without ``<``: nothing in it ends the block that it stands in, or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").encode("ascii")


def _block(name: str, value: Any) -> bytes:
    return f'<script type="application/json" id="{name}">'.encode() + _json(value) + b"</script>\n"


def _template() -> tuple[bytes, bytes]:
    """What stands before and after the data; the only script that may run is the template's."""
    page = resources.files("noisydml.audit").joinpath("page.html").read_text(encoding="utf-8")
    script = page.rsplit("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    head, tail = page.replace("SCRIPT_HASH", digest).split("<!-- data -->\n")
    return head.encode(), tail.encode()
