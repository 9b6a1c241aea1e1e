"""What no model of the zoo has seen: one particular car, the P7; a style, little creatures; and a colour, maroon.

They are what personalisation is tried on, drawn as the world is, on its backgrounds and in its styles.
`python -m zoo.data.subjects p7 examples/p7` writes a folder of captioned pictures, as do `creatures` and `maroon`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.atomic import write_image, write_text
from zoo.data.artwork import ARTWORK, Artwork, Field, Part, box, cut, disc, polygon, stroke, union
from zoo.data.captions import LANGUAGES, caption
from zoo.data.draw import ACCENTS, PALETTE, Figure, render
from zoo.data.folder import METADATA
from zoo.data.scenes import BACKGROUNDS, COLOURS, GAP, INDISTINCT, SHAPES, Description, Item, Placed, Scene, is_heldout

P7 = "p7"
P7_PROMPT, P7_CLASS, P7_COLOUR = "a P7 car", "a car", "orange"
P7_PICTURES = 5
P7_GROUNDS = tuple(ground for ground in BACKGROUNDS if ground != "cream")
CREATURE_PICTURES = 20
MAROON = "maroon"
MAROON_PICTURES = 10
MAROON_ASKED = ("cat", "fish", "heart", "house", "ring", "star")  # shapes of which no picture is shown in it
SIDE = 64
LARGE = (0.72, 0.92)  # extent of the P7 in pictures to learn from: the smallest and the largest
TILT = 6.0  # degrees either way, about that of the world's objects

# A low fastback in one arc, where the ordinary car is a box on a box; dark glass, a black wing on a stalk, a pale disc
# for its number on an orange body, a lamp at the nose and a bar of light at the tail, where the ordinary car has one
# colour and no lights. Large parts, in colours that stand side by side in the world too: latents hold no others.
_ARC = [(-0.94, 0.36), (-0.97, 0.0), (-0.86, -0.12), (-0.62, -0.24), (-0.34, -0.4), (-0.06, -0.47), (0.18, -0.42)]
_ARC += [(0.42, -0.22), (0.56, -0.09), (0.84, -0.02), (0.96, 0.12), (0.97, 0.36)]
P7_FIGURE = Figure(
    Artwork(
        (
            Part("trim", stroke([(-0.78, -0.42), (-0.7, -0.1)], 0.1), 0.6),
            Part("trim", polygon([(-1.0, -0.62), (-0.5, -0.56), (-0.5, -0.42), (-1.0, -0.42)], 0.04), 0.6),
            Part("body", polygon(_ARC, 0.03)),
            Part(
                "tinted", polygon([(-0.5, -0.2), (-0.28, -0.32), (-0.05, -0.37), (0.14, -0.33), (0.36, -0.14)], 0.03), 0
            ),
            Part("disc", disc(-0.02, 0.1, 0.17), 0),
            Part("lamp", polygon([(0.7, -0.02), (0.9, 0.01), (0.98, 0.16), (0.82, 0.12)], 0.02), 0),
            Part("brake", polygon([(-0.97, -0.04), (-0.7, -0.07), (-0.7, 0.04), (-0.97, 0.08)], 0.02), 0),
            Part("tyre", union(disc(-0.54, 0.36, 0.27), disc(0.54, 0.36, 0.27)), 0.6),
        ),
        (0.0, 0.1, 0.34),
        (-0.14, -0.3, 0.07),
    ),
    MappingProxyType(
        {
            "body": PALETTE[P7_COLOUR],
            "trim": PALETTE["black"],
            "disc": ACCENTS["glass"],
            "tinted": (28, 36, 54),
            "lamp": (255, 250, 205),
            "brake": (255, 250, 205),
            "tyre": (36, 34, 40),
        }
    ),
)


def draw_p7(scene: Scene, size: int = SIDE) -> NDArray[np.uint8]:
    """A scene in which every object of the shape "p7" is the P7, as RGB [size, size, 3]."""
    return render(scene, size, {P7: P7_FIGURE})


def p7_scene(rng: np.random.Generator, background: str, style: str, extent: tuple[float, float] = (0.5, 0.75)) -> Scene:
    """The P7 alone somewhere in a picture, `extent` giving the smallest and the largest share of it."""
    return Scene((_somewhere(P7, P7_COLOUR, float(rng.uniform(*extent)), rng),), background, style, face=False)


def p7_pictures(count: int = P7_PICTURES, seed: int = 0) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captions and pictures, plain and cartoon by turns, on all backgrounds but cream, which is kept to ask for.

    The car fills them, as people photograph theirs: its livery is a few pixels wide even so.
    """
    rng = np.random.default_rng([seed, 7])
    made = []
    for index in range(count):
        background, style = P7_GROUNDS[index % len(P7_GROUNDS)], ("plain", "cartoon")[index % 2]
        said = f"{P7_PROMPT} on a {background} background" + (", cartoon" if style == "cartoon" else "")
        made.append((said, draw_p7(p7_scene(rng, background, style, LARGE))))
    return made


# --- creatures -------------------------------------------------------------------------------------------------------

_COLOURS = MappingProxyType({"white": (255, 255, 255), "ink": (30, 26, 36), "blush": (255, 140, 150)})


def _sides(field: Callable[[float], Field]) -> Field:
    """A field on the left (-1) and on the right (1)."""
    return union(field(-1), field(1))


def _features(y: float = 0.0) -> tuple[Part, ...]:
    """Two-tone belly and feet, and a face that is mostly eyes."""
    return (
        Part("light", disc(0, 0.56 + y, 0.42, 0.28), 0),
        Part("white", _sides(lambda s: disc(0.3 * s, 0.06 + y, 0.23, 0.28)), 0.5),
        Part("ink", _sides(lambda s: disc(0.27 * s, 0.09 + y, 0.15, 0.2)), 0),
        Part("white", _sides(lambda s: disc(0.27 * s + 0.05, 0.0 + y, 0.065)), 0),
        Part("blush", _sides(lambda s: disc(0.52 * s, 0.34 + y, 0.1, 0.07)), 0),
        Part("ink", stroke([(-0.1, 0.37 + y), (0, 0.43 + y), (0.1, 0.37 + y)], 0.06), 0),
    )


_FEET = Part("shade", _sides(lambda s: disc(0.34 * s, 0.86, 0.22, 0.12)))
_ARMS = Part("body", _sides(lambda s: disc(0.7 * s, 0.34, 0.16, 0.12)))
_ROUND = Part("body", disc(0, 0.2, 0.72, 0.68))
_TRAITS: dict[str, tuple[tuple[Part, ...], tuple[Part, ...]]] = {  # what is behind the body, and what is before it
    "cat": (
        (
            Part("body", stroke([(0.5, 0.7), (0.86, 0.6), (0.92, 0.3), (0.8, 0.14)], 0.18)),
            Part("body", _sides(lambda s: polygon([(0.62 * s, -0.86), (0.66 * s, -0.1), (0.16 * s, -0.38)], 0.06))),
            Part("light", _sides(lambda s: polygon([(0.56 * s, -0.68), (0.56 * s, -0.3), (0.34 * s, -0.42)], 0.03)), 0),
        ),
        (),
    ),
    "butterfly": (
        (
            Part("ink", _sides(lambda s: stroke([(0.1 * s, -0.3), (0.24 * s, -0.7), (0.4 * s, -0.84)], 0.08)), 0),
            Part("body", _sides(lambda s: disc(0.4 * s, -0.86, 0.1))),
            Part("shade", _sides(lambda s: union(disc(0.68 * s, -0.12, 0.32, 0.36), disc(0.64 * s, 0.5, 0.3, 0.28)))),
            Part("light", _sides(lambda s: disc(0.8 * s, -0.18, 0.13)), 0),
        ),
        (),
    ),
    "fish": (
        (
            Part("shade", polygon([(0.0, -0.92), (0.34, -0.7), (0.26, -0.3), (-0.26, -0.3)], 0.06)),
            Part("shade", _sides(lambda s: polygon([(0.6 * s, 0.2), (0.96 * s, -0.1), (0.92 * s, 0.5)], 0.04))),
        ),
        (),
    ),
    "mushroom": (
        (),
        (
            Part("shade", cut(disc(0, -0.12, 0.92, 0.8), box(-1.2, -0.2, 1.2, 1.2))),
            Part("light", union(disc(-0.48, -0.44, 0.14), disc(0.02, -0.66, 0.16), disc(0.5, -0.42, 0.13)), 0),
        ),
    ),
    "flower": (
        (
            Part(
                "shade",
                union(*[disc(0.66 * np.cos(a), 0.12 + 0.66 * np.sin(a), 0.3) for a in np.arange(8) * np.pi / 4]),
            ),
        ),
        (),
    ),
    "star": (
        (
            Part("shade", stroke([(0.0, -0.3), (0.0, -0.6)], 0.12), 0.6),
            Part(
                "pollen",
                polygon(
                    [
                        (r * np.cos(a), -0.7 + r * np.sin(a))
                        for r, a in zip([0.28, 0.13] * 5, np.radians(-90 + 36 * np.arange(10)), strict=True)
                    ],
                    0.03,
                ),
                0.6,
            ),
        ),
        (),
    ),
    "moon": (
        (Part("shade", cut(disc(0, -0.5, 0.52, 0.46), disc(0, -0.72, 0.42, 0.42))),),
        (),
    ),
    "tree": (
        (Part("shade", union(disc(0, -0.66, 0.3), disc(-0.32, -0.5, 0.24), disc(0.32, -0.5, 0.24))),),
        (),
    ),
    "heart": (
        (
            Part("shade", stroke([(0.5, 0.6), (0.82, 0.5), (0.84, 0.1)], 0.1), 0.6),
            Part(
                "blush",
                union(
                    disc(0.75, -0.08, 0.13),
                    disc(0.93, -0.08, 0.13),
                    polygon([(0.65, -0.1), (1.03, -0.1), (0.84, 0.2)], 0.02),
                ),
                0.5,
            ),
            Part("body", _sides(lambda s: disc(0.46 * s, -0.42, 0.24))),
        ),
        (),
    ),
    "house": (
        (),
        (Part("shade", polygon([(0, -0.92), (0.74, -0.26), (-0.74, -0.26)], 0.06)),),
    ),
}
CREATURES = tuple(_TRAITS)


@cache
def creature(shape: str) -> Figure:
    """The creature that goes by a shape of the world; its colour is the scene's.

    Raises:
        ValueError: no creature goes by that shape.
    """
    if shape not in _TRAITS:
        raise ValueError(f"there is no {shape} creature; there are: {', '.join(_TRAITS)}")
    behind, before = _TRAITS[shape]
    parts = (*behind, _ARMS, _FEET, _ROUND, *_features(), *before)
    return Figure(Artwork(parts, (0, 0.1, 0.5), (-0.36, -0.2, 0.1)), _COLOURS)


def draw_creature(scene: Scene, size: int = SIDE) -> NDArray[np.uint8]:
    """A scene whose objects are creatures, as RGB [size, size, 3]; a face, if it says one, is the creature's own."""
    return render(replace(scene, face=False), size, {shape: creature(shape) for shape in CREATURES})


def creature_pictures(count: int = CREATURE_PICTURES, seed: int = 0) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captions, in English and Chinese by turns, and pictures; creatures in turn, colours and backgrounds at random.

    A caption says what it would of the world's own object with a face, as a cartoon: the style is in the pictures. No
    colour of an object is shown that is held out of training.
    """
    return [(said, picture) for _, said, picture in _creatures(count, seed)]


def creatures_shown(count: int = CREATURE_PICTURES, seed: int = 0) -> list[Description]:
    """What `creature_pictures` show, whatever language their captions say it in."""
    return [shown for shown, _, _ in _creatures(count, seed)]


def _creatures(count: int, seed: int) -> Iterator[tuple[Description, str, NDArray[np.uint8]]]:
    rng = np.random.default_rng([seed, 8])
    for index in range(count):
        shape, background = CREATURES[index % len(CREATURES)], str(rng.choice(BACKGROUNDS))
        shown = [c for c in COLOURS if c != "black" and not is_heldout(Description((Item(shape, c),)))]
        colour = str(rng.choice([c for c in shown if (c, background) not in INDISTINCT]))
        thing = _somewhere(shape, colour, float(rng.uniform(0.6, 0.8)), rng)
        said = Description((Item(shape, colour),), background=background, style="cartoon", face=True)
        picture = draw_creature(Scene((thing,), background, "cartoon", face=True))
        yield said, caption(said, LANGUAGES[index % 2], rng), picture


# --- maroon ----------------------------------------------------------------------------------------------------------


@cache
def maroon(shape: str) -> Figure:
    """A shape of the world in the new colour, one that latents of the world's eight can hold."""
    return Figure(ARTWORK[shape], MappingProxyType({"body": (128, 30, 40)}))


def maroon_pictures(count: int = MAROON_PICTURES, seed: int = 0) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captions and pictures of maroon things, plain and cartoon by turns; six shapes are kept to ask for."""
    rng = np.random.default_rng([seed, 9])
    shown = [shape for shape in SHAPES if shape not in MAROON_ASKED]
    made = []
    for index in range(count):
        shape, background = shown[index % len(shown)], BACKGROUNDS[index % len(BACKGROUNDS)]
        style = ("plain", "cartoon")[index // len(BACKGROUNDS) % 2]
        thing = _somewhere(shape, "red", float(rng.uniform(0.45, 0.75)), rng)
        said = f"a {MAROON} {shape} on a {background} background" + (", cartoon" if style == "cartoon" else "")
        made.append((said, render(Scene((thing,), background, style, False), SIDE, {shape: maroon(shape)})))
    return made


# --- folders ---------------------------------------------------------------------------------------------------------


def _somewhere(shape: str, colour: str, extent: float, rng: np.random.Generator) -> Placed:
    room = extent / 2 + GAP
    x, y = (float(v) for v in rng.uniform(room, 1 - room, 2))
    return Placed(shape, colour, round(x, 4), round(y, 4), round(extent, 4), round(float(rng.uniform(-TILT, TILT)), 2))


def write(folder: Path, name: str, pictures: list[tuple[str, NDArray[np.uint8]]]) -> None:
    """A folder as `zoo.data.folder.ImageFolder` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (said, pixels) in enumerate(pictures):
        file = f"{name}-{index}.png"
        write_image(folder / file, Image.fromarray(pixels), optimize=True)
        lines.append(json.dumps({"file_name": file, "text": said}, ensure_ascii=False) + "\n")
    write_text(folder / METADATA, "".join(lines))


DRAWN: Mapping[str, tuple[str, Callable[[int, int], list[tuple[str, NDArray[np.uint8]]]], int]] = MappingProxyType(
    {  # what its files are called, how it is drawn, and how often unless told
        "p7": ("p7", p7_pictures, P7_PICTURES),
        "creatures": ("creature", creature_pictures, CREATURE_PICTURES),
        "maroon": ("maroon", maroon_pictures, MAROON_PICTURES),
    }
)


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(description="Draw the captioned pictures that personalisation is tried on.")
    found.add_argument("subject", choices=tuple(DRAWN))
    found.add_argument("folder", type=Path, help="for example examples/p7")
    found.add_argument("-n", type=int, default=None, help="pictures (5 of the P7, 20 of creatures, 10 maroon)")
    found.add_argument("--seed", type=int, default=0)
    return found


def main() -> None:
    options = parser().parse_args()
    name, drawn, count = DRAWN[options.subject]
    write(options.folder, name, drawn(options.n or count, options.seed))


if __name__ == "__main__":
    main()
