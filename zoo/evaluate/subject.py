"""Is this picture's car the P7? Read from its pixels alone: outline, livery and lights together.

Each thing in a picture is compared with drawn P7s, brought to a grid by its box as the scene checker does, and moved,
stretched and turned into place; what remains unexplained decides. `python -m zoo.evaluate.subject` prints how far that
can be trusted: on P7s under blur, noise and wobble, on ordinary cars, on other things, and on P7s spoilt on purpose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from zoo.data.artwork import ARTWORK
from zoo.data.draw import PALETTE, Figure, render
from zoo.data.scenes import BACKGROUNDS, COLOURS, INDISTINCT, STYLES, Placed, Scene, random_scene
from zoo.data.subjects import P7, P7_COLOUR, P7_FIGURE, p7_scene
from zoo.evaluate.calibration import CONDITIONS, weather
from zoo.evaluate.checker import LEAST_SPAN
from zoo.evaluate.foreground import SIDE, Array, Blob, as_pixels, distance_from, find_background, find_blobs, split
from zoo.evaluate.prototypes import CELLS, GRID, on_grid, soften

if TYPE_CHECKING:
    from torch import Tensor

Pixels: TypeAlias = NDArray[np.uint8]
Rng: TypeAlias = np.random.Generator

TELLING = ("plain", "cartoon")  # styles that show the livery; a sketch of any car is a sketch of no one car
EXTENTS, TILTS = (0.36, 0.48, 0.62, 0.78), (-5.0, 0.0, 5.0)
CANDIDATES, ROUNDS = 3, 4
OUTLINE = 0.12  # unexplained share of a P7, at most
# RGB distance, at most
COLOURS_OFF = MappingProxyType({"body": 45.0, "disc": 110.0, "trim": 110.0, "brake": 145.0, "lamp": 145.0})
FAULTS = MappingProxyType({"body": "livery", "disc": "livery", "trim": "livery", "brake": "lights", "lamp": "lights"})
PROBE = 60.0  # RGB by which a paint is changed to see where it is
CUTS = ((0.25, 0), (0.4, 0), (0.55, 0), (0.5, 2))  # where things that touch are cut: see `foreground.split`
RESISTANCE = np.array((100, 100, 1e4, 1e4, 4e4))
_X, _Y = np.meshgrid(*(np.arange(GRID, dtype=np.float32) + 0.5 - GRID / 2,) * 2)


@dataclass(frozen=True)
class Sighting:
    """A thing that may be the P7: where it is (shares of the picture), in which style, and how little it is like one.

    `error` is the share of it that the best-fitting P7 leaves unexplained: 0 is the P7 itself, 1 has nothing of it.
    `colours_off` is how far each of its paints is from the P7's, in RGB.
    """

    x: float
    y: float
    extent: float
    style: str
    error: float
    colours_off: dict[str, float]

    @property
    def flaws(self) -> tuple[str, ...]:
        """What of outline, livery and lights is not the P7's."""
        found = ["outline"] if self.error > OUTLINE else []
        found += [FAULTS[paint] for paint, most in COLOURS_OFF.items() if self.colours_off[paint] > most]
        return tuple(dict.fromkeys(found))

    @property
    def ok(self) -> bool:
        return not self.flaws


@dataclass(frozen=True)
class _Template:
    """A drawn P7 on the grid: pixel = fixed + (1 - covered) * background.

    `paints` [grid, grid, paints] is the share of each of `COLOURS_OFF` in a pixel.
    """

    style: str
    fixed: Array
    covered: Array
    paints: Array
    share: float  # extent of the P7 as a share of its box's width


def sightings(picture: Pixels | Array | Tensor) -> list[Sighting]:
    """Every thing in a picture (shapes and ranges as `as_pixels`) as a P7, the likeliest first."""
    pixels = as_pixels(picture)
    _, background = find_background(pixels)
    distance = distance_from(background, pixels)
    blobs = [blob for blob in find_blobs(distance) if blob.span >= LEAST_SPAN]
    found: list[Sighting] = []
    for blob in blobs:
        others = [other for other in blobs if other is not blob]
        seen = [_compare(pixels, background, blob, others)]
        for share, peel in () if seen[0].ok else CUTS:
            parts = split(blob, distance, share, peel)
            if len(parts) > 1:
                apart = [
                    _compare(pixels, background, part, [*others, *(p for p in parts if p is not part)])
                    for part in parts
                    if part.span >= LEAST_SPAN
                ]
                if any(one.ok for one in apart):
                    seen = apart
                    break
        found += seen
    return sorted(found, key=lambda one: (not one.ok, one.error))


def is_p7(picture: Pixels | Array | Tensor) -> bool:
    """Whether there is a P7 in a picture."""
    return any(one.ok for one in sightings(picture))


@cache
def _templates() -> tuple[_Template, ...]:
    return tuple(_template(style, extent, tilt) for style in TELLING for extent in EXTENTS for tilt in TILTS)


def _template(style: str, extent: float, tilt: float) -> _Template:
    def drawn(ground: str, figure: Figure | None) -> Array:
        things = () if figure is None else (Placed(P7, P7_COLOUR, 0.5, 0.5, extent, tilt),)
        scene = Scene(things, ground, style, False)
        return render(scene, SIDE, {} if figure is None else {P7: figure}).astype(np.float32)

    light, dark, on_light = drawn("white", None), drawn("night", None), drawn("white", P7_FIGURE)
    seen = ((on_light - drawn("night", P7_FIGURE)) / (light - dark)).mean(2, keepdims=True).clip(0, 1)
    shares = []
    for paint in COLOURS_OFF:
        red, green, blue = P7_FIGURE.paints[paint]
        probe = PROBE if green < 128 else -PROBE
        other = Figure(P7_FIGURE.art, {**P7_FIGURE.paints, paint: (red, int(green + probe), blue)})
        shares.append((drawn("white", other) - on_light)[..., 1:2] / probe)
    layers = np.concatenate([on_light - seen * light, 1 - seen, *shares], 2)
    box = max(find_blobs(distance_from(light, on_light)), key=lambda blob: blob.span).box
    grid = on_grid(soften(layers, box), box)
    return _Template(style, grid[..., :3], grid[..., 3:4], grid[..., 4:], extent * SIDE / (box[2] - box[0]))


def _compare(pixels: Array, background: Array, blob: Blob, others: list[Blob]) -> Sighting:
    elsewhere = np.zeros((SIDE, SIDE), bool)
    for other in others:
        elsewhere |= other.mask
    difference = soften((pixels - background) * ~elsewhere[..., None], blob.box)
    behind = background[blob.mask].mean(0)
    patch = on_grid(difference, blob.box)
    models = [template.fixed - template.covered * behind for template in _templates()]
    order = np.argsort([float(((patch - model) ** 2).sum()) for model in models])[:CANDIDATES]
    return min((_place(difference, blob, _templates()[i], models[i]) for i in order), key=lambda seen: seen.error)


def _place(difference: Array, blob: Blob, template: _Template, model: Array) -> Sighting:
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
    off = _colours_off(best - model, template.paints)
    return Sighting(x / SIDE, y / SIDE, template.share * width / SIDE, template.style, error, off)


def _colours_off(rest: Array, paints: Array) -> dict[str, float]:
    """How far the paints' colours must move, all together, to explain best what is left."""
    shares = paints.reshape(-1, len(COLOURS_OFF)).astype(np.float64)
    normal = shares.T @ shares
    normal[np.diag_indices(len(normal))] += 0.05
    moves = np.linalg.solve(normal, shares.T @ rest.reshape(-1, 3))
    return {paint: float(np.linalg.norm(move)) for paint, move in zip(COLOURS_OFF, moves, strict=True)}


# --- how far it can be trusted ---------------------------------------------------------------------------------------


class Trust(TypedDict):
    """Shares by condition: of P7s that are accepted, and of everything else, by kind, that is refused."""

    pictures: int
    accepted: dict[str, float]
    refused: dict[str, dict[str, float]]


ACCEPTED, ACCEPTED_WOBBLY = 0.98, 0.95  # of pictures that wobble by a pixel, a few are not what they were
REFUSED = MappingProxyType({"ordinary cars": 0.99, "other things": 0.99})  # at least
REFUSED_LOOKALIKES = 0.95


def calibrate(n: int = 300, seed: int = 0, conditions: tuple[str, ...] = CONDITIONS) -> Trust:
    """The checker's record on `n` fresh pictures of each kind in each condition, some 0.1 s each.

    Raises:
        ValueError: fewer than one picture.
    """
    if n < 1:
        raise ValueError(f"cannot calibrate on {n} pictures: expected at least 1")
    accepted: dict[str, float] = {}
    refused: dict[str, dict[str, float]] = {}
    for condition in conditions:
        rng = np.random.default_rng((seed, CONDITIONS.index(condition)))
        right = [is_p7(weather(_drawn(P7, P7_FIGURE, rng, TELLING), condition, rng)) for _ in range(n)]
        accepted[condition] = round(sum(right) / n, 4)
        refused[condition] = {}
        for kind, draw in _REFUSED.items():
            wrong = [is_p7(weather(draw(rng), condition, rng)) for _ in range(n)]
            refused[condition][kind] = round(1 - sum(wrong) / n, 4)
    return Trust(pictures=n, accepted=accepted, refused=refused)


def holds(trust: Trust) -> bool:
    """Whether every figure is as good as it is asked to be."""
    least = {"wobbly": ACCEPTED_WOBBLY}
    return all(share >= least.get(name, ACCEPTED) for name, share in trust["accepted"].items()) and all(
        share >= REFUSED.get(kind, REFUSED_LOOKALIKES)
        for row in trust["refused"].values()
        for kind, share in row.items()
    )


def table(trust: Trust) -> str:
    """The report as text, a column a condition."""
    names = list(trust["accepted"])
    rows = [("accepted P7s", list(trust["accepted"].values()))]
    rows += [(f"refused {kind}", [trust["refused"][name][kind] for name in names]) for kind in _REFUSED]
    head = f"{'P7 checker, ' + str(trust['pictures']) + ' pictures':38}" + "".join(f"{name:>20}" for name in names)
    return "\n".join([head, *(f"{title:38}" + "".join(f"{100 * v:>19.2f}%" for v in values) for title, values in rows)])


def _drawn(
    shape: str,
    figure: Figure | None,
    rng: Rng,
    styles: tuple[str, ...] = STYLES,
    grounds: tuple[str, ...] = BACKGROUNDS,
) -> Pixels:
    """One thing alone, anywhere and of any size, on any background; in a colour that stands out, if it has none."""
    ground, style = str(rng.choice(grounds)), str(rng.choice(styles))
    scene = p7_scene(rng, ground, style, (0.31, 0.75))
    colour = str(rng.choice([c for c in COLOURS if (c, ground) not in INDISTINCT]))
    thing = replace(scene.objects[0], shape=shape, colour=colour)
    return render(replace(scene, objects=(thing,)), SIDE, None if figure is None else {shape: figure})


def _without(*paints: str) -> Figure:
    art = P7_FIGURE.art
    return Figure(replace(art, parts=tuple(p for p in art.parts if p.paint not in paints)), P7_FIGURE.paints)


def _in_another_colour(rng: Rng) -> Pixels:
    body = PALETTE[str(rng.choice([colour for colour in COLOURS if colour != P7_COLOUR]))]
    return _drawn(P7, Figure(P7_FIGURE.art, {**P7_FIGURE.paints, "body": body}), rng, TELLING)


_CAR_OF_ITS_COLOUR = Figure(ARTWORK["car"], {"body": P7_FIGURE.paints["body"]})
_BRIGHT = tuple(ground for ground in BACKGROUNDS if ground != "night")  # on which a black wing is seen
_REFUSED: dict[str, Callable[[Rng], Pixels]] = {
    "ordinary cars": lambda rng: _drawn("car", None, rng),
    "other things": lambda rng: render(random_scene(rng), SIDE),
    "ordinary cars in its colour": lambda rng: _drawn("car of its colour", _CAR_OF_ITS_COLOUR, rng),
    "P7s in another colour": _in_another_colour,
    "P7s without their disc": lambda rng: _drawn(P7, _without("disc"), rng, TELLING),
    "P7s without their wing": lambda rng: _drawn(P7, _without("trim"), rng, TELLING, _BRIGHT),
    "P7s without lights": lambda rng: _drawn(P7, _without("brake", "lamp"), rng, TELLING),
    "sketches of P7s": lambda rng: _drawn(P7, P7_FIGURE, rng, ("sketch",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the P7 checker on freshly drawn pictures.")
    parser.add_argument("-n", type=int, default=300, help="pictures of each kind in each condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    trust = calibrate(options.n, options.seed)
    print(json.dumps(trust) if options.json else table(trust))


if __name__ == "__main__":
    main()
