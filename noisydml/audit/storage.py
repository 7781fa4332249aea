"""The file that a LabelIssues is saved in: its arrays, and its words as JSON."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisydml.functional.files import read_arrays, replacing


def write(path: str | PathLike[str], fields: dict[str, Any]) -> None:
    """An npz file of all fields, under the very name given.

    Raises:
        TypeError: for names of classes that are neither strings, bytes nor numbers.
    """
    names = fields["classes"] or ()
    odd = [name for name in names if not isinstance(name, (str, bytes, int, float))]
    if odd:
        raise TypeError(
            f"classes must be strings or numbers to be saved, got {type(odd[0]).__name__}"
        )
    groups = fields["contradictions"]
    arrays: dict[str, Any] = {
        n: np.asarray(v) for n, v in fields.items() if isinstance(v, (Tensor, np.ndarray))
    }
    others = {n: v for n, v in fields.items() if n not in arrays and n != "contradictions"}
    arrays["group_sizes"] = np.array([len(group) for group in groups], dtype=np.int64)
    arrays["grouped"] = torch.cat([fields["issues"][:0], *groups]).numpy()
    words = json.dumps(others, default=_plain)
    arrays["others"] = np.frombuffer(words.encode(), dtype=np.uint8)
    with replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _plain(value: Any) -> Any:
    """The number that a scalar of NumPy is; of names that are bytes a list."""
    return [value.decode("latin-1")] if isinstance(value, bytes) else value.item()


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The fields again; some error or other if it is another file, or broken."""
    content = read_arrays(path)
    others = json.loads(content.pop("others").tobytes())
    sizes, grouped = content.pop("group_sizes").tolist(), content.pop("grouped")
    fields: dict[str, Any] = {n: torch.from_numpy(x) for n, x in content.items()}
    groups = torch.split(torch.from_numpy(grouped), sizes)
    fields["contradictions"] = groups if sizes else ()
    if (classes := others["classes"]) is not None:
        others["classes"] = tuple(
            x[0].encode("latin-1") if isinstance(x, list) else x for x in classes
        )
    if (bounds := others["noise_rate_bounds"]) is not None:
        others["noise_rate_bounds"] = tuple(bounds)
    return {**fields, **others}
