"""Is a face drawn as a face? At full size, where the fit of whole objects sees eyes as a few cells.

Eyes and smile are drawn where the fitted object has them, a little smaller and larger too, and each is looked for close
by. What counts is how alike they are in light and dark, not in place: a crooked face is whole, a smeared one is not.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from zoo.data.artwork import ARTWORK, EYES, SMILE
from zoo.data.draw import Figure, render
from zoo.data.scenes import Placed, Scene
from zoo.evaluate.foreground import SIDE, Array, Mask
from zoo.evaluate.prototypes import interpolate

if TYPE_CHECKING:
    from zoo.evaluate.fit import Fit

SCALES = (0.85, 1.0, 1.18)
BLURS = (0.0, 0.7)  # pixels
REACH, STEPS = 2.5, 2  # pixels to every side, and places looked at to a pixel
LIGHT = np.array((0.299, 0.587, 0.114), np.float32)
_Y, _X = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5


def likeness(pixels: Array, background: str, fit: Fit) -> float:
    """How alike eyes and smile are to those that are drawn, as correlation: 1 is the same.

    `pixels` is the picture [64, 64, 3] in 0..255, `fit` an object in it that has a face.
    """
    light = pixels @ LIGHT
    found: dict[str, float] = {}
    for scale in SCALES:
        drawn = _drawn(background, fit, scale) @ LIGHT
        parts = {name: where for name, where in _parts(fit, scale).items() if where.sum() > 2}
        for blur in BLURS:
            soft = ndimage.gaussian_filter(drawn, blur)
            for name, where in parts.items():
                found[name] = max(found.get(name, -1.0), _best(light, soft, where))
    return float(np.mean([*found.values()])) if found else 0.0


def _drawn(background: str, fit: Fit, scale: float) -> Array:
    """The object as it would be drawn in its place, its face so much larger."""
    kind, art = fit.kind, ARTWORK[fit.kind.shape]
    x, y, unit = art.face
    red, green, blue = (int(value) for value in fit.tint.clip(0, 255))
    figure = Figure(replace(art, face=(x, y, unit * scale)), {"body": (red, green, blue)})
    thing = Placed(kind.shape, fit.colour, fit.x, fit.y, fit.extent, fit.tilt)
    return render(Scene((thing,), background, kind.style, True), SIDE, {kind.shape: figure}).astype(np.float32)


def _parts(fit: Fit, scale: float) -> dict[str, Mask]:
    """The pixels in and next to each eye and the smile."""
    x, y, unit = ARTWORK[fit.kind.shape].face
    size, turn = fit.extent * SIDE / 2, np.radians(fit.tilt)
    right, down = (_X - fit.x * SIDE) / size, (_Y - fit.y * SIDE) / size
    u = (np.cos(turn) * right + np.sin(turn) * down - x) / (unit * scale)
    v = (np.cos(turn) * down - np.sin(turn) * right - y) / (unit * scale)
    pixel = 1 / (unit * scale * size)
    eyes, smile = EYES(u, v) < pixel, SMILE(u, v) < pixel / 2
    return {"left": eyes & (u < 0), "right": eyes & (u >= 0), "smile": smile & ~eyes}


def _best(light: Array, drawn: Array, where: Mask) -> float:
    """The highest correlation between what is drawn somewhere and what is seen at most `REACH` pixels away."""
    rows, columns = np.nonzero(where)
    template = drawn[rows, columns]
    template = template - template.mean()
    moves = np.arange(-REACH * STEPS, REACH * STEPS + 1) / STEPS
    down, across = np.array([*product(moves, moves)], np.float32).T
    places = ((ticks + move[:, None]).clip(0, SIDE - 1) for ticks, move in ((columns, across), (rows, down)))
    seen = interpolate(light[..., None], *places)[..., 0]
    seen = seen - seen.mean(1, keepdims=True)
    return float((seen @ template / (np.linalg.norm(seen, axis=1) * np.linalg.norm(template) + 1e-3)).max())
