"""The scenes world: what is drawn, what is held out, and that a picture shows its scene."""

import json

import numpy as np
import pytest

from zoo.data.artwork import ARTWORK
from zoo.data.draw import PALETTE, render
from zoo.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    FACE_EXTENT,
    GAP,
    INDISTINCT,
    RELATIONS,
    SHAPES,
    SINGLE_SIZES,
    STYLES,
    Description,
    Placed,
    Scene,
    heldout,
    is_heldout,
    random_scene,
)


def scenes(n: int, seed: int = 0, **how: str) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, **how) for _ in range(n)]


def test_no_training_scene_is_held_out() -> None:
    pairs, object_pairs = heldout()
    assert (len(pairs), len(object_pairs)) == (16, 24)
    seen_colours, seen_shapes = set(), set()
    for scene in scenes(100_000, seed=1):
        seen_colours |= {(o.colour, o.shape) for o in scene.objects}
        if scene.relation:
            seen_shapes.add(frozenset(o.shape for o in scene.objects))
    assert seen_colours == {(c, s) for c in COLOURS for s in SHAPES} - pairs
    assert not seen_shapes & object_pairs
    assert len(seen_shapes) == len(SHAPES) * (len(SHAPES) - 1) // 2 - len(object_pairs)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_held_out_scenes_keep_to_their_half(split: str) -> None:
    other = "test" if split == "dev" else "dev"
    for scene in scenes(300, split=split):
        assert is_heldout(scene.describe(), split)
        assert not is_heldout(scene.describe(), other)


def test_dev_and_test_are_the_two_halves() -> None:
    for whole, dev, test in zip(heldout(), heldout("dev"), heldout("test"), strict=True):
        assert dev | test == whole
        assert not dev & test
        assert len(dev) == len(test)


def test_scenes_cover_every_facet() -> None:
    drawn = scenes(4000)
    assert {o.shape for s in drawn for o in s.objects} == set(SHAPES)
    assert {s.background for s in drawn} == set(BACKGROUNDS)
    assert {s.style for s in drawn} == set(STYLES)
    assert {s.relation for s in drawn} == {None, *RELATIONS}
    assert {len(s.objects) for s in drawn if not s.relation} == {1, 2, 3, 4}
    harder = sum(bool(s.relation) or len(s.objects) > 1 for s in drawn) / len(drawn)
    assert harder == pytest.approx(0.6, abs=0.03)


def test_objects_are_large_enough_apart_and_inside() -> None:
    for scene in scenes(4000, seed=3):
        least = FACE_EXTENT if scene.face else 0.29
        for o in scene.objects:
            assert o.extent >= least - 1e-3
            assert (o.colour, scene.background) not in INDISTINCT
            assert all(o.extent / 2 <= at <= 1 - o.extent / 2 for at in (o.x, o.y))
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.extent + b.extent) / 2 + GAP - 1e-3


def test_relation_is_where_the_objects_are() -> None:
    for scene in scenes(2000, seed=4, kind="relation"):
        a, b = scene.objects
        dx, dy = b.x - a.x, b.y - a.y
        gone = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}
        assert max(gone, key=lambda name: gone[name]) == scene.relation
        assert a.colour != b.colour
        assert a.shape != b.shape


def test_size_word_is_the_extent() -> None:
    for scene in scenes(1000, seed=5, kind="single"):
        low, high = SINGLE_SIZES[scene.describe().items[0].size or ""]
        assert low - 1e-4 <= scene.objects[0].extent <= high + 1e-4


def test_scene_and_description_survive_json() -> None:
    for scene in scenes(200, seed=6):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
        said = scene.describe()
        assert Description.from_dict(json.loads(json.dumps(said.to_dict()))) == said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "needs 'items'"),
        ({"items": [{"shape": "dog"}]}, "shape is 'dog'"),
        ({"items": [{"colour": "red"}]}, "shape is None"),
        ({"items": [{"shape": "cat", "color": "red"}]}, "unknown fields"),
        ({"items": [{"shape": "cat"}], "count": 5}, "count is 5"),
        ({"items": [{"shape": "cat"}], "relation": "above"}, "two items"),
        ({"items": [{"shape": "cat"}, {"shape": "car"}], "count": 2}, "cannot have a count"),
        ({"items": [{"shape": "cat"}], "style": "oil"}, "style is 'oil'"),
        ({"items": [{"shape": "cat"}], "mood": "sad"}, "mood"),
    ],
)
def test_bad_descriptions_say_what_is_wrong(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Description.from_dict(data)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_fits_its_box_and_shows_its_colour(shape: str) -> None:
    scene = Scene((Placed(shape, "red", 0.5, 0.5, 0.7),), "white", "plain", False)
    picture = render(scene, 128).astype(int)
    ink = np.argwhere(np.abs(picture - 253).max(-1) > 20) / 128
    assert ink.min() > 0.5 - 0.37
    assert ink.max() < 0.5 + 0.37
    assert (ink.max(0) - ink.min(0)).max() > 0.6
    red = (np.abs(picture - PALETTE["red"]).max(-1) < 40).sum() / len(ink)
    assert red > 0.3


def test_the_same_picture_at_two_resolutions() -> None:
    for scene in scenes(30, seed=7):
        large = render(scene, 256).astype(float).reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(large - render(scene, 64)).mean() < 3


def test_sketches_show_the_background_inside() -> None:
    scene = Scene((Placed("circle", "blue", 0.5, 0.5, 0.7),), "mint", "sketch", False)
    picture = render(scene, 64).astype(int)
    assert np.abs(picture[32, 32] - picture[32, 2]).max() < 4


def test_a_face_is_drawn_where_asked() -> None:
    for shape in ARTWORK:
        with_face, without = (
            render(Scene((Placed(shape, "green", 0.5, 0.5, 0.7),), "white", "plain", face), 64)
            for face in (True, False)
        )
        assert (np.abs(with_face.astype(int) - without).max(-1) > 60).mean() > 0.01
