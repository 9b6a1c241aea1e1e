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


def test_older_evaluations_have_none() -> None:
    lines = card()
    assert "| counting | 0.5 | 1 | 0.25 | – |" in lines
    assert not any("In brackets" in line for line in lines)
