"""How every object looks in every style, with its colour left open: what a blob is compared with.

A prototype is a drawn object brought to a grid by its own box. Drawing is linear in the object's colour c and in the
background b, so a few pictures tell each pixel's shares: pixel = fixed + body * c + (1 - covered) * b. A picture minus
its background is then `fixed - covered * b + body * c`, and the best c, or the cost of a given one, is in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from zoo.data.draw import PALETTE, render
from zoo.data.scenes import COLOURS, SHAPES, STYLES, Placed, Scene
from zoo.evaluate.foreground import SIDE, Array, backdrop, distance_from, find_blobs

CELLS, MARGIN = 24, 2  # a box is CELLS wide and high on the grid, with MARGIN cells around it
Box: TypeAlias = tuple[float, float, float, float]
GRID = CELLS + 2 * MARGIN
TILTS = (-4.5, 0.0, 4.5)
EXTENTS = {"plain": (0.33, 0.56), "cartoon": (0.31, 0.38, 0.48, 0.66), "sketch": (0.31, 0.38, 0.48, 0.66)}
FACE_EXTENTS = (0.43, 0.54, 0.68)
BLUR = 0.66
_REACH_X, _REACH_Y = np.meshgrid(*(np.arange(GRID, dtype=np.float32) + 0.5 - GRID / 2,) * 2)
RGB = np.array([PALETTE[c] for c in COLOURS], np.float32)


@dataclass(frozen=True)
class Kind:
    """What a prototype shows."""

    shape: str
    style: str
    face: bool


@dataclass(frozen=True)
class Prototypes:
    """n prototypes on the grid: body and covered [n, grid^2], fixed [n, grid^2, 3] and what is known of each.

    `allowed` [n, colours] says for which colours the prototype holds (black and warm ones have accents of their own).
    `size` [n, 2] is the width and height of the box, `centre` [n, 2] the object's centre from the box's, both as shares
    of the object's extent; `tilt` [n] in degrees.
    """

    kinds: tuple[Kind, ...]
    body: Array
    covered: Array
    fixed: Array
    allowed: Array
    size: Array
    centre: Array
    tilt: Array


def soften(picture: Array, box: Box) -> Array:
    """The picture blurred by two thirds of a cell: lines survive `on_grid`, and small shifts cost little."""
    left, top, right, bottom = box
    cell = max(right - left, bottom - top) / CELLS
    return ndimage.gaussian_filter(picture, (BLUR * cell, BLUR * cell, 0), truncate=2.5)


def on_grid(picture: Array, box: Box, turn: float = 0.0) -> Array:
    """The part of a picture [64, 64, channels] in and around a box, on the grid [grid, grid, channels].

    `turn` (radians) rotates the box about its centre.
    """
    left, top, right, bottom = box
    x, y = _REACH_X * ((right - left) / CELLS), _REACH_Y * ((bottom - top) / CELLS)
    cos, sin = np.cos(turn), np.sin(turn)
    columns = (left + right) / 2 + cos * x - sin * y - 0.5
    rows = (top + bottom) / 2 + sin * x + cos * y - 0.5
    return np.stack(
        [ndimage.map_coordinates(c, (rows, columns), order=1, mode="constant") for c in np.moveaxis(picture, 2, 0)], -1
    )


@cache
def prototypes(night: bool) -> Prototypes:
    """All prototypes as they look on light backgrounds, or on the night sky."""
    rows = []
    for shape in SHAPES:
        for style in STYLES:
            for face in (False, True):
                for extent in FACE_EXTENTS if face else EXTENTS[style]:
                    for tilt in TILTS:
                        rows += _draw(Kind(shape, style, face), extent, tilt, night)
    kinds, *columns = zip(*rows, strict=True)
    return Prototypes(tuple(kinds), *(np.stack(column).astype(np.float32) for column in columns))


def _draw(kind: Kind, extent: float, tilt: float, night: bool) -> list[tuple[object, ...]]:
    """The prototypes of one drawing: for most colours and, where they differ, for black and for yellow and orange."""

    def picture(colour: str, background: str) -> Array:
        thing = Placed(kind.shape, colour, 0.5, 0.5, extent, tilt)
        return render(Scene((thing,), background, kind.style, kind.face), SIDE).astype(np.float32)

    def share(difference: Array, direction: Array) -> Array:
        return (difference * direction).sum(-1) / (direction * direction).sum(-1)

    home = "night" if night else "white"
    sky = backdrop(home)
    red, blue = picture("red", home), picture("blue", home)
    body = share(red - blue, np.broadcast_to(RGB[0] - RGB[COLOURS.index("blue")], sky.shape))
    seen = share(picture("red", "white") - picture("red", "gray"), backdrop("white") - backdrop("gray"))
    drawn = find_blobs(distance_from(sky, red))
    box = max(drawn, key=lambda blob: blob.span).box
    left, top, right, bottom = box
    size = np.array((right - left, bottom - top)) / SIDE / extent
    centre = (0.5 - np.array((left + right, top + bottom)) / 2 / SIDE) / extent
    shares = on_grid(soften(np.stack((body, 1 - seen), -1), box), box).reshape(-1, 2)

    def prototype(colours: tuple[str, ...]) -> tuple[object, ...]:
        index = COLOURS.index(colours[0])
        fixed = picture(colours[0], home) - body[..., None] * RGB[index] - seen[..., None] * sky
        allowed = np.array([c in colours for c in COLOURS])
        return (
            kind,
            shares[:, 0],
            shares[:, 1],
            on_grid(soften(fixed, box), box).reshape(-1, 3),
            allowed,
            size,
            centre,
            np.array(tilt),
        )

    usual = ("red", "green", "blue", "purple", "pink")
    warm = ("yellow", "orange")
    groups = [usual, warm] if kind.shape == "flower" and kind.style != "sketch" else [usual + warm]
    if not night:
        groups = [*groups, ("black",)] if kind.style != "sketch" else [(*groups[0], "black")]
    return [prototype(group) for group in groups]
