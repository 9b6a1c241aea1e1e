"""Scores of pictures of which it is known how they keep to their maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from zoo.data.scenes import Placed, Scene, is_heldout
from zoo.evaluate.editing import as_tensor
from zoo.evaluate.maps import MEASURES, Painted, cells_kept, evaluate, measure, painted

STAR = Scene((Placed("star", "red", 0.3, 0.3, 0.4),), "white", "cartoon", False)


@dataclass
class Pictures:
    tensor: torch.Tensor


class Painter:
    """Draws what is painted, if it is given the map; else one star."""

    def __init__(self, n: int) -> None:
        self.known = {p.seed: p for split in ("train", "dev") for p in painted(n, split=split)}

    def __call__(
        self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **settings: object
    ) -> Pictures:
        asked = [self.known[s] for s in seed]
        assert [p.prompt for p in asked] == list(prompts)
        if "layout" not in settings:
            return Pictures(torch.stack([as_tensor(STAR)] * len(asked)))
        assert settings["layout"].shape == (len(asked), 64, 64)
        assert torch.equal(settings["layout"][0], asked[0].layout)
        return Pictures(torch.stack([as_tensor(p.scene) for p in asked]))


def test_who_keeps_to_the_map_scores_one_and_who_does_not_does_not() -> None:
    report, kept = evaluate(Painter(6), n=6, batch=4, progress=False)
    assert len(kept) == 6
    assert (report["scenes"], report["images"]) == (12, 24)
    for split in ("seen", "held_out"):
        keeping, straying = report["kept"][split]["with"], report["kept"][split]["without"]
        assert set(keeping) == set(MEASURES)
        assert all(keeping[name] >= 0.99 for name in MEASURES), keeping
        assert straying["object cells"] < 0.7
        assert straying["objects"] < 0.3
        assert straying["prompt"] < 0.3
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("style", ["plain", "cartoon", "sketch"])
def test_drawn_scenes_keep_their_own_cells(style: str) -> None:
    for one in painted(12):
        scene = replace(one.scene, style=style)
        objects, background = cells_kept(as_tensor(scene), Painted(scene, "", 0).layout.numpy())
        assert objects >= 0.97
        assert background >= 0.97


def test_what_each_measure_catches() -> None:
    asked = Painted(STAR, "a red star", 0)

    def kept(**changes: object) -> list[float]:
        found = measure(asked, as_tensor(replace(STAR, objects=(replace(STAR.objects[0], **changes),))))
        return [found.object_cells, found.background_cells, found.objects, found.prompt]

    assert kept() == [1, 1, 1, 1]
    moved = kept(x=0.7, y=0.7)
    assert moved[0] == 0
    assert moved[1] < 0.95
    assert moved[2:] == [0, 1], "the prompt says no place"
    assert kept(colour="blue")[:3] == [1, 1, 1]
    assert kept(colour="blue")[3] == 0
    other = kept(shape="circle")
    assert other[0] > 0.95
    assert other[2:] == [0, 0]
    assert measure(asked, torch.full((3, 64, 64), 1.0)).object_cells == 0
    assert kept(extent=0.55)[1] < 1, "larger than painted"


def test_maps_to_ask_for() -> None:
    seen, dev = painted(30), painted(30, split="dev")
    assert painted(5) == seen[:5]
    assert not any(is_heldout(p.scene.describe()) for p in seen)
    assert all(is_heldout(p.scene.describe(), "dev") and not is_heldout(p.scene.describe(), "test") for p in dev)
    assert len({p.seed for p in seen + dev}) == 60
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Painter(1), n=0)
