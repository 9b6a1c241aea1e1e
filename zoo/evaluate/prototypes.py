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
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.draw import PALETTE, render
from zoo.data.scenes import COLOURS, SHAPES, STYLES, Placed, Scene
from zoo.evaluate.foreground import SIDE, Array, backdrop, distance_from, find_blobs

CELLS, MARGIN = 24, 2  # a box is CELLS wide and high on the grid, with MARGIN cells around it
Box: TypeAlias = tuple[float, float, float, float]
GRID = CELLS + 2 * MARGIN
TILTS = (-3.5, 3.5)
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


def on_grid(picture: Array, box: Box, turn: float = 0.0, slant: float = 0.0) -> Array:
    """The part of a picture [64, 64, channels] in and around a box, on the grid [grid, grid, channels].

    `turn` (radians) rotates the box about its centre, `slant` shifts its rows sideways, by so many columns a row.
    """
    left, top, right, bottom = box
    x = (_REACH_X + slant * _REACH_Y) * ((right - left) / CELLS)
    y = _REACH_Y * ((bottom - top) / CELLS)
    cos, sin = np.cos(turn), np.sin(turn)
    return interpolate(
        picture, (left + right) / 2 + cos * x - sin * y - 0.5, (top + bottom) / 2 + sin * x + cos * y - 0.5
    )


def interpolate(picture: Array, columns: Array, rows: Array) -> Array:
    """The values of a picture [height, width, channels] between its pixels; outside of it they fall to zero."""
    height, width, channels = picture.shape
    flat = np.pad(picture, ((1, 1), (1, 1), (0, 0))).reshape(-1, channels)
    columns, rows = np.clip(columns + 1, 0, width + 0.999), np.clip(rows + 1, 0, height + 0.999)
    left, top = columns.astype(np.intp), rows.astype(np.intp)
    across, down = (columns - left)[..., None], (rows - top)[..., None]
    corner = top * (width + 2) + left
    upper = flat[corner] * (1 - across) + flat[corner + 1] * across
    lower = flat[corner + width + 2] * (1 - across) + flat[corner + width + 3] * across
    return (upper * (1 - down) + lower * down).astype(np.float32)


@cache
def prototypes(night: bool) -> Prototypes:
    """All prototypes as they look on light backgrounds, or on the night sky."""
    rows: list[_Row] = []
    for drawing in _drawings():
        rows += _rows(drawing, night)
    kinds, *columns = zip(*rows, strict=True)
    return Prototypes(tuple(kinds), *(np.stack(column).astype(np.float32) for column in columns))


@dataclass(frozen=True)
class _Drawing:
    """An object in the middle of a picture [64, 64]: what its colour and its background add, and for each group of
    colours that share their accents what is there in any case. Faces are drawn otherwise at night where one sees
    through the object: `fixed_at_night`."""

    kind: Kind
    extent: float
    tilt: float
    body: Array
    seen: Array
    fixed: dict[tuple[str, ...], Array]
    fixed_at_night: Array


@cache
def _drawings() -> list[_Drawing]:
    return [
        _draw(Kind(shape, style, face), extent, tilt)
        for shape in SHAPES
        for style in STYLES
        for face in (False, True)
        for extent in (FACE_EXTENTS if face else EXTENTS[style])
        for tilt in TILTS
    ]


def _draw(kind: Kind, extent: float, tilt: float) -> _Drawing:
    def picture(colour: str, background: str) -> Array:
        thing = Placed(kind.shape, colour, 0.5, 0.5, extent, tilt)
        return render(Scene((thing,), background, kind.style, kind.face), SIDE).astype(np.float32)

    def rest(picture: Array, colour: str, background: str) -> Array:
        return picture - body[..., None] * RGB[COLOURS.index(colour)] - seen[..., None] * backdrop(background)

    # Two pictures that differ in both the object's colour and the background tell the shares of both.
    red = picture("red", "white")
    difference = red - picture("blue", "gray")
    colour, ground = RGB[COLOURS.index("red")] - RGB[COLOURS.index("blue")], backdrop("white") - backdrop("gray")
    cc, cg, gg = (colour * colour).sum(), ground @ colour, (ground * ground).sum(-1)
    by_colour, by_ground = difference @ colour, (difference * ground).sum(-1)
    body = (by_colour * gg - by_ground * cg) / (cc * gg - cg * cg)
    seen = (by_ground * cc - by_colour * cg) / (cc * gg - cg * cg)
    fixed = rest(red, "red", "white")
    groups = {g: rest(picture(g[0], "white"), g[0], "white") if g[0] != "red" else fixed for g in _groups(kind)}
    see_through = kind.face and (kind.style == "sketch" or kind.shape == "ring")
    at_night = rest(picture("red", "night"), "red", "night") if see_through else fixed
    return _Drawing(kind, extent, tilt, body, seen, groups, at_night)


def _groups(kind: Kind) -> list[tuple[str, ...]]:
    """The colours in groups that share their accents (see `zoo.data.draw`: pollen, dark parts, shades and smiles)."""
    cold, warm, black = ("red", "green", "blue", "purple", "pink"), ("yellow", "orange"), ("black",)
    if kind.style == "sketch":
        return [(*cold, *warm, *black)]
    groups = [cold, warm] if kind.shape == "flower" else [(*cold, *warm)]
    if kind.face or kind.shape in ("butterfly", "car", "house", "fish"):
        return [*groups, black]
    return [(*groups[0], *black), *groups[1:]]


_Row: TypeAlias = "tuple[Kind, *tuple[NDArray[np.generic], ...]]"


def _rows(drawing: _Drawing, night: bool) -> list[_Row]:
    """The prototypes of a drawing, one for each group of colours."""
    sky = backdrop("night" if night else "white")
    fixed = drawing.fixed_at_night if night else next(iter(drawing.fixed.values()))
    alone = fixed + drawing.body[..., None] * RGB[0] + (drawing.seen[..., None] - 1) * sky
    box = max(find_blobs(distance_from(np.zeros_like(sky), alone)), key=lambda blob: blob.span).box
    left, top, right, bottom = box
    size = np.array((right - left, bottom - top)) / SIDE / drawing.extent
    centre = (0.5 - np.array((left + right, top + bottom)) / 2 / SIDE) / drawing.extent
    rows: list[_Row] = []
    for colours, usual in drawing.fixed.items():
        if night and colours == ("black",):
            continue  # there is none
        accents = fixed if night and colours[0] == "red" else usual
        layers = np.concatenate([drawing.body[..., None], 1 - drawing.seen[..., None], accents], 2)
        layers = on_grid(soften(layers, box), box).reshape(-1, 5)
        allowed = np.array([colour in colours and not (night and colour == "black") for colour in COLOURS])
        tilt = np.array(drawing.tilt, np.float32)
        rows.append((drawing.kind, layers[:, 0], layers[:, 1], layers[:, 2:], allowed, size, centre, tilt))
    return rows
