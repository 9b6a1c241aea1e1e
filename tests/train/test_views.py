"""More pictures of a subject than its few: smaller and elsewhere, and beside other things."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.train.views import SIDES, BesideTable, beside, companions, views

CAPTIONS = ["a Zip on a white background", "a Zip, cartoon"]
TABLE = BesideTable(subject="a Zip", things=("a red fish", "a star", "a tree"), each=4)


def test_views_are_smaller_and_elsewhere_and_the_border_goes_on() -> None:
    picture = np.full((1, 20, 20, 3), 200, np.uint8)
    picture[:, 4:16, 4:16] = 0
    seen = views(np.concatenate([picture, picture]), 8, seed=0)
    assert seen.shape == (16, 20, 20, 3)
    assert (seen[0] == picture).all()
    assert (seen[8] == picture).all()
    dark = (seen < 100).any(-1)
    sizes, places = dark.sum((1, 2)), [tuple(np.argwhere(one).mean(0).round()) for one in dark]
    assert sizes.min() < 0.4 * sizes[0] < sizes.max() == sizes[0]
    assert len(set(places)) > 8
    assert (seen[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 200).all(), "the ground is what it was"


def test_companions_take_the_subjects_place_in_every_caption() -> None:
    assert companions(CAPTIONS, TABLE) == [
        *(f"{thing} on a white background" for thing in TABLE.things),
        *(f"{thing}, cartoon" for thing in TABLE.things),
    ]
    with pytest.raises(ValueError, match="'a Zip' is not in the caption 'a zip'"):
        companions(["a zip"], TABLE)
    with pytest.raises(ValueError, match="Set beside.subject"):
        BesideTable(things=("a star",))


def test_the_subject_stands_where_the_caption_says_beside_its_companion() -> None:
    """Subjects have the shades 10 and 50, companions count up from 90 by 25, the ground is 255."""

    def square(shade: int) -> np.ndarray:
        picture = np.full((32, 32, 3), 255, np.uint8)
        picture[4:28, 4:28] = shade
        return picture

    pixels = np.stack([square(10), square(50)])
    drawn = np.stack([square(90 + 25 * i) for i in range(6)])
    made, said = beside(pixels, CAPTIONS, drawn, TABLE, seed=0)
    assert made.shape == (24, 32, 32, 3)
    assert len(said) == 24
    relations, full = set(), 0
    for index, (picture, caption) in enumerate(zip(made, said, strict=True)):
        own, other = (
            (np.abs(picture[..., 0].astype(int) - shade) < 12)
            for shade in (10 + 40 * (index // 12), 90 + 25 * (index // 4))
        )
        assert 60 < own.sum() < 200
        assert 60 < other.sum() < 200
        relation = next(name for name in SIDES if f"a Zip {name} {TABLE.things[index // 4 % 3]}" in caption)
        axis, first = SIDES[relation]
        mine, theirs = (np.median(np.nonzero(mask)[axis]) for mask in (own, other))  # edges have any shade
        assert (mine < 15.5 < theirs) if first else (theirs < 15.5 < mine)
        relations.add(relation)
        full += caption.endswith(CAPTIONS[index // 12].removeprefix("a Zip"))
    assert relations == set(SIDES)
    assert 4 < full < 20, "surroundings are said in one caption of two"
