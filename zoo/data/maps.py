"""Semantic maps of scenes: which class every pixel is of, as a picture that can be painted by hand.

A map is [height, width] of class numbers: 0 is the background, the others are the shapes in their order. It says what
goes where; colours, background, style and faces are left to the prompt.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.data.draw import footprints
from zoo.data.scenes import SHAPES, Scene

CLASSES = ("background", *SHAPES)


def draw_map(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The map of a scene, [size, size]."""
    painted = np.zeros((size, size), np.uint8)
    for cover, thing in zip(footprints(scene, size), scene.objects, strict=True):
        painted[cover] = CLASSES.index(thing.shape)
    return painted


def as_picture(painted: NDArray[np.uint8]) -> Image.Image:
    """A map [height, width] as a picture that shows each class in a colour of its own.

    Its pixels are still class numbers (a palette gives the colours), so that it can be saved, looked at, painted on in
    an editor that keeps palettes, and given back.
    """
    picture = Image.fromarray(painted)
    picture.putpalette([level for number in range(len(CLASSES)) for level in _colour(number)])
    return picture


def _colour(number: int) -> tuple[int, int, int]:
    """Light gray for the background, and hues that go around by the golden ratio, so that neighbours differ."""
    if number == 0:
        return 232, 232, 232
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.9 if number % 2 else 0.6)
    return round(255 * red), round(255 * green), round(255 * blue)
