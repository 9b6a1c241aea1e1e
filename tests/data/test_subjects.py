"""The subjects are what their captions say, always the same, and nothing that the world draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.data.draw import BACKDROP, PALETTE, Figure, render
from zoo.data.folder import ImageFolder
from zoo.data.scenes import COLOURS, Placed, Scene
from zoo.data.subjects import (
    CREATURES,
    MAROON_ASKED,
    P7,
    P7_FIGURE,
    creature,
    creature_pictures,
    draw_creature,
    draw_p7,
    maroon,
    maroon_pictures,
    p7_pictures,
    write,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


def one(shape: str, colour: str = "blue", style: str = "plain", background: str = "white") -> Scene:
    return Scene((Placed(shape, colour, 0.5, 0.5, 0.7),), background, style, False)


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("p7", p7_pictures()), ("creatures", creature_pictures()), ("maroon", maroon_pictures())],
)
def test_the_examples_are_what_the_code_draws(name: str, pictures: list[tuple[str, np.ndarray]]) -> None:
    folder = ImageFolder(EXAMPLES / name)
    assert [picture.text for picture in folder] == [said for said, _ in pictures]
    for picture, (_, pixels) in zip(folder, pictures, strict=True):
        assert np.array_equal(np.asarray(picture.image()), pixels)
    assert sum(file.stat().st_size for file in (EXAMPLES / name).iterdir()) < 100_000


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    write(tmp_path / "more", "p7", p7_pictures(7, seed=1))
    folder = ImageFolder(tmp_path / "more")
    assert len(folder) == 7
    assert not np.array_equal(np.asarray(folder[0].image()), p7_pictures(1)[0][1])


def test_p7_captions_are_true() -> None:
    for said, pixels in p7_pictures():
        ground = next(name for name in BACKDROP if f"on a {name} background" in said)
        assert np.abs(pixels[0, 0].astype(int) - BACKDROP[ground][0]).max() <= 2
        assert ground != "cream", "which is kept to be asked for"


def test_maroon_things_are_what_their_captions_say() -> None:
    for said, pixels in maroon_pictures():
        ground = next(name for name in BACKDROP if f"on a {name} background" in said)
        assert np.abs(pixels[0, 0].astype(int) - BACKDROP[ground][0]).max() <= 2
        assert not [shape for shape in MAROON_ASKED if shape in said]
        body = np.linalg.norm(pixels.astype(int) - maroon("car").paints["body"], axis=2) < 8
        assert body.sum() > 100, said


def test_the_p7_is_no_car_of_the_world() -> None:
    """Another outline in any colour, more colours than one, and lights at both ends."""
    drawn = draw_p7(one(P7)).astype(int)
    inside = np.abs(drawn - 255).max(2) > 30
    for colour in COLOURS:
        car = np.abs(render(one("car", colour)).astype(int) - 255).max(2) > 30
        assert (inside & car).sum() / (inside | car).sum() < 0.78
    where = {}
    for name, least in (("body", 100), ("disc", 10), ("trim", 30), ("lamp", 6)):
        near = (np.linalg.norm(drawn - np.array(P7_FIGURE.paints[name]), axis=2) < 40) & inside
        assert near.sum() >= least, name
        where[name] = np.nonzero(near)[1] / 64
    assert where["trim"].min() < 0.3, "it drives to the right: its wing is on the left"
    assert where["lamp"].min() < 0.3 < 0.7 < where["lamp"].max()


@pytest.mark.parametrize("style", ["plain", "cartoon", "sketch"])
def test_figures_take_the_worlds_styles(style: str) -> None:
    drawn = draw_p7(one(P7, style=style))
    others = [draw_p7(one(P7, style=other)) for other in ("plain", "cartoon", "sketch") if other != style]
    assert all(np.abs(drawn.astype(int) - other).max() > 60 for other in others)


def test_figures_leave_the_world_as_it_is() -> None:
    scene = Scene((Placed("car", "red", 0.3, 0.5, 0.4), Placed("tree", "pink", 0.7, 0.5, 0.4)), "mint", "cartoon", True)
    assert np.array_equal(render(scene, 64, {P7: P7_FIGURE}), render(scene))
    own = Figure(P7_FIGURE.art, {name: tint for name, tint in P7_FIGURE.paints.items() if name != "body"})
    red, blue = (render(one("own", colour), 64, {"own": own}) for colour in ("red", "blue"))
    assert not np.array_equal(red, blue), "a figure without a body colour has the scene's"


def test_creatures_are_two_toned_have_eyes_and_traits_of_their_own() -> None:
    drawn = {shape: draw_creature(one(shape, "green", "cartoon")).astype(int) for shape in CREATURES}
    for shape, picture in drawn.items():
        body = np.array(PALETTE["green"])
        for tint, least in ((body, 60), (body + (255 - body) * 0.5, 20), (np.array((30, 26, 36)), 60)):
            assert (np.linalg.norm(picture - tint, axis=2) < 24).sum() >= least, (shape, tint)
        world = render(one(shape, "green", "cartoon")).astype(int)
        assert np.abs(picture - world).mean() > 8, shape
    pairs = [(a, b) for a in CREATURES for b in CREATURES if a < b]
    assert min(np.abs(drawn[a] - drawn[b]).mean() for a, b in pairs) > 2


def test_there_is_not_a_creature_for_everything() -> None:
    with pytest.raises(ValueError, match="there is no car creature; there are: cat, butterfly"):
        creature("car")
