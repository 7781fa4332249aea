"""Pictures and texts of samples, as a page or a figure shows them."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisydml.audit.labels import only_column
from noisydml.functional.checks import require_dense

Pixels = NDArray[np.uint8]

_OVERSHOOT = 0.01  # of resampling, beyond [0, 1]
_PNG = b"\x89PNG\r\n\x1a\n"
# What a file that browsers show begins with.
_TYPES = {
    "png": re.compile(re.escape(_PNG)),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "gif": re.compile(rb"GIF8"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "bmp": re.compile(rb"BM.{4}\0{4}", re.DOTALL),
}


def item_getter(name: str, source: Any, count: int) -> Callable[[int], Any]:
    """From a sample's index to its picture or text; ``source`` is the argument of that name.

    It is a callable, or has ``count`` entries, which are read only where they are asked for.
    """
    if callable(source) and not hasattr(source, "__getitem__"):
        return lambda i: source(i)
    source = only_column(source)
    if hasattr(source, "columns") and len(getattr(source, "shape", ())) == 2:
        raise ValueError(f"{name} must be one column, got a frame of {len(source.columns)}")
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, Tensor):
        require_dense(name, source)
    wrong = isinstance(source, (str, bytes, Set)) or getattr(source, "ndim", 1) == 0
    if wrong or not (indexed or isinstance(source, Iterable)):
        raise TypeError(
            f"{name} must be a callable or have one entry per sample, got {type(source).__name__}"
        )
    entries: Any = source if indexed else list(source)
    if (got := len(entries)) != count:
        raise ValueError(f"{name} must have {count} entries, one per sample, got {got}")
    if hasattr(entries, "iloc"):  # by position, whatever the index says
        entries = entries.iloc
    if hasattr(entries, "to_pylist"):  # of pyarrow
        return lambda i: entries[i].as_py()
    return lambda i: entries[i]


@contextmanager
def of_sample(i: int) -> Iterator[None]:
    """Say of which sample a picture or text is that cannot be shown."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error} (sample {i})") from error


def file_of(picture: Any) -> Path | None:
    """The path that an entry of ``images`` is, or begins with; None for pixels."""
    picture = _first(picture)
    return Path(picture) if isinstance(picture, (str, PathLike)) else None


def as_pixels(picture: Any) -> Pixels:
    """(H, W) or (H, W, 3) bytes, as a person sees them, of an array, a tensor or a Pillow image.

    Of an item of a data set, (image, label), those of the image.
    """
    picture = _first(picture)
    if hasattr(picture, "mode") and hasattr(picture, "convert"):
        pixels = _of_pillow(picture)
    elif isinstance(picture, Tensor):
        require_dense("images", picture)
        picture = picture.detach().cpu()
        pixels = (picture.float() if picture.is_floating_point() else picture).numpy()
    else:
        pixels = np.asarray(picture)
    shape = pixels.shape
    if pixels.dtype.kind not in "biufc":
        raise TypeError(
            "images must be Pillow images, paths of files, arrays or tensors, or begin with one as "
            f"(image, label) does, got {type(picture).__name__}"
        )
    if pixels.ndim == 3 and shape[0] <= 4 and (shape[2] > 4 or isinstance(picture, Tensor)):
        pixels = pixels.transpose(1, 2, 0)  # channels first, as in torch
    if pixels.ndim not in (2, 3) or not 1 <= (*pixels.shape, 1)[2] <= 4 or pixels.size == 0:
        raise ValueError(
            f"images must have shape (H, W), (H, W, C) or (C, H, W), C at most 4, got {shape}"
        )
    pixels = _bytes(pixels)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (2, 4):  # the last is the opacity
        opacity = pixels[:, :, -1:] / 255
        pixels = (opacity * pixels[:, :, :-1] + 255 * (1 - opacity)).round().astype(np.uint8)
    return pixels[:, :, 0] if channels in (1, 2) and pixels.ndim == 3 else pixels


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) and len(item) > 0 else item


def _bytes(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype == np.bool_:
        ink: Pixels = pixels.astype(np.uint8) * np.uint8(255)
        return ink
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return (pixels // 257).astype(np.uint8)
    if pixels.dtype.kind == "f":
        low, high = pixels.min(), pixels.max()
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise ValueError(
                f"images that are floats must be in [0, 1], got {low:.3g} to {high:.3g}; "
                "undo a normalisation"
            )
        scaled: Pixels = (255 * pixels.clip(0, 1)).round().astype(np.uint8)
        return scaled
    if pixels.dtype != np.uint8:
        raise TypeError(
            f"images must be uint8, 0 to 255, or floats in [0, 1], got dtype {pixels.dtype}"
        )
    return pixels


def _of_pillow(image: Any) -> NDArray[Any]:
    """Turned as its EXIF data say, with its palette and its colours."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, whatever the mode has
        return np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode == "La":  # Pillow turns it into nothing else
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.asarray(image)


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
    if (path := file_of(picture)) is not None:
        data = path.read_bytes()
        kind = next((kind for kind, start in _TYPES.items() if start.match(data)), None)
        if kind is None:
            raise ValueError(f"images must be PNG, JPEG, GIF, WebP or BMP files, got {str(path)!r}")
    else:
        data, kind = png(shrink(as_pixels(picture), side)), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
