"""A page to fix labels on: one HTML file that needs no server, no network and no other file.

The page with its style and script is ``page.html``. What is put into it here is JSON, so that
nothing in a label or a text is ever read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any

from noisydml.audit.labels import Classes, unique, words_of
from noisydml.audit.pictures import data_uri, item_getter, of_sample
from noisydml.functional.checks import require_count
from noisydml.functional.files import replacing

if TYPE_CHECKING:
    from noisydml.audit.issues import LabelIssues

_PER_BLOCK = 200  # samples whose pictures and texts the page parses at once

ClassNames = Mapping[Any, Any] | Iterable[str]  # or a pandas Series


def write(
    path: str | PathLike[str],
    issues: LabelIssues,
    rows: list[dict[str, Any]],
    images: Any,
    texts: Any,
    class_names: ClassNames | None,
    image_size: int,
    title: str,
) -> None:
    """Write the page of :meth:`noisydml.LabelIssues.to_html`, which tells the other arguments.

    ``rows`` are those of the ``issues`` that are shown, the first of them.
    """
    require_count("image_size", image_size)
    labels, classes = issues.given_labels.tolist(), issues.classes
    suggested = [None] * len(rows)
    if issues.suggested_labels is not None:
        suggested = issues.suggested_labels[[row["sample_id"] for row in rows]].tolist()
    near = [] if issues.neighbors is None else issues.neighbors[: len(rows)].tolist()
    near += [[]] * (len(rows) - len(near))
    picture = None if images is None else item_getter("images", images, len(labels))
    text = None if texts is None else item_getter("texts", texts, len(labels))

    def item(i: int) -> tuple[str | None, str | None]:
        with of_sample(i):
            return (
                None if picture is None else data_uri(picture(i), image_size),
                None if text is None else str(text(i)),
            )

    names = unique_names(class_names, {*labels, *suggested} - {-1, None}, classes)
    # The page counts classes from 0, for its numbers are no longer than 2**53.
    place: dict[int | None, int | None] = {None: None, -1: -1}
    place.update((code, position) for position, code in enumerate(names))
    written = dict(enumerate(words_of(classes or ())))
    words = [written.get(code, str(code)) for code in names]
    suspects = []
    for row, ids, code in zip(rows, near, suggested, strict=True):
        given, copies = labels[row["sample_id"]], row.get("contradicts", [])
        suspects.append(
            {
                "id": row["sample_id"],
                "given": place[given],
                "suggested": None if code == given else place[code],
                "score": _rounded(row["score"]),
                "support": None if code in (None, -1, given) else _rounded(row["support"]),
                "probability": _rounded(row.get("probability")),
                "copies": copies,
                "near": [i for i in dict.fromkeys([*copies, *ids]) if i >= 0],
            }
        )
        if more := row.get("contradicts_more"):
            suspects[-1]["more"] = more
    word: dict[int | None, Any] = {None: None, -1: -1, **dict(enumerate(words))}
    key = [
        [row["id"], word[row["given"]], word[row["suggested"]], row["score"]] for row in suspects
    ]
    # Each sample once, in the order in which the page first shows it.
    samples = list(dict.fromkeys(i for row in suspects for i in (row["id"], *row["near"])))
    data = {
        "title": title,
        # Under this the browser keeps the decisions: another audit has another.
        "key": "noisydml:" + hashlib.sha256(_json(key)).hexdigest(),
        "rows": suspects,
        "samples": [[i, place[labels[i]]] for i in samples],
        "names": list(enumerate(names.values())),
        "words": words,  # of the CSV file
        "perBlock": _PER_BLOCK,
    }
    head, tail = _template()
    with replacing(path, "wb") as file:
        file.write(head + _block("data", data))
        for start in range(0, len(samples), _PER_BLOCK):
            items = [item(i) for i in samples[start : start + _PER_BLOCK]]
            file.write(_block(f"items-{start // _PER_BLOCK}", items))
        file.write(tail)


def unique_names(
    class_names: ClassNames | None, codes: set[int], classes: Classes = None
) -> dict[int, str]:
    """Every code with a name of its own, on one line, in the order of the codes.

    Unless it is named, that is its label.

    ``codes`` are those that must have a name, ``classes`` the labels that they stand for.
    """
    code_of = {} if classes is None else {label: code for code, label in enumerate(classes)}
    if class_names is None:
        names = dict(enumerate(words_of(classes or ()))) or {code: str(code) for code in codes}
    elif (
        isinstance(class_names, (str, bytes, set, frozenset))
        or getattr(class_names, "ndim", 1) != 1
        or not hasattr(class_names, "__iter__")
    ):
        raise TypeError(
            f"class_names must have one name per class, in order, got one {_type(class_names)}"
        )
    elif hasattr(class_names, "items"):  # a mapping or a Series, by its index
        pairs = list(class_names.items())
        if classes is None and all(isinstance(x, str) and _is_code(y) for x, y in pairs):
            pairs = [(code, name) for name, code in pairs]  # torchvision's class_to_idx
            if len(dict(pairs)) < len(pairs):
                raise ValueError("class_names must have one name per class, got two for one")
        if classes is None:
            try:
                names = {int(code): str(name) for code, name in pairs}
            except (TypeError, ValueError) as error:
                raise ValueError(
                    "class_names must be from integers to names, as the labels are integers, or "
                    f"from names to integers, got {pairs[0]}"
                ) from error
        else:
            names = {code_of[label]: str(name) for label, name in pairs if label in code_of}
    elif classes is not None:
        raise TypeError(
            "class_names must be a mapping from label to name where labels are no integers, "
            f"got {_type(class_names)}"
        )
    else:
        names = {code: str(name) for code, name in enumerate(class_names)}
    if missing := codes - names.keys():
        label = min(missing) if classes is None else classes[min(missing)]
        raise ValueError(f"class_names must name every label, got none for {label}")
    one_line = {code: " ".join(name.splitlines()) for code, name in sorted(names.items())}
    return unique(one_line, int)


def _is_code(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _type(value: Any) -> str:
    return type(value).__name__


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)


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
