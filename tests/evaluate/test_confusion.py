"""Which value was seen for which, on readings and pictures whose contents are known."""

from __future__ import annotations

import json

from zoo.data.draw import render
from zoo.data.scenes import Description, Item, Placed, Scene
from zoo.evaluate.checker import Reading, Seen, read
from zoo.evaluate.confusion import confusion, table


def seen(shape: str, colour: str, x: float = 0.5, y: float = 0.5, **other: object) -> Seen:
    return Seen(
        **{"shape": shape, "colour": colour, "style": "plain", "face": False, "x": x, "y": y, "extent": 0.4} | other
    )


def test_every_facet_that_is_said_is_counted() -> None:
    asked = Description((Item("car", "red", "small"),), 2, None, "white", "cartoon", True)
    reading = Reading("gray", (seen("car", "orange"), seen("cat", "red", face=True, extent=0.6)), 0)
    assert confusion([(asked, reading)]) == {
        "shape": {"car": {"car": 1, "cat": 1}},
        "colour": {"red": {"orange": 1, "red": 1}},
        "size": {"small": {"small": 1, "large": 1}},
        "count": {"2": {"2": 1}},
        "background": {"white": {"gray": 1}},
        "style": {"cartoon": {"plain": 2}},
        "face": {"face": {"no face": 1, "face": 1}},
        "whole": {"whole": {"whole": 2}},
    }


def test_what_is_left_open_is_not_counted() -> None:
    matrices = confusion([(Description((Item("car"),)), Reading("white", (seen("car", "red"),), 0))])
    assert set(matrices) == {"shape", "count", "whole"}


def test_pictures_add_up() -> None:
    asked = Description((Item("star", "red"),))
    readings = [Reading("white", (seen("star", colour),), 0) for colour in ("orange", "red", "orange", "pink")]
    matrices = confusion((asked, reading) for reading in readings)
    assert matrices["colour"] == {"red": {"orange": 2, "pink": 1, "red": 1}}
    assert json.loads(json.dumps(matrices)) == matrices


def test_the_item_that_is_not_there_is_the_missing_one() -> None:
    """A lone blue tree is the tree that was asked for, not a red car gone wrong."""
    asked = Description((Item("car", "red"), Item("tree", "blue")), relation="left of")
    matrices = confusion([(asked, Reading("white", (seen("tree", "blue"),), 0))])
    assert matrices["shape"] == {"car": {"missing": 1}, "tree": {"tree": 1}}
    assert matrices["colour"] == {"red": {"missing": 1}, "blue": {"blue": 1}}
    assert matrices["relation"] == {"left of": {"missing": 1}}
    first = confusion([(asked, Reading("white", (seen("car", "red"),), 0))])
    assert first["shape"] == {"car": {"car": 1}, "tree": {"missing": 1}}


def test_nothing_to_be_seen_misses_everything() -> None:
    asked = Description((Item("fish", "pink"),), 3, background="mint", style="sketch", face=False)
    matrices = confusion([(asked, Reading(None, (), 2))])
    assert matrices["shape"] == {"fish": {"missing": 3}}
    assert matrices["count"] == {"3": {"0": 1}}
    assert matrices["background"] == {"mint": {"unclear": 1}}
    assert matrices["face"] == {"no face": {"missing": 3}}
    assert matrices["whole"] == {"whole": {"stray specks": 1}}


def test_relations_as_seen() -> None:
    asked = Description((Item("car"), Item("tree")), relation="left of")

    def relation(x: float, y: float) -> dict[str, int]:
        reading = Reading("white", (seen("tree", "red", 0.5, 0.5), seen("car", "red", x, y)), 0)
        return confusion([(asked, reading)])["relation"]["left of"]

    assert relation(0.2, 0.5) == {"left of": 1}
    assert relation(0.8, 0.5) == {"right of": 1}
    assert relation(0.5, 0.2) == {"above": 1}
    assert relation(0.5, 0.8) == {"below": 1}
    assert relation(0.51, 0.51) == {"unclear": 1}


def test_a_drawn_picture() -> None:
    scene = Scene(
        (Placed("car", "red", 0.27, 0.5, 0.42, 3), Placed("tree", "blue", 0.74, 0.5, 0.42, -3)), "cream", "plain", False
    )
    asked = Description((Item("car", "red"), Item("tree", "green")), relation="above", background="cream")
    matrices = confusion([(asked, read(render(scene)))])
    assert matrices["colour"] == {"red": {"red": 1}, "green": {"blue": 1}}
    assert matrices["relation"] == {"above": {"left of": 1}}
    assert matrices["background"] == {"cream": {"cream": 1}}


def test_the_table_names_the_most_frequent_first() -> None:
    matrices = {
        "colour": {"red": {"red": 20, "orange": 7, "pink": 1}, "blue": {"purple": 3, "black": 2}},
        "count": {"2": {"2": 4}},
    }
    assert table(matrices).splitlines() == [
        "colour          13 of 33  red -> orange (7), blue -> purple (3), blue -> black (2)",
        "count             0 of 4",
    ]
    assert "blue -> purple" not in table(matrices, most=1)
