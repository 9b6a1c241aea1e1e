"""Pictures spoilt on purpose: what a checker must refuse, made from scenes whose full description is known.

Defects leave no whole object or one too many; blemishes leave what was said, badly drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.draw import render
from zoo.data.scenes import COLOURS, INDISTINCT, SHAPES, Placed, Scene

Pixels = NDArray[np.uint8]
Rng = np.random.Generator
Spoil = Callable[[Scene, Rng], Pixels]


def two_coloured(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """One object half in another colour: divided by a line that leaves a third of what is coloured on either side."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    other = _recoloured(thing, scene.background, rng)
    changed = replace(scene, objects=(*scene.objects[:index], other, *scene.objects[index + 1 :]))
    before, after = render(scene, size), render(changed, size)
    coloured = np.abs(before.astype(np.int32) - after).max(2) > 24
    while True:
        side = _side(thing, rng, size) > rng.uniform(-0.25, 0.25) * thing.extent
        if 1 / 3 < side[coloured].mean() < 2 / 3:
            return np.where((side & _around(thing, size))[..., None], after, before)


def melted(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """Two objects in one: half of each joined in one place, or one drawn half over the other."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    shape = str(rng.choice([s for s in SHAPES if s != thing.shape]))
    colour = thing.colour if rng.random() < 0.5 else _recoloured(thing, scene.background, rng).colour
    if rng.random() < 0.5:
        other = replace(thing, shape=shape, colour=colour)
        changed = replace(scene, objects=(*scene.objects[:index], other, *scene.objects[index + 1 :]))
        side = _side(thing, rng, size) > 0
        return np.where((side & _around(thing, size))[..., None], render(changed, size), render(scene, size))
    angle, away = rng.uniform(0, 2 * np.pi), thing.extent * rng.uniform(0.35, 0.6)
    half = thing.extent / 2
    x, y = (
        float(np.clip(v + away * d, half, 1 - half)) for v, d in ((thing.x, np.cos(angle)), (thing.y, np.sin(angle)))
    )
    if np.hypot(x - thing.x, y - thing.y) < 0.3 * thing.extent:  # pushed back by the border: go the other way
        x, y = (float(np.clip(2 * a - b, half, 1 - half)) for a, b in ((thing.x, x), (thing.y, y)))
        x, y = (
            (x, y)
            if np.hypot(x - thing.x, y - thing.y) >= 0.3 * thing.extent
            else (thing.x, y + (away if y < 0.5 else -away))
        )
    return render(replace(scene, objects=(*scene.objects, Placed(shape, colour, x, y, thing.extent))), size)


def cut(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """One object of which a third to three fifths are missing, from one side or as a band through its middle."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    without = replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])
    side = _side(thing, rng, size) / thing.extent
    missing = side > rng.uniform(-0.1, 0.15) if rng.random() < 0.67 else np.abs(side) < rng.uniform(0.13, 0.2)
    return np.where((missing & _around(thing, size))[..., None], render(without, size), render(scene, size))


def stray(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """A further object, smaller than any that belongs, where there is room."""
    for extent in (*rng.uniform(0.14, 0.28, 3), *(0.13,) * 5):
        for x, y in rng.uniform(extent / 2 + 0.02, 1 - extent / 2 - 0.02, (40, 2)):
            if all(max(abs(x - o.x), abs(y - o.y)) > (extent + o.extent) / 2 + 0.03 for o in scene.objects):
                colour = str(rng.choice([c for c in COLOURS if (c, scene.background) not in INDISTINCT]))
                extra = Placed(str(rng.choice(SHAPES)), colour, float(x), float(y), float(extent))
                return (
                    render(
                        replace(scene, face=False, objects=(extra,)),
                        size,
                    )
                    if not scene.objects
                    else _with(scene, extra, size)
                )
    raise ValueError("the scene has no room for a stray object")


def _with(scene: Scene, extra: Placed, size: int) -> Pixels:
    """The scene and one more object without a face (it is too small for one)."""
    alone = render(replace(scene, objects=(extra,), face=False), size)
    return np.where(_around(extra, size, 0.02)[..., None], alone, render(scene, size))


DEFECTS: dict[str, Spoil] = {
    "half in another colour": two_coloured,
    "two melted into one": melted,
    "cut or fragmentary": cut,
    "stray extra": stray,
}


NEIGHBOURS = {
    "red": ("orange",),
    "orange": ("red", "yellow"),
    "yellow": ("orange",),
    "green": ("blue", "yellow"),
    "blue": ("green", "purple"),
    "purple": ("blue", "pink"),
    "pink": ("purple", "orange"),
}
PATCH, BLEND = 0.25, 0.6  # radius of a patch of another hue, as a share of its object; how much of it is that hue
SMEAR, SMEAR_OVER = 2.5, 1.5  # pixels of 64 by which a smeared face is moved, and over which that changes


def smeared(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """One face whose eyes and smile run into each other. Raises ValueError where there is no face."""
    if not scene.face or not scene.objects:
        raise ValueError("the scene has no face to smear")
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    picture, bare = render(scene, size), render(replace(scene, face=False), size)
    face = (np.abs(picture.astype(np.int32) - bare).max(2) > 24) & _around(thing, size)
    scale = size / 64
    moves = [ndimage.gaussian_filter(rng.normal(0, 1, face.shape), SMEAR_OVER * scale) for _ in range(2)]
    rows, columns = (
        ticks + SMEAR * scale * move / move.std() for ticks, move in zip(np.indices(face.shape), moves, strict=True)
    )
    smear = [ndimage.map_coordinates(picture[..., c], (rows, columns), order=1, mode="nearest") for c in range(3)]
    return np.where(ndimage.binary_dilation(face)[..., None], np.stack(smear, 2), picture)


def patchy(scene: Scene, rng: Rng, size: int = 64) -> Pixels:
    """One object with a soft patch of a neighbouring hue. Raises ValueError where all are black."""
    hued = [index for index, thing in enumerate(scene.objects) if thing.colour in NEIGHBOURS]
    if not hued:
        raise ValueError("the scene has no object of a hue")
    index = int(rng.choice(hued))
    thing = scene.objects[index]
    other = replace(thing, colour=str(rng.choice(NEIGHBOURS[thing.colour])))
    before = render(scene, size).astype(np.float32)
    changed = replace(scene, objects=(*scene.objects[:index], other, *scene.objects[index + 1 :]))
    after = render(changed, size).astype(np.float32)
    coloured = np.argwhere(np.abs(before - after).max(2) > 24)
    row, column = coloured[int(rng.integers(len(coloured)))]
    x, y = _grid(size)
    away = np.hypot(x - (column + 0.5) / size, y - (row + 0.5) / size) / (PATCH * thing.extent)
    share = BLEND * np.clip(1.5 - away, 0, 1)[..., None]
    return (before + share * (after - before)).round().astype(np.uint8)


BLEMISHES: dict[str, Spoil] = {"a smeared face": smeared, "a patch of another hue": patchy}


def _recoloured(thing: Placed, background: str, rng: Rng) -> Placed:
    others = [c for c in COLOURS if c != thing.colour and (c, background) not in INDISTINCT]
    return replace(thing, colour=str(rng.choice(others)))


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ticks = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(ticks, ticks)
    return x, y


def _side(thing: Placed, rng: Rng, size: int) -> NDArray[np.float64]:
    """Signed distance from a random line through the object's middle, mostly upright or level."""
    angle = rng.choice([0.0, 0.5, 1.0, 1.5]) * np.pi + rng.uniform(-0.3, 0.3)
    x, y = _grid(size)
    return (x - thing.x) * np.cos(angle) + (y - thing.y) * np.sin(angle)


def _around(thing: Placed, size: int, margin: float = 0.017) -> NDArray[np.bool_]:
    x, y = _grid(size)
    reach = thing.extent / 2 + margin
    return (np.abs(x - thing.x) < reach) & (np.abs(y - thing.y) < reach)
