"""Pictures as files and addresses."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from noisydml.audit.pictures import as_pixels, data_uri, item_getter, png, shrink

RNG = np.random.default_rng(0)


def decoded(file: bytes) -> np.ndarray:
    """By another decoder, to bytes."""
    return (imread(io.BytesIO(file), format="png") * 255).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 9, 3), (64, 64), (40, 1, 3)])
@pytest.mark.parametrize("smooth", [False, True])
def test_png_holds_the_pixels(shape: tuple[int, ...], smooth: bool) -> None:
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    if smooth:  # where differences of rows are shorter
        pixels = (
            np.arange(shape[0])[(...,) + (None,) * (len(shape) - 1)] * 3 + pixels // 64
        ).astype(np.uint8)
    assert np.array_equal(decoded(png(pixels)), pixels)


def test_png_takes_the_shorter_of_its_filters() -> None:
    noise = RNG.integers(0, 256, (1, 200, 3))
    slope = (noise + np.arange(100).reshape(-1, 1, 1)).astype(np.uint8)  # rows differ by 1
    assert len(png(slope)) < 2000
    assert np.array_equal(decoded(png(slope)), slope)


@pytest.mark.parametrize("shape", [(8, 12), (9, 7, 3), (10, 1)])
def test_shrink_takes_means(shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    side = max(shape[:2]) // 2
    small = shrink(pixels, side)
    height, width = (max(1, round(n * side / max(shape[:2]))) for n in shape[:2])
    assert small.shape == (height, width, *shape[2:])
    rows = np.linspace(0, shape[0], height + 1).astype(int)
    columns = np.linspace(0, shape[1], width + 1).astype(int)
    for i in range(height):
        for j in range(width):
            patch = pixels[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            assert np.abs(small[i, j] - patch.mean(axis=(0, 1))).max() <= 0.5 + 1e-9


def test_small_pictures_stay() -> None:
    pixels = RNG.integers(0, 256, (8, 12)).astype(np.uint8)
    assert shrink(pixels, 12) is pixels


def test_what_is_a_picture(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    uri = data_uri(torch.from_numpy(pixels), 100)
    start, data = uri.split(",")
    assert start == "data:image/png;base64"
    assert np.array_equal(decoded(base64.b64decode(data)), pixels)

    file = tmp_path / "picture.bin"  # the name does not count
    file.write_bytes(png(pixels))
    assert data_uri(file, 2) == data_uri(str(file), 2) == uri
    file.write_bytes(b"\xff\xd8\xff and so on")
    assert data_uri(file, 2).startswith("data:image/jpeg;base64,")
    file.write_bytes(b"<svg onload='alert(1)'>")
    with pytest.raises(ValueError, match=r"images must be PNG, JPEG.* files, got .*picture\.bin"):
        data_uri(file, 2)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.full((4, 4), 1.5), ValueError, r"images that are floats .* got 1.5 to 1.5"),
        (np.full((4, 4), np.nan), ValueError, r"got nan to nan"),
        (torch.zeros(4, 4, dtype=torch.int64), TypeError, "uint8, .* got dtype int64"),
        (np.zeros((7, 8, 8), np.uint8), ValueError, r"got \(7, 8, 8\)"),
        (np.zeros((5, 4, 5), np.uint8), ValueError, r"got \(5, 4, 5\)"),
        (np.zeros(4, np.uint8), ValueError, r"got \(4,\)"),
        (np.zeros((0, 4), np.uint8), ValueError, r"got \(0, 4\)"),
        ({"image": 1}, TypeError, "must be Pillow images, paths .* or tensors, .* got dict"),
        (None, TypeError, "must be Pillow images, .* got NoneType"),
        ((None, 3), TypeError, "must be Pillow images, .* got NoneType"),
        (b"\xff\xd8\xff", TypeError, "must be Pillow images, .* got bytes"),
        (np.array(["a"]), TypeError, "must be Pillow images, .* got ndarray"),
    ],
)
def test_what_is_none(picture: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_pixels(picture)


def test_floats_and_channels_first() -> None:
    pixels = RNG.integers(0, 256, (9, 8, 3)).astype(np.uint8)
    tensor = torch.from_numpy(pixels)
    first = tensor.permute(2, 0, 1)
    for picture in (tensor, first, first / 255, first.numpy(), first.double() / 255, (first, 3)):
        assert np.array_equal(as_pixels(picture), pixels)
    assert np.abs(as_pixels(first.bfloat16() / 255).astype(int) - pixels).max() <= 1
    grey = pixels[:, :, 0]
    for picture in (grey[:, :, None], grey[None], torch.from_numpy(grey)[None], grey / 255):
        assert np.array_equal(as_pixels(picture), grey)
    assert np.array_equal(as_pixels(grey > 99), np.where(grey > 99, 255, 0))
    assert np.array_equal(as_pixels(grey.astype(np.uint16) * 257), grey)
    assert np.array_equal(as_pixels(1.001 * np.ones((4, 4))), np.full((4, 4), 255))
    small = torch.rand(3, 3, 3)  # of a tensor the channels are first
    assert np.array_equal(as_pixels(small), (255 * small).round().byte().permute(1, 2, 0).numpy())
    clear = np.dstack([pixels, np.full((9, 8), 0, np.uint8)])
    assert (as_pixels(clear) == 255).all()  # on white


def test_pillow_images_are_seen_as_by_a_person() -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    picture = image_module.fromarray(pixels)
    assert np.array_equal(as_pixels(picture), pixels)
    grey = np.asarray(picture.convert("L"))
    assert np.array_equal(as_pixels(picture.convert("L")), grey)
    few = image_module.fromarray(pixels // 128 * 255)  # colours that a palette has
    assert np.array_equal(as_pixels(few.convert("P")), np.asarray(few))
    assert np.array_equal(as_pixels(few.convert("CMYK")), np.asarray(few))
    assert set(np.unique(as_pixels(picture.convert("1")))) <= {0, 255}
    deep = image_module.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(as_pixels(deep), grey)

    opacity = np.zeros((6, 5), np.uint8)
    opacity[:3] = 255
    half = picture.copy()
    half.putalpha(image_module.fromarray(opacity))
    expected = np.where(opacity[:, :, None] == 255, pixels, 255)
    assert half.mode == "RGBA"
    assert np.array_equal(as_pixels(half), expected)
    assert np.array_equal(as_pixels(half.convert("LA"))[:3, :, 1], grey[:3])
    assert (as_pixels(half.convert("LA"))[3:] == 255).all()
    clear = few.convert("P")
    clear.info["transparency"] = int(np.asarray(clear)[0, 0])
    assert (as_pixels(clear)[0, 0] == 255).all()

    for mode in ("La", "RGBa"):  # colours times the opacity
        assert (as_pixels(half.convert(mode[:-1] + "A").convert(mode))[3:] == 255).all()

    turned = picture.copy()
    turned.getexif()[0x0112] = 6  # to be turned by a quarter
    assert np.array_equal(as_pixels(turned), np.rot90(pixels, -1))


def test_items() -> None:
    array = RNG.integers(0, 256, (3, 2, 2)).astype(np.uint8)
    for source in (array, torch.from_numpy(array), list(array), lambda i: array[i]):
        assert np.array_equal(item_getter("images", source, 3)(2), array[2])
    asked = []

    class Data:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            asked.append(i)
            return array[i], 7

    assert np.array_equal(as_pixels(item_getter("images", Data(), 3)(2)), array[2])
    assert asked == [2]
    assert item_getter("texts", (text for text in "abc"), 3)(1) == "b"
    pd = pytest.importorskip("pandas")
    assert item_getter("texts", pd.Series(["a", "b", "c"], index=[2, 1, 0]), 3)(0) == "a"
    with pytest.raises(ValueError, match="texts must have 4 entries, one per sample, got 3"):
        item_getter("texts", ["a", "b", "c"], 4)
    for wrong in ("abc", 3, {"a", "b", "c"}):
        with pytest.raises(TypeError, match="texts must be a callable or have one entry"):
            item_getter("texts", wrong, 3)


def test_items_of_columns() -> None:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pa = pytest.importorskip("pyarrow")
    columns = {"text": ["a", "b", "c"]}
    for source in (
        pd.DataFrame(columns, index=[2, 1, 0]),
        pl.DataFrame(columns),
        pa.table(columns),
        pa.array(columns["text"]),
        pa.chunked_array([["a"], ["b", "c"]]),
    ):
        item = item_getter("images", source, 3)(0)
        assert type(item) is str
        assert item == "a"
    columns["label"] = ["x", "y", "z"]
    for source in (pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        with pytest.raises(ValueError, match="texts must be one column, got a frame of 2"):
            item_getter("texts", source, 3)
