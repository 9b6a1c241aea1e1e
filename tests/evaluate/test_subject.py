"""The P7 is told from everything else, wherever it is, and the checker's record is as good as it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.data.draw import PALETTE, Figure, render
from zoo.data.scenes import Placed, Scene
from zoo.data.subjects import P7, P7_FIGURE, draw_p7, p7_pictures
from zoo.evaluate.subject import calibrate, holds, is_p7, sightings, table

CAR = Placed(P7, "blue", 0.3, 0.55, 0.42, 4.0)


@pytest.mark.parametrize("condition", ["clean", "blurred and noisy", "wobbly"])
def test_the_p7_checker_is_calibrated(condition: str) -> None:
    trust = calibrate(20, seed=11, conditions=(condition,))
    print(table(trust))
    assert holds(trust), table(trust)
    assert all(kind in table(trust) for kind in trust["refused"][condition])


@pytest.mark.slow
def test_the_p7_checker_is_calibrated_on_many() -> None:
    trust = calibrate(150, seed=12)
    print(table(trust))
    assert holds(trust), table(trust)


def test_a_record_that_is_too_poor_does_not_hold() -> None:
    good = calibrate(1, seed=0, conditions=("clean",))
    assert holds(good)
    assert not holds(good | {"accepted": {"clean": 0.97}})
    assert not holds(good | {"refused": {"clean": {"ordinary cars": 0.98}}})
    assert holds(good | {"refused": {"clean": {"sketches of P7s": 0.98}}})
    with pytest.raises(ValueError, match="at least 1"):
        calibrate(0)


def test_the_pictures_that_models_learn_from_are_p7s() -> None:
    for said, pixels in p7_pictures(10, seed=3):
        assert is_p7(pixels), said
        as_tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        assert sightings(as_tensor)[0] == sightings(pixels)[0]


def test_it_is_found_beside_other_things_and_where_it_is() -> None:
    for style in ("plain", "cartoon"):
        others = (Placed("tree", "red", 0.75, 0.4, 0.4), Placed("star", "pink", 0.7, 0.82, 0.3))
        found = sightings(draw_p7(Scene((CAR, *others), "mint", style, False)))
        assert [one.ok for one in found] == [True, False, False]
        first = found[0]
        assert (first.x, first.y) == pytest.approx((CAR.x, CAR.y), abs=0.04)
        assert first.extent == pytest.approx(CAR.extent, rel=0.12)
        assert first.style == style


def test_it_is_found_where_it_touches_another_thing() -> None:
    touching = draw_p7(Scene((CAR, Placed("square", "pink", 0.68, 0.5, 0.36)), "white", "plain", False))
    assert is_p7(touching)


@pytest.mark.parametrize(
    ("paints", "flaw"),
    [
        ({"body": PALETTE["red"]}, ("livery",)),
        ({"disc": P7_FIGURE.paints["body"]}, ("livery",)),
        ({"trim": PALETTE["yellow"]}, ("livery",)),
        ({"brake": P7_FIGURE.paints["body"], "lamp": P7_FIGURE.paints["body"]}, ("lights",)),
    ],
)
def test_what_is_wrong_is_said(paints: dict[str, tuple[int, int, int]], flaw: tuple[str, ...]) -> None:
    spoilt = Figure(P7_FIGURE.art, {**P7_FIGURE.paints, **paints})
    scene = Scene((Placed(P7, "blue", 0.5, 0.5, 0.7),), "white", "cartoon", False)
    found = sightings(render(scene, 64, {P7: spoilt}))[0]
    assert not found.ok
    assert found.flaws == flaw
    ordinary = sightings(render(Scene((Placed("car", "red", 0.5, 0.5, 0.7),), "white", "plain", False)))[0]
    assert "outline" in ordinary.flaws
    assert "livery" in ordinary.flaws


def test_nothing_shows_nothing() -> None:
    assert sightings(np.full((64, 64, 3), 255, np.uint8)) == []
    with pytest.raises(ValueError, match="cannot be judged"):
        is_p7(np.zeros((10, 64, 3), np.uint8))
