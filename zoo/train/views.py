"""More pictures of a subject than its few: smaller and elsewhere, and beside other things.

A subject that is always seen large, alone and in one place is learned as a picture, not as a thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from zoo.train.cache import Array
from zoo.train.recipe import Table

SMALLEST = 0.4  # of a picture's views
SMALLEST_BESIDE = 0.85  # of a half that a picture is made to fit
SIDES: Mapping[str, tuple[int, bool]] = (
    MappingProxyType(  # where the subject goes: along which axis, and if it is first
        {"left of": (1, True), "right of": (1, False), "above": (0, True), "below": (0, False)}
    )
)


class BesideTable(Table):
    """Pictures of the subject next to things that the model draws; on where there are things."""

    subject: str = ""  # as the captions call it: "a P7 car"
    things: tuple[str, ...] = ()  # "a red tree": drawn in the subject's place, in the surroundings each caption says
    each: int = Field(1, ge=1)  # pictures of every picture with every thing

    @property
    def on(self) -> bool:
        return bool(self.things)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.things and not self.subject:
            raise ValueError('things beside what? Set beside.subject to what captions call it, such as "a P7 car"')
        return self


def views(pixels: Array, count: int, seed: int) -> Array:
    """Each of n pictures [n, side, side, 3] as it is, then `count` - 1 times smaller and moved: n * count of them.

    As Custom Diffusion does it (arXiv 2212.04488, section 3.2), but for its captions' "very small" and "far away".
    """
    rng, made = np.random.default_rng([seed, count]), []
    for picture in pixels:
        made.append(picture)
        for _ in range(count - 1):
            side = len(picture)
            made.append(_within(picture, round(side * rng.uniform(SMALLEST, 1)), (side, side), rng))
    return np.stack(made)


def companions(captions: Sequence[str], table: BesideTable) -> list[str]:
    """What the model is to draw: every thing in place of the subject in every caption, caption by caption.

    Raises:
        ValueError: a caption does not name the subject.
    """
    for caption in captions:
        if table.subject not in caption:
            raise ValueError(f"beside.subject = {table.subject!r} is not in the caption {caption!r}")
    return [caption.replace(table.subject, thing) for caption in captions for thing in table.things]


def beside(
    pixels: Array, captions: Sequence[str], drawn: Array, table: BesideTable, seed: int
) -> tuple[Array, list[str]]:
    """Each of n pictures [n, side, side, 3] beside each of its companions [n * things, side, side, 3], and captions.

    One half of a picture shows one, the other half the other, as in SVDiff's "cut and mix" (arXiv 2303.11305); since
    the model drew the second in the surroundings of the first, they go on into each other. One caption in two says
    these surroundings, the others no more than what is where.
    """
    rng, made, said = np.random.default_rng([seed, len(drawn)]), [], []
    for index, other in enumerate(np.repeat(drawn, table.each, axis=0)):
        own, companion = divmod(index // table.each, len(table.things))
        picture, caption, thing = pixels[own], captions[own], table.things[companion]
        relation = tuple(SIDES)[int(rng.integers(len(SIDES)))]
        axis, first = SIDES[relation]
        side = len(picture)
        room = (side, side // 2) if axis else (side // 2, side)
        halves = [
            _within(one, round(side // 2 * rng.uniform(SMALLEST_BESIDE, 1)), room, rng) for one in (picture, other)
        ]
        made.append(np.concatenate(halves if first else halves[::-1], axis))
        both = f"{table.subject} {relation} {thing}"
        said.append(caption.replace(table.subject, both) if rng.random() < 0.5 else both)
    return np.stack(made), said


def _within(picture: Array, small: int, room: tuple[int, int], rng: np.random.Generator) -> Array:
    """A picture made `small`, somewhere in a room of this height and width, its border going on."""
    top, left = (int(rng.integers(side - small + 1)) for side in room)
    shrunk = np.asarray(Image.fromarray(picture).resize((small, small), Image.Resampling.LANCZOS))
    return np.pad(shrunk, ((top, room[0] - small - top), (left, room[1] - small - left), (0, 0)), mode="edge")
