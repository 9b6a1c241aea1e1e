"""Pictures and masks that a call begins with, brought to one form."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from zoo.arguments import as_images, as_layout, as_mask
from zoo.upright import as_rgb, upright

CLASSES = ("nothing", "star", "circle")
RED, WHITE = (255, 0, 0), (255, 255, 255)


def corner(mode: str, colour: Any, ground: Any) -> Image.Image:
    """A picture 4 wide and 6 high whose upper left quarter has another colour than the rest."""
    picture = Image.new(mode, (4, 6), ground)
    picture.paste(colour, (0, 0, 2, 3))
    return picture


def held(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture as a camera stores it that says how it was held."""
    said = Image.Exif()
    said[ExifTags.Base.Orientation] = orientation
    stored = io.BytesIO()
    picture.save(stored, "PNG", exif=said)
    return Image.open(stored)


def images(given: Any) -> Tensor:
    return as_images(given, None, 1, 1)


def masks(given: Any) -> Tensor:
    return as_mask(given, (4, 6), 1, 1)


def layouts(given: Any) -> Tensor:
    return as_layout(given, CLASSES, None, 1, 1)[:, None]


# Clockwise by 90 degrees is what orientation 6 asks for.
@pytest.mark.parametrize(
    ("brought", "picture"),
    [
        (images, corner("RGB", RED, WHITE)),
        (masks, corner("L", 255, 0)),
        (layouts, corner("L", 1, 2)),
    ],
)
def test_what_a_camera_held_sideways_is_turned_upright(brought: Callable[[Any], Tensor], picture: Image.Image) -> None:
    turned = brought(held(picture, 6))
    assert turned.shape[-2:] == (4, 6)
    assert torch.equal(turned, brought(picture.transpose(Image.Transpose.ROTATE_270)))


def test_a_turned_picture_is_not_turned_again() -> None:
    picture = corner("RGB", RED, WHITE)
    once = upright(held(picture, 3))
    assert upright(once).tobytes() == once.tobytes() == picture.transpose(Image.Transpose.ROTATE_180).tobytes()


@pytest.mark.parametrize("exif", [b"no such thing", b"Exif\0\0nor this"])
def test_a_picture_whose_exif_cannot_be_read_stays_as_it_lies(exif: bytes) -> None:
    picture = corner("RGB", RED, WHITE)
    picture.info["exif"] = exif
    assert as_rgb(picture).tobytes() == picture.tobytes()


def test_damage_is_not_taken_for_unreadable_exif() -> None:
    """PIL tells both as a SyntaxError."""
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)).save(stored, "PNG")
    before, last = stored.getvalue().rsplit(b"IDAT", 1)
    with pytest.raises(SyntaxError, match="broken PNG"):
        as_rgb(Image.open(io.BytesIO(before + b"\0\0\0\0" + last)))


def palette() -> Image.Image:
    """Red, then clear, by number."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = bytes([255, 0])
    return picture


def grey_with_a_clear_shade() -> Image.Image:
    picture = Image.new("L", (2, 1), 100)
    picture.putpixel((1, 0), 7)
    picture.info["transparency"] = 7
    return picture


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(np.array([[[255, 0, 0, 255], [0, 0, 255, 0]]], np.uint8)), [RED, WHITE]),
        (Image.fromarray(np.array([[[0, 0, 0, 51], [255, 0, 0, 51]]], np.uint8)), [(204,) * 3, (255, 204, 204)]),
        (Image.fromarray(np.array([[[100, 255], [7, 0]]], np.uint8), "LA"), [(100,) * 3, WHITE]),
        (palette(), [RED, WHITE]),
        (grey_with_a_clear_shade(), [(100,) * 3, WHITE]),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), [RED, RED]),
        (Image.new("1", (2, 1), 1), [WHITE, WHITE]),
    ],
    ids=["RGBA", "half clear", "LA", "P", "L with tRNS", "CMYK", "1"],
)
def test_what_is_transparent_is_white(picture: Image.Image, expected: list[tuple[int, ...]]) -> None:
    made = as_rgb(picture)
    assert [made.getpixel((x, 0)) for x in range(2)] == expected
    wanted = torch.tensor(expected).T.reshape(1, 3, 1, 2) / 255
    assert torch.allclose(images(picture), wanted)


def test_a_mask_is_its_brightness_whatever_is_transparent() -> None:
    clear = Image.fromarray(np.array([[[255, 255, 255, 0], [0, 0, 0, 255]]], np.uint8))
    assert as_mask(clear, (1, 2), 1, 1).tolist() == [[[[1.0, 0.0]]]]


def test_pictures_are_turned_before_they_are_fitted() -> None:
    made = as_images(held(corner("RGB", RED, WHITE), 6), (2, 3), 1, 1)
    small = corner("RGB", RED, WHITE).transpose(Image.Transpose.ROTATE_270).resize((3, 2), Image.Resampling.LANCZOS)
    assert torch.equal(made, images(small))


@pytest.mark.parametrize(
    ("brought", "what"),
    [(images, "image"), (masks, "mask"), (layouts, "layout")],
)
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("cat.png", "str"),
        (Path("cat.png"), "PosixPath|WindowsPath"),
        (b"PNG", "bytes"),
        (np.zeros((6, 4, 3), np.uint8), "ndarray"),
        ([np.zeros((6, 4, 3), np.uint8)], "ndarray"),
        ([None], "NoneType"),
        ([corner("L", 0, 1), None], "NoneType"),
        (["cat.png"], "str"),
        (3, "int"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named(brought: Callable[[Any], Tensor], what: str, given: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{what} is a PIL picture or a tensor, or a list of them, not ({named}): "):
        brought(given)
