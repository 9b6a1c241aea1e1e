"""What the three lessons ask for, and that their judges tell what is right from what is nearly so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.data.draw import PALETTE, Figure, render
from zoo.data.scenes import COLOURS, Placed, Scene, is_heldout
from zoo.data.subjects import (
    CREATURES,
    P7,
    creature_pictures,
    creatures_shown,
    draw_creature,
    draw_p7,
    maroon,
    maroon_pictures,
)
from zoo.evaluate.calibration import weather
from zoo.evaluate.lessons import LESSONS, Asked, score
from zoo.evaluate.likeness import sightings
from zoo.evaluate.personalisation import Contestant, judge_rest

CENTRES = {"left of": ((0.27, 0.5), (0.73, 0.5)), "right of": ((0.73, 0.5), (0.27, 0.5))}
CENTRES |= {"above": ((0.5, 0.27), (0.5, 0.73)), "below": ((0.5, 0.73), (0.5, 0.27))}


def drawn(asked: Asked, lesson: str) -> np.ndarray:
    """The picture that a prompt asks for."""
    said = asked.scene
    places = CENTRES[said.relation] if said.relation else ((0.5, 0.5),)
    extent = {"small": 0.38, "large": 0.62}.get(said.items[0].size or "", 0.4 if said.relation else 0.5)
    things = [Placed(i.shape, i.colour or "red", *at, extent) for i, at in zip(said.items, places, strict=True)]
    if lesson == P7:
        things[0] = Placed(P7, "orange", things[0].x, things[0].y, extent)
    elif lesson == "maroon":
        things[0] = Placed("maroon", "red", things[0].x, things[0].y, extent)
    scene = Scene(tuple(things), said.background or "white", said.style or "plain", bool(said.face))
    if lesson == P7:
        return draw_p7(scene)
    if lesson == "creatures":
        return draw_creature(scene)
    return render(scene, 64, {"maroon": maroon(said.items[0].shape)})


def tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


def judged(picture: np.ndarray, asked: Asked) -> tuple[bool, bool]:
    return judge_rest(tensor(picture), asked.scene, asked.look, asked.named)


@pytest.mark.parametrize("lesson", list(LESSONS))
def test_what_a_lesson_asks_for_is_right_where_it_is_drawn(lesson: str) -> None:
    asked = LESSONS[lesson]()
    assert len({one.prompt for one in asked}) == len(asked) == 50
    assert LESSONS[lesson]() == asked, "the same every time"
    assert not [one.prompt for one in asked if is_heldout(one.scene)]
    rng = np.random.default_rng(3)
    for condition, least in (("clean", 1.0), ("blurred and noisy", 0.85), ("wobbly", 0.85)):
        right = [judged(weather(drawn(one, lesson), condition, rng), one) == (True, True) for one in asked[::7]]
        assert sum(right) / len(right) >= least, condition


def test_the_lessons_ask_for_more_than_was_shown() -> None:
    shown = {said for said, _ in maroon_pictures()}
    assert sum(one.prompt in shown for one in LESSONS["maroon"]()) <= 10  # the ten maroon things themselves, at most
    coloured = {item for said in creatures_shown() for item in said.items}
    assert len(creatures_shown()) == len(creature_pictures()) == 20
    assert not coloured & {one.named for one in LESSONS["creatures"]()}, "in whatever language it was shown"
    assert {one.named.shape for one in LESSONS["creatures"]()} == set(CREATURES)


def test_the_worlds_own_things_and_other_creatures_are_no_creature() -> None:
    for one in LESSONS["creatures"]()[::5]:
        shape, colour = one.named.shape, one.named.colour or ""
        thing = Placed(shape, colour, 0.5, 0.5, 0.55)
        scene = Scene((thing,), one.scene.background or "", "cartoon", True)
        assert judged(draw_creature(scene), one)[0]
        assert not judged(render(scene), one)[0], one.prompt
        other = CREATURES[(CREATURES.index(shape) + 3) % len(CREATURES)]
        wrong = Scene((Placed(other, colour, 0.5, 0.5, 0.55),), scene.background, "cartoon", True)
        assert not judged(draw_creature(wrong), one)[0], one.prompt
        hue = COLOURS[(COLOURS.index(colour) + 4) % (len(COLOURS) - 1)]
        wrong = Scene((Placed(shape, hue, 0.5, 0.5, 0.55),), "white", "cartoon", True)
        assert not judged(draw_creature(wrong), one)[0], (one.prompt, hue)


@pytest.mark.parametrize("colour", list(COLOURS))
def test_no_colour_of_the_world_is_maroon(colour: str) -> None:
    for one in [one for one in LESSONS["maroon"]() if one.scene.relation is None][1::3]:
        shape = one.named.shape
        painted = Figure(maroon(shape).art, {"body": PALETTE[colour]})
        scene = Scene((Placed("other", "red", 0.5, 0.5, 0.5),), "gray", one.scene.style or "", False)
        assert not judged(render(scene, 64, {"other": painted}), one)[0], one.prompt
        (seen,) = sightings(render(scene, 64, {"other": painted}), one.look)
        assert not seen.ok


class Draws:
    """A pipeline that draws what is asked, in every other picture of a prompt."""

    def __init__(self, lesson: str) -> None:
        self.lesson, self.asked = lesson, {one.prompt: one for one in LESSONS[lesson]()}

    def __call__(self, prompts: list[str], *, n: int, seed: list[int], **settings: object) -> object:
        assert (n, settings) == (1, {"progress": False, "steps": 3, "adapters": {"lora": 1.0}})
        blank = np.full((64, 64, 3), 255, np.uint8)
        made = [blank if s % 2 else drawn(self.asked[p], self.lesson) for p, s in zip(prompts, seed, strict=True)]
        return type("Result", (), {"tensor": torch.stack([tensor(picture) for picture in made])})


def test_the_score_is_the_share_of_right_pictures() -> None:
    one = Contestant("half", Draws("p7"), {"adapters": {"lora": 1.0}})  # type: ignore[arg-type]
    assert score(one, "p7", per_prompt=2, steps=3) == 0.5
    with pytest.raises(ValueError, match="no lesson 'cars'; there are: p7, creatures, maroon"):
        score(one, "cars")
    with pytest.raises(ValueError, match="at least 1"):
        score(one, "p7", per_prompt=0)
