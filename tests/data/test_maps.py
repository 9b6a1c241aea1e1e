"""Semantic maps: every pixel has the class of what is drawn there."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from zoo.data.draw import footprints, render
from zoo.data.maps import CLASSES, as_picture, draw_map
from zoo.data.scenes import SHAPES, STYLES, Placed, Scene, random_scene

TWO = Scene(
    (Placed("ring", "red", 0.27, 0.5, 0.42), Placed("tree", "blue", 0.74, 0.5, 0.42)),
    "white",
    "plain",
    False,
    "left of",
)


def test_classes_are_the_background_and_the_shapes() -> None:
    assert CLASSES[0] == "background"
    assert CLASSES[1:] == SHAPES
    painted = draw_map(TWO)
    assert painted.shape == (64, 64)
    assert painted.dtype == np.uint8
    assert set(np.unique(painted)) == {0, CLASSES.index("ring"), CLASSES.index("tree")}
    assert painted[32, 17] == 0, "a ring has a hole"
    assert painted[32, 17 - 10] == CLASSES.index("ring")
    assert painted[28, 47] == CLASSES.index("tree")
    assert set(np.unique(painted[:, :32])) == {0, CLASSES.index("ring")}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
def test_a_map_covers_what_is_drawn_and_nothing_else(shape: str, style: str) -> None:
    scene = Scene((Placed(shape, "red", 0.47, 0.53, 0.6, 5),), "gray", style, False)
    differs = np.abs(render(scene).astype(int) - render(replace(scene, objects=()))).max(-1)
    painted = draw_map(scene) > 0
    assert painted.any()
    # A pixel's width off at most: edges are smooth.
    assert not ((differs > 60) & ~ndimage.binary_dilation(painted)).any()
    if style != "sketch":  # which one sees through; glass meets ink in a shade of gray
        assert ((differs < 12) & ndimage.binary_erosion(painted)).sum() <= 0.01 * painted.sum()


def test_maps_of_other_sizes_are_the_same_map() -> None:
    for seed in range(10):
        scene = random_scene(np.random.default_rng(seed))
        large = draw_map(scene, 256)[2::4, 2::4]
        assert (large != draw_map(scene, 64)).mean() < 0.03


def test_each_object_has_its_own_footprint() -> None:
    ring, tree = footprints(TWO)
    assert not (ring & tree).any()
    assert ((ring | tree) == (draw_map(TWO) > 0)).all()


def test_a_map_as_a_picture_keeps_its_numbers_and_shows_its_classes() -> None:
    file = io.BytesIO()
    as_picture(draw_map(TWO)).save(file, format="PNG")
    with Image.open(file) as picture:
        assert (np.array(picture) == draw_map(TWO)).all()
        assert len(picture.convert("RGB").getcolors()) == 3
    every = as_picture(np.arange(len(CLASSES), dtype=np.uint8)[None]).convert("RGB")
    assert len(set(every.getdata())) == len(CLASSES)
