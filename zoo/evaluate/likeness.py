"""Is a particular thing in this picture? Read from its pixels alone: outline and colours together.

Each thing in a picture is compared with drawings of the one that is looked for, brought to a grid by its box as the
scene checker does, and moved, stretched and turned into place; what remains unexplained decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.data.draw import Figure, render
from zoo.data.scenes import Placed, Scene
from zoo.evaluate.checker import LEAST_SPAN
from zoo.evaluate.foreground import SIDE, Array, Blob, as_pixels, distance_from, find_background, find_blobs, split
from zoo.evaluate.prototypes import CELLS, GRID, on_grid, soften

if TYPE_CHECKING:
    from torch import Tensor

Pixels: TypeAlias = NDArray[np.uint8]

EXTENTS, TILTS = (0.36, 0.48, 0.62, 0.78), (-5.0, 0.0, 5.0)
CANDIDATES, ROUNDS = 3, 4
PROBE = 60.0  # RGB by which a paint is changed to see where it is
CUTS = ((0.25, 0), (0.4, 0), (0.55, 0), (0.5, 2))  # where things that touch are cut: see `foreground.split`
RESISTANCE = np.array((100, 100, 1e4, 1e4, 4e4))
OUTLINE = "outline"  # the flaw of what is not shaped like it
_X, _Y = np.meshgrid(*(np.arange(GRID, dtype=np.float32) + 0.5 - GRID / 2,) * 2)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked for: a figure, the styles that show what it is, and how far a sighting may be from it.

    outline: share of it that may be left unexplained. colours: RGB distance that each of its paints may be off; these
    have a colour in the figure. flaws: what it is called if one is further off. rivals: what it may be mistaken for;
    what one of them explains better is not the subject.
    """

    name: str
    figure: Figure
    styles: tuple[str, ...]
    outline: float
    colours: Mapping[str, float]
    flaws: Mapping[str, str]
    rivals: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class Sighting:
    """A thing that may be the subject: where it is (shares of the picture), in which style, and how far from being it.

    `error` is the share of it that the best-fitting drawing leaves unexplained: 0 is the subject itself, 1 has nothing
    of it. `colours_off` is how far each of its paints is from the subject's, in RGB.
    """

    subject: Subject
    x: float
    y: float
    extent: float
    style: str
    error: float
    colours_off: dict[str, float]
    rival: str | None = None  # which explains it better, if one does

    @property
    def flaws(self) -> tuple[str, ...]:
        """What of outline and colours is not the subject's."""
        wanted = self.subject
        found = [OUTLINE] if self.error > wanted.outline else []
        found += [wanted.flaws[paint] for paint, most in wanted.colours.items() if self.colours_off[paint] > most]
        found += [] if self.rival is None else [self.rival]
        return tuple(dict.fromkeys(found))

    @property
    def ok(self) -> bool:
        return not self.flaws


@dataclass(frozen=True)
class _Template:
    """A drawn subject on the grid: pixel = fixed + (1 - covered) * background.

    `paints` [grid, grid, paints] is the share of each of its telling paints in a pixel.
    """

    style: str
    fixed: Array
    covered: Array
    paints: Array
    share: float  # extent of the subject as a share of its box's width


def sightings(picture: Pixels | Array | Tensor, subject: Subject) -> list[Sighting]:
    """Every thing in a picture (shapes and ranges as `as_pixels`) as the subject, the likeliest first."""
    pixels = as_pixels(picture)
    _, background = find_background(pixels)
    distance = distance_from(background, pixels)
    blobs = [blob for blob in find_blobs(distance) if blob.span >= LEAST_SPAN]
    found: list[Sighting] = []
    for blob in blobs:
        others = [other for other in blobs if other is not blob]
        seen = [_compare(pixels, background, blob, others, subject)]
        for share, peel in () if seen[0].ok or seen[0].rival else CUTS:
            parts = split(blob, distance, share, peel)
            if len(parts) > 1:
                apart = [
                    _compare(pixels, background, part, [*others, *(p for p in parts if p is not part)], subject)
                    for part in parts
                    if part.span >= LEAST_SPAN
                ]
                if any(one.ok for one in apart):
                    seen = apart
                    break
        found += seen
    return sorted(found, key=lambda one: (not one.ok, one.error))


@cache
def _templates(subject: Subject) -> tuple[_Template, ...]:
    return tuple(
        _template(subject, style, extent, tilt) for style in subject.styles for extent in EXTENTS for tilt in TILTS
    )


def _template(subject: Subject, style: str, extent: float, tilt: float) -> _Template:
    figure = subject.figure

    def drawn(ground: str, figure: Figure) -> Array:
        scene = Scene((Placed(subject.name, "red", 0.5, 0.5, extent, tilt),), ground, style, False)
        return render(scene, SIDE, {subject.name: figure}).astype(np.float32)

    light, dark, on_light = _empty("white"), _empty("night"), drawn("white", figure)
    seen = ((on_light - drawn("night", figure)) / (light - dark)).mean(2, keepdims=True).clip(0, 1)
    shares = []
    for paint in subject.colours:
        red, green, blue = figure.paints[paint]
        probe = PROBE if green < 128 else -PROBE
        other = Figure(figure.art, {**figure.paints, paint: (red, int(green + probe), blue)})
        shares.append((drawn("white", other) - on_light)[..., 1:2] / probe)
    layers = np.concatenate([on_light - seen * light, 1 - seen, *shares], 2)
    box = max(find_blobs(distance_from(light, on_light)), key=lambda blob: blob.span).box
    grid = on_grid(soften(layers, box), box)
    return _Template(style, grid[..., :3], grid[..., 3:4], grid[..., 4:], extent * SIDE / (box[2] - box[0]))


@cache
def _empty(ground: str) -> Array:
    return render(Scene((), ground, "plain", False), SIDE).astype(np.float32)


def _compare(pixels: Array, background: Array, blob: Blob, others: list[Blob], subject: Subject) -> Sighting:
    elsewhere = np.zeros((SIDE, SIDE), bool)
    for other in others:
        elsewhere |= other.mask
    difference = soften((pixels - background) * ~elsewhere[..., None], blob.box)
    behind = background[blob.mask].mean(0)
    seen = _fit(difference, behind, blob, subject)
    if seen.ok:
        for rival in subject.rivals:
            if _fit(difference, behind, blob, rival).error < seen.error:
                return replace(seen, rival=rival.name)
    return seen


def _fit(difference: Array, behind: Array, blob: Blob, subject: Subject) -> Sighting:
    patch = on_grid(difference, blob.box)
    templates = _templates(subject)
    models = [template.fixed - template.covered * behind for template in templates]
    order = np.argsort([float(((patch - model) ** 2).sum()) for model in models])[:CANDIDATES]
    placed = (_place(difference, blob, templates[i], models[i], subject) for i in order)
    return min(placed, key=lambda seen: seen.error)


def _place(difference: Array, blob: Blob, template: _Template, model: Array, subject: Subject) -> Sighting:
    """Gauss-Newton on place, size and turn of a template (Lucas and Kanade's image alignment)."""
    left, top, right, bottom = (float(v) for v in blob.box)
    x, y, width, height, turn = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0.0
    down, across = np.gradient(model, axis=(0, 1))
    turning = across * -_Y[..., None] + down * _X[..., None]
    slopes = np.stack([across, down, across * _X[..., None], down * _Y[..., None], turning], -1).reshape(-1, 5)
    normal = slopes.T @ slopes
    normal[np.diag_indices(5)] = np.diag(normal) * 1.02 + RESISTANCE
    error, best = np.inf, model
    for _ in range(ROUNDS + 1):
        patch = on_grid(difference, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), turn)
        unlike = float(((patch - model) ** 2).sum() / (0.5 * ((patch**2).sum() + (model**2).sum()) + 1e-6))
        error, best = (unlike, patch) if unlike < error else (error, best)
        dx, dy, sx, sy, dt = np.linalg.solve(normal, slopes.T @ (model - patch).ravel())
        x += float(np.clip(dx, -1.5, 1.5)) * width / CELLS
        y += float(np.clip(dy, -1.5, 1.5)) * height / CELLS
        width *= 1 + float(np.clip(sx, -0.08, 0.08))
        height *= 1 + float(np.clip(sy, -0.08, 0.08))
        turn += float(np.clip(dt, -0.06, 0.06))
    moves = _colours_off(best - model, template.paints)
    off = dict(zip(subject.colours, moves, strict=True))
    return Sighting(subject, x / SIDE, y / SIDE, template.share * width / SIDE, template.style, error, off)


def _colours_off(rest: Array, paints: Array) -> list[float]:
    """How far the paints' colours must move, all together, to explain best what is left."""
    shares = paints.reshape(GRID * GRID, paints.shape[-1]).astype(np.float64)
    normal = shares.T @ shares
    normal[np.diag_indices(len(normal))] += 0.05
    moves = np.linalg.solve(normal, shares.T @ rest.reshape(-1, 3))
    return [float(np.linalg.norm(move)) for move in moves]
