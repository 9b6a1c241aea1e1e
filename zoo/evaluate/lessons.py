"""Three things to teach a model from a few pictures, and how many of its pictures show that it has learned them.

| lesson | learned from | asked for |
|---|---|---|
| p7 | five pictures of one car | it on all backgrounds, in two sizes and styles, beside other things |
| creatures | twenty pictures in one style | ten creatures in other colours |
| maroon | ten pictures of things in one colour | the same and six other shapes in it, alone and in pairs |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np

from zoo.data.artwork import ARTWORK
from zoo.data.captions import article
from zoo.data.draw import PALETTE, Figure
from zoo.data.scenes import BACKGROUNDS, COLOURS, INDISTINCT, RELATIONS, SHAPES, Description, Item, is_heldout
from zoo.data.subjects import CREATURES, MAROON, P7, creature, creatures_shown, maroon
from zoo.evaluate import personalisation
from zoo.evaluate.likeness import Subject
from zoo.evaluate.personalisation import P7_ITEM, PROMPTS, Contestant, draw, judge_rest
from zoo.evaluate.subject import LOOK

STYLES = ("plain", "cartoon")
CREATURE_OUTLINE = 0.3  # unexplained share, at most: a style may be roughly drawn, but nothing else explains it better
MAROON_OUTLINE = 0.09  # of other shapes in the colour it is 0.1 and more
COLOUR_OFF = 56.0  # RGB distance, at most
COLOUR = MappingProxyType({"body": "colour"})


@dataclass(frozen=True)
class Asked:
    """A prompt, what it says in the scene checker's words, and what is to be there in place of what `named` says."""

    prompt: str
    scene: Description
    look: Subject
    named: Item


def score(
    contestant: Contestant,
    lesson: str,
    *,
    per_prompt: int = 4,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 16,
) -> float:
    """The share of pictures, `per_prompt` of each of a lesson's 50 prompts, that are right in everything.

    Raises:
        ValueError: there is no such lesson, or not one picture of each prompt.
    """
    if lesson not in LESSONS:
        raise ValueError(f"there is no lesson {lesson!r}; there are: {', '.join(LESSONS)}")
    if per_prompt < 1:
        raise ValueError(f"{per_prompt} pictures of each prompt cannot be judged: expected at least 1")
    wanted = [one for one in LESSONS[lesson]() for _ in range(per_prompt)]
    seeds = [seed + i % per_prompt for i in range(len(wanted))]
    made = draw(contestant, [one.prompt for one in wanted], seeds, batch, steps)
    right = [judge_rest(picture, one.scene, one.look, one.named) for picture, one in zip(made, wanted, strict=True)]
    return sum(there and rest for there, rest in right) / len(right)


def _p7() -> list[Asked]:
    return [Asked(prompt, scene, LOOK, P7_ITEM) for prompt, scene in personalisation.asked()]


def _creatures() -> list[Asked]:
    """Every creature in five combinations of a colour that it was not shown in and a background."""
    shown = {(item.shape, item.colour) for said in creatures_shown() for item in said.items}
    found = []
    for index, shape in enumerate(CREATURES):
        free = [
            (colour, ground)
            for colour, ground in product(COLOURS, BACKGROUNDS)
            if colour != "black"
            and (colour, ground) not in INDISTINCT
            and not is_heldout(Description((Item(shape, colour),)))
            and (shape, colour) not in shown
        ]
        picks = np.random.default_rng([8, index]).permutation(len(free))[: PROMPTS // len(CREATURES)]
        for colour, ground in (free[pick] for pick in picks):
            said = Description((Item(shape, colour),), background=ground, style="cartoon", face=True)
            prompt = f"{article(colour)} {colour} {shape} with a face on a {ground} background, cartoon"
            found.append(Asked(prompt, said, creature_look(shape, colour), Item(shape, colour)))
    return found


def _maroon() -> list[Asked]:
    """Every shape twice alone, and 18 times beside another thing."""
    found = []
    for i, (shape, style) in enumerate(product(SHAPES, STYLES)):
        ground = BACKGROUNDS[i % len(BACKGROUNDS)]
        prompt = f"a {MAROON} {shape} on a {ground} background" + (", cartoon" if style == "cartoon" else "")
        said = Description((Item(shape),), background=ground, style=style)
        found.append(Asked(prompt, said, maroon_look(shape), Item(shape, "red")))
    rng, free = np.random.default_rng(9), [colour for colour in COLOURS if colour not in ("red", "black")]
    while len(found) < PROMPTS:
        shape, other = (str(name) for name in rng.choice(SHAPES, 2, replace=False))
        relation, colour = RELATIONS[len(found) % len(RELATIONS)], str(rng.choice(free))
        scene = Description((Item(shape), Item(other, colour)), relation=relation)
        if not is_heldout(scene):
            prompt = f"a {MAROON} {shape} {relation} {article(colour)} {colour} {other}"
            found.append(Asked(prompt, scene, maroon_look(shape), Item(shape, "red")))
    return found


@cache
def creature_look(shape: str, colour: str) -> Subject:
    """A creature in its colour: not another one, and not the world's own thing."""
    own = Subject(shape, Figure(ARTWORK[shape], {"body": PALETTE[colour]}), ("cartoon",), CREATURE_OUTLINE, {}, {})
    rivals = (*(_rival(other, colour) for other in CREATURES if other != shape), own)
    return replace(_rival(shape, colour), colours={"body": COLOUR_OFF}, flaws=COLOUR, rivals=rivals)


@cache
def _rival(shape: str, colour: str) -> Subject:
    """A creature as the others are compared with it: one for all of them, so that it is drawn once."""
    painted = Figure(creature(shape).art, {**creature(shape).paints, "body": PALETTE[colour]})
    return Subject(f"{shape} creature", painted, ("cartoon",), CREATURE_OUTLINE, {}, {})


@cache
def maroon_look(shape: str) -> Subject:
    """A shape in maroon: no colour of the world explains it better."""
    known = tuple(
        Subject(f"{name} {shape}", Figure(ARTWORK[shape], {"body": PALETTE[name]}), STYLES, MAROON_OUTLINE, {}, {})
        for name in COLOURS
    )
    off = {"body": COLOUR_OFF}
    return Subject(f"{MAROON} {shape}", maroon(shape), STYLES, MAROON_OUTLINE, off, COLOUR, known)


LESSONS: Mapping[str, Callable[[], list[Asked]]] = MappingProxyType({P7: _p7, "creatures": _creatures, MAROON: _maroon})
