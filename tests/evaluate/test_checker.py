"""The checker on pictures whose contents are known, facet by facet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from zoo.data.draw import render
from zoo.data.scenes import BACKGROUNDS, COLOURS, SHAPES, STYLES, Description, Item, Placed, Scene
from zoo.evaluate.checker import NO_FACE, SMEARED, judge, read
from zoo.evaluate.defects import BLEMISHES
from zoo.evaluate.foreground import as_pixels

CAR_AND_TREE = Scene(
    (Placed("car", "red", 0.27, 0.5, 0.42, 3), Placed("tree", "blue", 0.74, 0.5, 0.42, -3)),
    "cream",
    "cartoon",
    True,
    "left of",
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
def test_every_shape_is_read_in_every_style_with_and_without_a_face(shape: str, style: str) -> None:
    for face, background, colour in ((False, "white", "red"), (True, "night", "pink"), (True, "gray", "black")):
        scene = Scene((Placed(shape, colour, 0.47, 0.53, 0.5, 4),), background, style, face)
        reading = read(render(scene))
        (thing,) = reading.objects
        assert (reading.background, reading.strays, thing.flaw) == (background, 0, None)
        assert (thing.shape, thing.colour, thing.face) == (shape, colour, face)
        assert thing.style == style
        assert abs(thing.x - 0.47) + abs(thing.y - 0.53) < 0.03
        assert thing.extent == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_colour_is_read_on_every_background(background: str) -> None:
    for colour in COLOURS:
        if (colour, background) in {("black", "night"), ("blue", "sky blue"), ("green", "mint"), ("yellow", "cream")}:
            continue
        for style in STYLES:
            picture = render(Scene((Placed("heart", colour, 0.5, 0.5, 0.6),), background, style, False))
            assert [thing.colour for thing in read(picture).objects] == [colour]


def test_a_true_description_is_right_and_each_changed_facet_is_named() -> None:
    picture, said = render(CAR_AND_TREE), CAR_AND_TREE.describe()
    assert judge(picture, said).ok
    car, tree = said.items
    wrong = {
        "shape": replace(said, items=(replace(car, shape="cat"), tree)),
        "colour": replace(said, items=(replace(car, colour="blue"), replace(tree, colour="red"))),
        "size": replace(said, items=(replace(car, size="large"), tree)),
        "count": Description((car,), count=1),
        "relation": replace(said, relation="right of"),
        "background": replace(said, background="white"),
        "style": replace(said, style="sketch"),
        "face": replace(said, face=False),
    }
    for facet, description in wrong.items():
        verdict = judge(picture, description)
        assert not verdict.ok
        assert verdict.facets[facet] is False
        assert verdict.reasons


def test_what_is_left_open_is_not_judged() -> None:
    verdict = judge(render(CAR_AND_TREE), Description((Item("tree"), Item("car"))))
    assert verdict.ok
    assert set(verdict.facets) == {"whole", "count", "shape"}


@pytest.mark.parametrize(("one", "other"), [("red", "orange"), ("pink", "purple"), ("green", "blue")])
@pytest.mark.parametrize("style", ["plain", "cartoon"])
def test_a_body_that_shades_off_into_another_colour_is_flawed(one: str, other: str, style: str) -> None:
    """Nobody has said its colour, but an object has one."""
    pictures = [
        render(Scene((Placed("butterfly", colour, 0.5, 0.5, 0.7),), "white", style, False)) for colour in (one, other)
    ]
    share = np.linspace(-0.5, 1.5, 64).clip(0, 1)[None, :, None]
    shaded = (pictures[0] * (1 - share) + pictures[1] * share).round().astype(np.uint8)
    right = [judge(picture, Description((Item("butterfly"),))).ok for picture in (*pictures, shaded)]
    assert right == [True, True, False]


def test_relations_are_told_apart() -> None:
    picture = render(CAR_AND_TREE)
    car, tree = Item("car"), Item("tree")
    told = {
        r: judge(picture, Description((car, tree), relation=r)).ok for r in ("left of", "right of", "above", "below")
    }
    assert told == {"left of": True, "right of": False, "above": False, "below": False}


def test_larger_pictures_and_tensors_give_the_same_reading() -> None:
    said = CAR_AND_TREE.describe()
    for size in (64, 128, 256):
        picture = render(CAR_AND_TREE, size)
        tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        assert judge(picture, said).ok
        assert judge(tensor, said) == judge(picture, said)


def test_an_empty_picture_shows_nothing() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    assert read(picture).objects == ()
    verdict = judge(picture, Description((Item("car"),)))
    assert not verdict.ok
    assert verdict.facets["count"] is False


def test_noise_is_no_object() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not judge(picture, Description((Item("car"),))).ok


def test_two_objects_that_touch_stay_two() -> None:
    scene = Scene(
        (Placed("circle", "red", 0.3, 0.5, 0.4), Placed("circle", "blue", 0.68, 0.5, 0.4)), "white", "plain", False
    )
    assert judge(render(scene), Description((Item("circle", "red"), Item("circle", "blue")))).ok


@pytest.mark.parametrize("shape", [(64, 48, 3), (3, 50, 50), (64, 64), (4, 64, 64)])
def test_a_picture_of_the_wrong_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        as_pixels(np.zeros(shape, np.float32))


def test_an_outline_with_holes_is_one_object() -> None:
    scene = Scene((Placed("circle", "blue", 0.5, 0.5, 0.6),), "white", "sketch", False)
    picture = render(scene)
    picture[10:54, 30:33] = render(replace(scene, objects=()))[10:54, 30:33]  # two halves now
    assert judge(picture, scene.describe()).ok
    picture[10:54, 20:44] = 255  # not any more
    assert not judge(picture, scene.describe()).ok


@pytest.mark.parametrize("shape", ["circle", "cat", "house"])
def test_crooked_eyes_are_a_face_and_half_a_face_is_none(shape: str) -> None:
    scene = Scene((Placed(shape, "pink", 0.5, 0.5, 0.6),), "white", "plain", True)
    faced, bare = render(scene), render(replace(scene, face=False))
    where = np.argwhere(np.abs(faced.astype(int) - bare).max(2) > 60)
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    crooked = faced.copy()
    crooked[top:bottom, left : (left + right) // 2] = np.roll(faced, 1, 0)[top:bottom, left : (left + right) // 2]
    assert judge(crooked, scene.describe()).ok
    assert not judge(crooked, replace(scene.describe(), face=False)).ok
    assert not judge(bare, scene.describe()).ok


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", BLEMISHES)
def test_a_badly_drawn_picture_may_be_right_but_is_not_clean(style: str, kind: str) -> None:
    scene = Scene((Placed("circle", "red", 0.5, 0.5, 0.62),), "gray", style, True)
    assert judge(render(scene), scene.describe()).clean
    said = Description((Item("circle", "red"),), style=style)
    verdicts = [judge(BLEMISHES[kind](scene, np.random.default_rng(seed)), said) for seed in range(8)]
    assert not any(verdict.clean for verdict in verdicts)
    right = [verdict for verdict in verdicts if verdict.ok]
    assert right
    assert all(len(verdict.blemishes) == 1 and verdict.blemishes[0].startswith("circle: ") for verdict in right)


def test_a_wrong_picture_is_not_clean() -> None:
    assert not judge(render(CAR_AND_TREE), replace(CAR_AND_TREE.describe(), relation="right of")).clean


@pytest.mark.parametrize("shape", ["circle", "car", "moon"])
def test_a_face_that_is_asked_for_must_be_one(shape: str) -> None:
    scene = Scene((Placed(shape, "red", 0.5, 0.5, 0.62),), "gray", "plain", True)
    asked, open_ = scene.describe(), replace(scene.describe(), face=None)
    smeared = [BLEMISHES["a smeared face"](scene, np.random.default_rng(seed)) for seed in range(12)]
    lost = [read(picture) for picture in smeared if read(picture).objects[0].face_likeness < NO_FACE]
    assert lost
    for reading in lost:
        assert not judge(reading, asked).facets["face"]
        assert "face" not in judge(reading, open_).facets


def test_likeness_falls_as_a_face_is_smeared_and_not_as_it_moves() -> None:
    scene = Scene((Placed("circle", "blue", 0.5, 0.5, 0.62),), "cream", "cartoon", True)
    picture = render(scene)
    moved = np.roll(picture, (1, 1), (0, 1))
    assert read(picture).objects[0].face_likeness > 0.98
    assert read(moved).objects[0].face_likeness > 0.95
    where = np.abs(picture.astype(int) - render(replace(scene, face=False))).max(2, keepdims=True) > 24
    wiped = np.where(where, 90, picture)
    assert all(thing.face_likeness < SMEARED for thing in read(wiped.astype(np.uint8)).objects if thing.face)
