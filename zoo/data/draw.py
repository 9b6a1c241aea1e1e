"""Scenes to pixels: every object is resampled from its distance fields, so edges are smooth at any resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.data.artwork import ARTWORK, BLOB, EYES, PUPILS, RASTER, REACH, SMILE, Array, Artwork, Field, raster
from zoo.data.scenes import Placed, Scene

PALETTE = {
    "red": (226, 48, 48),
    "orange": (246, 138, 28),
    "yellow": (250, 212, 40),
    "green": (52, 164, 78),
    "blue": (44, 96, 222),
    "purple": (140, 70, 192),
    "pink": (250, 132, 184),
    "black": (40, 40, 46),
}
BACKDROP = {  # top and bottom of a soft vertical gradient
    "white": ((255, 255, 255), (250, 250, 250)),
    "gray": ((186, 188, 193), (176, 178, 184)),
    "cream": ((252, 243, 220), (248, 236, 206)),
    "sky blue": ((150, 208, 246), (178, 222, 250)),
    "mint": ((178, 232, 206), (192, 240, 216)),
    "night": ((20, 24, 58), (36, 42, 88)),
}
ACCENTS = {
    "dark": (52, 48, 58),
    "glass": (222, 240, 250),
    "silver": (205, 208, 214),
    "wood": (134, 92, 60),
    "pollen": (252, 220, 90),
    "rose": (246, 178, 190),
    "milk": (232, 214, 184),
}
INK = np.array((30, 26, 36), np.float32)
LINE = {"cartoon": 0.026, "sketch": 0.03}  # outline width as a share of the picture


@dataclass(frozen=True)
class Figure:
    """A thing that is not of the world: its artwork, and the colours of those paints that are its own, by name."""

    art: Artwork
    paints: Mapping[str, tuple[int, int, int]]


def render(scene: Scene, size: int = 64, figures: Mapping[str, Figure] | None = None) -> NDArray[np.uint8]:
    """Draw a scene as RGB [size, size, 3]. `figures` are things of other shapes than the world's, by their names."""
    top, bottom = (np.array(c, np.float32) for c in BACKDROP[scene.background])
    fade = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    canvas = np.broadcast_to(top + (bottom - top) * fade, (size, size, 3)).copy()
    for thing in scene.objects:
        brush = _Brush(canvas, thing, scene.style, (figures or {}).get(thing.shape))
        brush.paint(scene.face, dark=scene.background == "night")
    return canvas.round().clip(0, 255).astype(np.uint8)


def footprints(scene: Scene, size: int = 64) -> NDArray[np.bool_]:
    """Which pixels each object covers by at least half: [objects, size, size].

    A sketch covers what its outlines enclose. Faces do not count: in a ring they lie in the hole.
    """
    covered = np.zeros((len(scene.objects), size, size), np.float32)
    for cover, thing in zip(covered, scene.objects, strict=True):
        brush = _Brush(cover[..., None], thing, scene.style)
        for part in ARTWORK[thing.shape].parts:
            if not (scene.face and part.yields):
                brush.window[brush.distance(part.field) <= 0] = 1
    return covered > 0


class _Brush:
    """Paints one object on the window of the canvas that it can touch."""

    def __init__(self, canvas: Array, thing: Placed, style: str, figure: Figure | None = None) -> None:
        size = canvas.shape[0]
        self.art = ARTWORK[thing.shape] if figure is None else figure.art
        self.paints = {} if figure is None else figure.paints
        self.thing, self.style, self.size = thing, style, size
        self.scale = thing.extent * size / 2  # pixels a unit of the artwork
        reach = self.scale * REACH
        cx, cy = thing.x * size, thing.y * size
        self.left, self.top = max(0, math.floor(cx - reach)), max(0, math.floor(cy - reach))
        right, bottom = min(size, math.ceil(cx + reach)), min(size, math.ceil(cy + reach))
        self.window = canvas[self.top : bottom, self.left : right]
        self.shape = (right - self.left, bottom - self.top)
        self.behind = self.window.copy()  # what shows through a sketch
        self.line = LINE.get(style, 0.0) * size * max(0.8, min(1.0, thing.extent / 0.4))
        self.colour = np.array(self.paints.get("body") or PALETTE[thing.colour], np.float32)

    def distance(self, field: Field, x: float = 0.0, y: float = 0.0, unit: float = 1.0) -> Array:
        """Signed distance in pixels to a field drawn at (x, y) of the artwork, `unit` its size there."""
        turn, scale = math.radians(self.thing.tilt), self.scale * unit
        cos, sin = math.cos(turn), math.sin(turn)
        centre_x = self.thing.x * self.size + self.scale * (cos * x - sin * y) - self.left
        centre_y = self.thing.y * self.size + self.scale * (sin * x + cos * y) - self.top
        step = RASTER / (2 * REACH * scale)  # raster samples a pixel
        a, b, c, d = cos * step, sin * step, -sin * step, cos * step
        offset = RASTER / 2
        matrix = (a, b, offset - a * centre_x - b * centre_y, c, d, offset - c * centre_x - d * centre_y)
        outside = 2.0
        image = Image.fromarray(raster(field))
        moved = image.transform(
            self.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=outside
        )
        return np.asarray(moved) * scale

    def fill(self, distance: Array, colour: Array, opacity: float = 1.0) -> None:
        cover = np.clip(0.5 - distance, 0, 1)[..., None] * opacity
        self.window += cover * (colour - self.window)

    def tint(self, paint: str) -> Array:
        if paint == "body":
            return self.colour
        if paint in self.paints:
            return np.array(self.paints[paint], np.float32)
        if paint == "shade":
            return self.colour * 0.76 if self.thing.colour != "black" else self.colour + 34
        if paint == "light":
            return self.colour + (255 - self.colour) * 0.5
        if paint == "pollen" and self.thing.colour in ("yellow", "orange"):
            return np.array(ACCENTS["wood"], np.float32)
        if paint == "dark" and self.thing.colour == "black":
            return np.array((88, 86, 96), np.float32)
        return np.array(ACCENTS[paint], np.float32)

    def paint(self, face: bool, dark: bool) -> None:
        """Parts in order, then highlight and face."""
        art = self.art
        for part in art.parts:
            if face and part.yields:
                continue
            distance = self.distance(part.field)
            width = self.line * part.line
            if self.style == "sketch":
                self.fill(distance, self.behind)
                # A part without an outline is a thin stroke: it is its own line.
                self.fill(np.abs(distance + width / 2) - width / 2 if width else distance, self.colour)
                continue
            self.fill(distance, INK if width else self.tint(part.paint))
            if width:
                self.fill(distance + width, self.tint(part.paint))
        if self.style == "cartoon":
            x, y, radius = art.shine
            self.fill(self.distance(BLOB, x, y, radius), np.full(3, 255, np.float32), 0.65)
        if face:
            self.paint_face(*art.face, dark=dark)

    def paint_face(self, x: float, y: float, unit: float, dark: bool) -> None:
        white = np.full(3, 255, np.float32)
        hollow = self.style == "sketch" or self.thing.shape == "ring"
        on_dark = dark if hollow else self.thing.colour == "black" and self.thing.shape not in ("flower", "mushroom")
        self.fill(self.distance(EYES, x, y, unit) - 0.35, INK)
        self.fill(self.distance(EYES, x, y, unit) + 0.25, white)
        self.fill(self.distance(PUPILS, x, y, unit), INK)
        self.fill(self.distance(SMILE, x, y, unit), white if on_dark else INK)
