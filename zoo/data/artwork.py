"""The sixteen objects as signed distance fields, so that fills, outlines and faces stay crisp at any size.

An object is a list of parts painted in order. A part is a distance field over the square [-1, 1]^2 (y points down):
negative inside, positive outside, in the same unit. Fields are evaluated once on a fixed raster and resampled when
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Field: TypeAlias = Callable[[Array, Array], Array]

RASTER = 160  # samples a side
REACH = 1.3  # the raster covers [-REACH, REACH], so that outlines around the unit square have room


@dataclass(frozen=True)
class Part:
    """One painted region. `paint` is body, shade, light (made from the object's colour) or the name of a fixed accent.

    `line` is the relative width of its outline in the cartoon and sketch styles; 0 leaves it without one. A part that
    `yields` is left out where a face takes its place.
    """

    paint: str
    field: Field
    line: float = 1.0
    yields: bool = False


@dataclass(frozen=True)
class Artwork:
    """An object: its parts, where its face is (x, y, half width) and where a cartoon highlight is (x, y, radius)."""

    parts: tuple[Part, ...]
    face: tuple[float, float, float]
    shine: tuple[float, float, float]


# --- distance fields -------------------------------------------------------------------------------------------------


def disc(x: float, y: float, rx: float, ry: float | None = None) -> Field:
    """A circle, or an ellipse (approximate distance, exact on the border)."""
    ry = rx if ry is None else ry

    def field(u: Array, v: Array) -> Array:
        a, b = (u - x) / rx, (v - y) / ry
        radius = np.sqrt(a * a + b * b)
        slope = np.sqrt((a / rx) ** 2 + (b / ry) ** 2) / np.maximum(radius, 1e-6)
        return ((radius - 1) / np.maximum(slope, 1e-6)).astype(np.float32)

    return field


def polygon(points: Sequence[tuple[float, float]], rounding: float = 0.0) -> Field:
    """A simple polygon, its corners rounded outwards by `rounding`."""
    corners = np.asarray(points, np.float32)

    def field(u: Array, v: Array) -> Array:
        best = np.full(u.shape, np.inf, np.float32)
        inside = np.zeros(u.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, u - ax, v - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            crosses = (ay > v) != (by > v)
            inside ^= crosses & (px < (v - ay) * ex / (ey if ey else 1e-9))
        distance = np.sqrt(best)
        return (np.where(inside, -distance, distance) - rounding).astype(np.float32)

    return field


def box(left: float, top: float, right: float, bottom: float, rounding: float = 0.0) -> Field:
    """An axis-aligned rectangle whose rounded corners stay inside the given bounds."""
    r = rounding
    return polygon([(left + r, top + r), (right - r, top + r), (right - r, bottom - r), (left + r, bottom - r)], r)


def stroke(points: Sequence[tuple[float, float]], width: float) -> Field:
    """An open line with round ends."""

    def field(u: Array, v: Array) -> Array:
        best = np.full(u.shape, np.inf, np.float32)
        for (ax, ay), (bx, by) in pairwise(points):
            ex, ey = bx - ax, by - ay
            along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, (u - ax - along * ex) ** 2 + (v - ay - along * ey) ** 2)
        return (np.sqrt(best) - width / 2).astype(np.float32)

    return field


def union(*fields: Field) -> Field:
    """Everything inside any of the fields."""
    return lambda u, v: np.minimum.reduce([f(u, v) for f in fields])


def cut(outer: Field, inner: Field) -> Field:
    """What is inside `outer` and outside `inner`."""
    return lambda u, v: np.maximum(outer(u, v), -inner(u, v))


def _polar(count: int, outer: float, inner: float, turn: float = -90.0) -> list[tuple[float, float]]:
    angles = np.radians(turn + np.arange(2 * count) * 180.0 / count)
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [(float(a / 16.8), float((b - 2.5) / 15.4)) for a, b in zip(x, y, strict=True)]


def _petals(count: int, distance: float, radius: float) -> Field:
    angles = np.radians(-90 + np.arange(count) * 360 / count)
    return union(*[disc(float(distance * np.cos(a)), float(distance * np.sin(a)), radius) for a in angles])


# --- the objects -----------------------------------------------------------------------------------------------------

ARTWORK: dict[str, Artwork] = {
    "circle": Artwork((Part("body", disc(0, 0, 0.97)),), (0, 0.05, 0.52), (-0.38, -0.42, 0.2)),
    "square": Artwork((Part("body", box(-0.88, -0.88, 0.88, 0.88, 0.1)),), (0, 0.05, 0.52), (-0.5, -0.52, 0.18)),
    "triangle": Artwork(
        (Part("body", polygon([(0, -0.84), (0.86, 0.72), (-0.86, 0.72)], 0.1)),), (0, 0.28, 0.42), (-0.12, -0.34, 0.13)
    ),
    "star": Artwork((Part("body", polygon(_polar(5, 0.95, 0.44), 0.06)),), (0, 0.06, 0.38), (-0.06, -0.52, 0.12)),
    "heart": Artwork((Part("body", polygon(_heart())),), (0, -0.22, 0.46), (-0.5, -0.55, 0.17)),
    "ring": Artwork((Part("body", cut(disc(0, 0, 0.97), disc(0, 0, 0.56))),), (0, 0.02, 0.36), (-0.52, -0.55, 0.11)),
    "cross": Artwork(
        (Part("body", union(box(-0.34, -0.95, 0.34, 0.95, 0.08), box(-0.95, -0.34, 0.95, 0.34, 0.08))),),
        (0, 0.02, 0.42),
        (-0.12, -0.66, 0.11),
    ),
    "moon": Artwork(
        (Part("body", cut(disc(0, 0, 0.97), disc(0.55, -0.18, 0.78))),), (-0.42, 0.34, 0.34), (-0.6, -0.25, 0.11)
    ),
    "butterfly": Artwork(
        (
            Part("dark", stroke([(-0.04, -0.3), (-0.14, -0.7), (-0.3, -0.9)], 0.09), 0),
            Part("dark", stroke([(0.04, -0.3), (0.14, -0.7), (0.3, -0.9)], 0.09), 0),
            Part(
                "body",
                union(
                    disc(-0.54, -0.26, 0.43, 0.47),
                    disc(0.54, -0.26, 0.43, 0.47),
                    disc(-0.42, 0.47, 0.36, 0.4),
                    disc(0.42, 0.47, 0.36, 0.4),
                ),
            ),
            Part("light", union(disc(-0.62, -0.3, 0.19), disc(0.62, -0.3, 0.19)), 0.6),
            Part("light", union(disc(-0.46, 0.52, 0.14), disc(0.46, 0.52, 0.14)), 0.6),
            Part("dark", disc(0, 0.08, 0.12, 0.6), 0, yields=True),
        ),
        (0, -0.02, 0.5),
        (-0.3, -0.55, 0.09),
    ),
    "car": Artwork(
        (
            Part("body", polygon([(-0.5, -0.5), (0.3, -0.5), (0.6, -0.02), (-0.68, -0.02)], 0.1)),
            Part("glass", polygon([(-0.44, -0.4), (-0.1, -0.4), (-0.1, -0.06), (-0.56, -0.06)], 0.03), 0.6),
            Part("glass", polygon([(0.06, -0.4), (0.26, -0.4), (0.46, -0.06), (0.06, -0.06)], 0.03), 0.6),
            Part("body", box(-0.97, -0.08, 0.97, 0.5, 0.2)),
            Part("dark", union(disc(-0.52, 0.5, 0.25), disc(0.52, 0.5, 0.25)), 0.6),
            Part("silver", union(disc(-0.52, 0.5, 0.11), disc(0.52, 0.5, 0.11)), 0),
        ),
        (0.0, 0.16, 0.42),
        (-0.76, 0.06, 0.08),
    ),
    "house": Artwork(
        (
            Part("body", box(-0.72, -0.2, 0.72, 0.92, 0.05)),
            Part("shade", polygon([(0, -0.88), (0.92, -0.16), (-0.92, -0.16)], 0.06)),
            Part("wood", box(-0.18, 0.34, 0.18, 0.92, 0.04), 0.6, yields=True),
            Part(
                "glass", union(box(-0.58, 0.06, -0.28, 0.34, 0.03), box(0.28, 0.06, 0.58, 0.34, 0.03)), 0.6, yields=True
            ),
        ),
        (0, 0.3, 0.46),
        (-0.3, -0.42, 0.09),
    ),
    "tree": Artwork(
        (
            Part("wood", box(-0.16, 0.2, 0.16, 0.96, 0.05), 0.8),
            Part(
                "body",
                union(disc(0, -0.46, 0.5), disc(-0.42, -0.02, 0.44), disc(0.42, -0.02, 0.44), disc(0, 0.06, 0.42)),
            ),
        ),
        (0, -0.14, 0.44),
        (-0.2, -0.62, 0.14),
    ),
    "flower": Artwork(
        (Part("body", _petals(6, 0.58, 0.38)), Part("pollen", disc(0, 0, 0.36), 0.8)),
        (0, 0.0, 0.34),
        (-0.05, -0.72, 0.1),
    ),
    "fish": Artwork(
        (
            Part("shade", polygon([(0.42, 0.0), (0.9, -0.42), (0.82, 0.0), (0.9, 0.42)], 0.07)),
            Part("shade", polygon([(-0.3, -0.4), (0.18, -0.68), (0.3, -0.3)], 0.06)),
            Part("body", disc(-0.2, 0.02, 0.77, 0.5)),
            Part("shade", stroke([(-0.08, -0.3), (0.03, -0.12), (0.05, 0.1), (-0.04, 0.34)], 0.07), 0),
        ),
        (-0.48, 0.02, 0.34),
        (-0.42, -0.26, 0.1),
    ),
    "cat": Artwork(
        (
            Part("body", stroke([(0.36, 0.8), (0.58, 0.8), (0.74, 0.7), (0.82, 0.53), (0.81, 0.35), (0.72, 0.2)], 0.2)),
            Part("body", disc(0, 0.5, 0.52, 0.46)),
            Part(
                "body",
                union(
                    disc(0, -0.32, 0.56, 0.5),
                    polygon([(-0.5, -0.88), (-0.5, -0.42), (-0.12, -0.68)], 0.06),
                    polygon([(0.5, -0.88), (0.5, -0.42), (0.12, -0.68)], 0.06),
                ),
            ),
            Part(
                "rose",
                union(
                    polygon([(-0.44, -0.76), (-0.44, -0.56), (-0.26, -0.66)], 0.02),
                    polygon([(0.44, -0.76), (0.44, -0.56), (0.26, -0.66)], 0.02),
                ),
                0,
            ),
        ),
        (0, -0.28, 0.42),
        (-0.28, 0.3, 0.11),
    ),
    "mushroom": Artwork(
        (
            Part("milk", box(-0.4, 0.0, 0.4, 0.95, 0.2)),
            Part("body", cut(disc(0, 0.16, 0.97, 1.06), box(-1.2, 0.2, 1.2, 1.6))),
            Part("milk", union(disc(-0.46, -0.24, 0.17), disc(0.1, -0.5, 0.19), disc(0.56, -0.12, 0.14)), 0.6),
        ),
        (0, 0.5, 0.34),
        (-0.3, -0.6, 0.09),
    ),
}

EYES = union(disc(-0.55, -0.2, 0.33, 0.4), disc(0.55, -0.2, 0.33, 0.4))
PUPILS = union(disc(-0.5, -0.14, 0.2, 0.26), disc(0.5, -0.14, 0.2, 0.26))
SMILE = stroke([(0.5 * np.sin(a), 0.2 + 0.42 * np.cos(a)) for a in np.linspace(-1.25, 1.25, 9)], 0.19)
BLOB = disc(0, 0, 1.0, 0.75)


@cache
def raster(field: Field) -> Array:
    """The field on a RASTER x RASTER grid over [-REACH, REACH]^2, row = y."""
    ticks = ((np.arange(RASTER, dtype=np.float32) + 0.5) / RASTER * 2 - 1) * REACH
    u, v = np.meshgrid(ticks, ticks)
    return field(u.astype(np.float32), v.astype(np.float32)).astype(np.float32)
