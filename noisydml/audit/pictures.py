"""Pictures and texts of samples, as a page or a figure shows them."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
# What a file that browsers show begins with.
_TYPES = {_PNG: "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def item_getter(name: str, source: Any, count: int) -> Callable[[int], Any]:
    """From a sample's index to its picture or text; ``source`` is the argument of that name.

    It is a callable, or has ``count`` entries: any iterable, of which arrays and tensors of two
    dimensions or more are read only where they are asked for.
    """
    if callable(source):
        return lambda i: source(i)
    if isinstance(source, (str, bytes)) or not isinstance(source, (Iterable, Tensor)):
        raise TypeError(
            f"{name} must be a callable or have one entry per sample, got {type(source).__name__}"
        )
    entries: Any = source if getattr(source, "ndim", 1) > 1 else list(source)
    if len(entries) != count:
        raise ValueError(f"{name} must have {count} entries, one per sample, got {len(entries)}")
    return lambda i: entries[i]


def as_pixels(picture: Any) -> Pixels:
    """(H, W) or (H, W, 3) bytes of an array, a tensor or a Pillow image."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        raise TypeError(f"images must be uint8, 0 to 255, got dtype {pixels.dtype}")
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or pixels.size == 0:
        raise ValueError(f"images must have shape (H, W) or (H, W, 3), got {pixels.shape}")
    return pixels


def shrink(pixels: Pixels, side: int) -> Pixels:
    """At most ``side`` wide and high, in proportion: every pixel the mean of those it replaces."""
    largest = max(pixels.shape[:2])
    if largest <= side:
        return pixels
    means = pixels.astype(np.float64)
    for axis in (0, 1):
        old = pixels.shape[axis]
        edges = np.linspace(0, old, max(1, round(old * side / largest)) + 1).astype(int)
        sums = np.add.reduceat(means, edges[:-1], axis=axis)
        means = sums / np.diff(edges).reshape(-1, *[1] * (means.ndim - axis - 1))
    shrunk: Pixels = means.round().astype(np.uint8)
    return shrunk


def png(pixels: Pixels) -> bytes:
    """The file: 8 bits, grey or RGB; each row as it is, or as the difference from the one above."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = [
        zlib.compress(np.insert(values, 0, kind, axis=1).tobytes(), 9)
        for kind, values in ((0, rows), (2, rows - above))  # modulo 256, as the format has it
    ]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + min(filtered, key=len), b"IEND"]
    return _PNG + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def data_uri(picture: Any, side: int) -> str:
    """A picture as the address that holds it: pixels shrunk to ``side``, as PNG; files as are."""
    if isinstance(picture, (str, PathLike)):
        data = Path(picture).read_bytes()
        kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), None)
        if kind is None:
            raise ValueError(
                f"images must be PNG, JPEG, GIF, WebP or BMP files, got {str(picture)!r}"
            )
    else:
        data, kind = png(shrink(as_pixels(picture), side)), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
