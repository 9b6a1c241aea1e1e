"""The card's table of scores, with and without intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import config as configs
from zoo import model_card

SHIPPED = Path(__file__).parent.parent / "weights" / "stable-diffusion-small"
ROWS = {"en": 0.5, "zh": 1.0}, {"en": 0.25, "zh": None}
ENDS = {"en": [0.0945, 0.9055], "zh": [0.3424, 1.0]}, {"en": [0.0456, 0.6994], "zh": None}


def card(**more: Any) -> list[str]:
    cell = {"seen": ROWS[0], "held_out": ROWS[1]}
    evaluation = {"overall": cell, "tasks": {"counting": cell}, "images": 6, "heldout": "dev"} | more
    config = configs.read(SHIPPED).model_copy(update={"results": {"evaluation": evaluation}})
    return model_card.render(config).splitlines()


def test_scores_are_followed_by_their_intervals() -> None:
    cell = {"seen": ENDS[0], "held_out": ENDS[1]}
    lines = card(intervals={"overall": cell, "tasks": {"counting": cell}, "facets": {}})
    assert "| counting | 0.5 (0.09–0.91) | 1 (0.34–1.00) | 0.25 (0.05–0.70) | – |" in lines
    assert "| **overall** | 0.5 (0.09–0.91) | 1 (0.34–1.00) | 0.25 (0.05–0.70) | – |" in lines
    assert any("In brackets: the 95 % interval." in line for line in lines)


def test_what_is_cleanly_drawn_has_a_row_and_a_word_on_the_checker() -> None:
    cell, ends = ({"seen": both[0], "held_out": both[1]} for both in (ROWS, ENDS))
    intervals = {"overall": ends, "clean": ends, "tasks": {"counting": ends}, "facets": {}}
    said = {"clean": 1.0}
    checker = {"scenes": 8, "true": said, "changed": {"clean": {"all": 0.0}}, "defects": {"clean": {"cut": 1.0}}}
    without = card(intervals=intervals, checker=checker)
    assert not any("cleanly drawn too" in line.lower() for line in without)
    lines = card(
        intervals=intervals, clean=cell, checker=checker | {"clean": said, "blemishes": {"clean": {"smear": 0.875}}}
    )
    assert "| overall, cleanly drawn too | 0.5 (0.09–0.91) | 1 (0.34–1.00) | 0.25 (0.05–0.70) | – |" in lines
    assert any("100 % of true drawings pass, and 87.5 % of each kind" in line for line in lines)


def test_edits_have_a_curve_over_strengths_and_inpainting_beside_it() -> None:
    one, two = {"changed": 0.25, "kept": 1.0, "both": 0.125}, {"changed": 1.0, "kept": 0.5, "both": 0.375}
    painted = {"changed": 0.75, "kept": 0.875, "both": 0.625, "outside": 0.0, "seam": 2.5}
    edited = {
        "img2img": {change: {"0.4": one, "0.8": two} for change in ("colour", "shape")},
        "inpainting": dict.fromkeys(("colour", "shape"), painted),
        "scenes": 96,
        "images": 144,
        "seconds": 9.0,
    }
    lines = result_lines(editing=edited)
    assert "| asked for |  | strength 0.4 | strength 0.8 | inpainting |" in lines
    assert "| another colour | changed as asked | 0.25 | 1 | 0.75 |" in lines
    assert "| another shape | both | 0.125 | 0.375 | 0.625 |" in lines
    assert any("24 scenes each" in line and "differ by 0.00 of 255" in line for line in lines)
    assert any("(editing.webp)" in line for line in lines)


def test_maps_are_shown_with_and_without() -> None:
    shares = {"object cells": 0.95, "background cells": 0.97, "objects": 0.8, "prompt": 0.7}
    less = {name: share / 2 for name, share in shares.items()}
    kept = {split: {"with": shares, "without": less} for split in ("seen", "held_out")}
    lines = result_lines(maps={"kept": kept, "scenes": 96, "images": 192, "seconds": 9.0})
    assert "| share | seen, with map | seen, without map | held out, with map | held out, without map |" in lines
    assert "| cells painted as an object that show one | 0.95 | 0.475 | 0.95 | 0.475 |" in lines
    assert any("(maps.webp)" in line for line in lines)


def result_lines(**results: Any) -> list[str]:
    return model_card.render(configs.read(SHIPPED).model_copy(update={"results": results})).splitlines()


def test_older_evaluations_have_none() -> None:
    lines = card()
    assert "| counting | 0.5 | 1 | 0.25 | – |" in lines
    assert not any("In brackets" in line for line in lines)
