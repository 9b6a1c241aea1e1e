"""Is this picture's car the P7? By outline, livery and lights together, as `zoo.evaluate.likeness` reads them.

`python -m zoo.evaluate.subject` prints how far that can be trusted: on P7s under blur, noise and wobble, on ordinary
cars, on other things, and on P7s spoilt on purpose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from zoo.data.artwork import ARTWORK
from zoo.data.draw import PALETTE, Figure, render
from zoo.data.scenes import BACKGROUNDS, COLOURS, INDISTINCT, STYLES, random_scene
from zoo.data.subjects import P7, P7_COLOUR, P7_FIGURE, p7_scene
from zoo.evaluate import likeness
from zoo.evaluate.calibration import CONDITIONS, weather
from zoo.evaluate.foreground import SIDE, Array
from zoo.evaluate.likeness import Pixels, Sighting, Subject

if TYPE_CHECKING:
    from torch import Tensor

Rng: TypeAlias = np.random.Generator

TELLING = ("plain", "cartoon")  # styles that show the livery; a sketch of any car is a sketch of no one car
LOOK = Subject(
    P7,
    P7_FIGURE,
    TELLING,
    outline=0.12,
    colours=MappingProxyType({"body": 45.0, "disc": 110.0, "trim": 110.0, "brake": 145.0, "lamp": 145.0}),
    flaws=MappingProxyType({"body": "livery", "disc": "livery", "trim": "livery", "brake": "lights", "lamp": "lights"}),
)


def sightings(picture: Pixels | Array | Tensor) -> list[Sighting]:
    """Every thing in a picture (shapes and ranges as `as_pixels`) as a P7, the likeliest first."""
    return likeness.sightings(picture, LOOK)


def is_p7(picture: Pixels | Array | Tensor) -> bool:
    """Whether there is a P7 in a picture."""
    return any(one.ok for one in sightings(picture))


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


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(description="Measure the P7 checker on freshly drawn pictures.")
    found.add_argument("-n", type=int, default=300, help="pictures of each kind in each condition")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--json", action="store_true", help="print one JSON object")
    return found


def main() -> None:
    options = parser().parse_args()
    trust = calibrate(options.n, options.seed)
    print(json.dumps(trust) if options.json else table(trust))


if __name__ == "__main__":
    main()
