"""The checker's record meets what is asked of it; defects are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zoo.data.draw import render
from zoo.data.scenes import Placed, Scene, random_scene
from zoo.evaluate.calibration import any_scenes, calibrate, changes, holds, table
from zoo.evaluate.defects import BLEMISHES, DEFECTS


@pytest.mark.parametrize("condition", ["clean", "blurred and noisy", "wobbly"])
def test_the_checker_is_calibrated(condition: str) -> None:
    report = calibrate(120, seed=7, conditions=(condition,))
    assert holds(report), table(report)
    assert report["true"][condition] >= (0.95 if condition == "wobbly" else 0.99)
    assert report["changed"][condition]["all"] <= 0.01
    assert set(report["changed"][condition]) == {
        "all",
        "shape",
        "colour",
        "size",
        "background",
        "count",
        "relation",
        "style",
        "face",
    }
    assert set(report["defects"][condition]) == set(DEFECTS)
    assert min(report["defects"][condition].values()) >= 0.95
    assert set(report["blemishes"][condition]) == set(BLEMISHES)
    assert all(kind in table(report) for kind in (*DEFECTS, *BLEMISHES))


def test_a_calibration_repeats_itself() -> None:
    assert calibrate(8, seed=3, conditions=("noisy",)) == calibrate(8, seed=3, conditions=("noisy",))


@pytest.mark.parametrize("kind", [*DEFECTS, *BLEMISHES])
def test_what_is_spoilt_differs(kind: str) -> None:
    rng = np.random.default_rng(1)
    spoil = (DEFECTS | BLEMISHES)[kind]
    for _ in range(10):
        scene = replace(random_scene(rng, kind="single"), face=True)
        scene = replace(scene, objects=tuple(replace(thing, colour="red") for thing in scene.objects))
        assert np.abs(spoil(scene, rng).astype(int) - render(scene)).max() > 20


@pytest.mark.parametrize("kind", BLEMISHES)
def test_a_scene_without_what_could_be_spoilt_is_refused(kind: str) -> None:
    scene = Scene((Placed("star", "black", 0.5, 0.5, 0.5),), "white", "plain", False)
    with pytest.raises(ValueError, match="the scene has no"):
        BLEMISHES[kind](scene, np.random.default_rng(0))


def test_each_change_changes_one_facet() -> None:
    rng = np.random.default_rng(2)
    for scene in any_scenes(rng, 40):
        said = scene.describe()
        for facet, other in changes(said, rng):
            differing = {
                k for k in ("count", "relation", "background", "style", "face") if getattr(said, k) != getattr(other, k)
            }
            for a, b in zip(said.items, other.items, strict=True):
                differing |= {k for k in ("shape", "colour", "size") if getattr(a, k) != getattr(b, k)}
            assert differing == {facet}


def test_every_figure_must_be_as_good_as_asked() -> None:
    one, none = {"any": 1.0}, {"any": 0.0}
    good = calibrate(1, conditions=("clean",)) | {"true": {"clean": 1.0}, "clean": {"clean": 1.0}}
    good |= {"changed": {"clean": none}, "defects": {"clean": one}, "blemishes": {"clean": one}}
    assert holds(good)
    for part, bad in (("true", 0.98), ("clean", 0.98)):
        assert not holds(good | {part: {"clean": bad}})
    for part, bad in (("changed", 0.02), ("defects", 0.94), ("blemishes", 0.79)):
        assert not holds(good | {part: {"clean": {"any": bad}}})
