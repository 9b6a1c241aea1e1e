"""What is said of variations, on variations that are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from zoo.evaluate.checker import Seen
from zoo.evaluate.intervals import of_share
from zoo.evaluate.variations import SEED, elsewhere, measure

N = 6
AT = Seen("star", "red", "plain", False, 0.5, 0.5, 0.5)


def at(**changes: float) -> Seen:
    return Seen(**{**vars(AT), **changes})


def test_the_picture_itself_keeps_everything_and_changes_nothing() -> None:
    asked: list[int] = []

    def same(pictures: Tensor, seeds: Sequence[int]) -> Tensor:
        asked.extend(seeds)
        return pictures

    found = measure(same, n=N, batch=4)
    assert (found["kept"], found["changed"], found["scenes"]) == (1, 0, N)
    assert found["kept_interval"] == pytest.approx(of_share(N, N), abs=1e-4)
    assert asked == [SEED + i for i in range(N)]


def test_what_moved_is_kept_and_changed_and_another_object_is_neither() -> None:
    moved = measure(lambda pictures, seeds: pictures.roll(6, 3), n=8)  # those near an edge are cut in two
    assert moved["kept"] > 0.3
    assert moved["changed"] == 1
    assert measure(lambda pictures, seeds: pictures.roll(1, 0), n=N, batch=N)["kept"] < 0.5, "other objects"


def test_nothing_kept_has_no_share_of_changes() -> None:
    found = measure(lambda pictures, seeds: torch.ones_like(pictures), n=2)
    assert (found["kept"], found["changed"], found["changed_interval"]) == (0, None, None)
    with pytest.raises(ValueError, match="variations are"):
        measure(lambda pictures, seeds: pictures[..., :32], n=2)


@pytest.mark.parametrize(
    ("seen", "changed"),
    [
        (at(), False),
        (at(x=0.5 + 3.9 / 64), False),
        (at(x=0.5 + 4 / 64), True),
        (at(x=0.5 + 3 / 64, y=0.5 - 3 / 64), True),
        (at(extent=0.5 * 1.14**0.5), False),
        (at(extent=0.5 * 1.16**0.5), True),
        (at(extent=0.5 * 0.84**0.5), True),
    ],
)
def test_four_pixels_or_fifteen_per_cent_are_a_change(seen: Seen, changed: bool) -> None:
    assert elsewhere(seen, AT) is changed
