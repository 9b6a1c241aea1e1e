"""What is said of ways to tell a decoder of a scene, on ways whose quality is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.data.scenes import is_heldout
from zoo.evaluate.feeding import diversity, measure
from zoo.evaluate.fresh_scenes import Drawn, fresh
from zoo.evaluate.intervals import of_share


def test_the_truth_is_right_and_other_scenes_are_wrong() -> None:
    asked: list[Drawn] = []

    def truth(part: Drawn) -> Tensor:
        asked.append(part)
        return part.pictures

    def half(part: Drawn) -> Tensor:
        return torch.cat([part.pictures[:1], part.pictures[:1].expand(len(part) - 1, -1, -1, -1)])

    found = measure({"truth": truth, "first": half}, n=6, batch=3)
    assert found["truth"]["ok"] == 1
    assert found["truth"]["interval"] == pytest.approx(of_share(6, 6), abs=1e-4)
    assert found["first"]["ok"] == pytest.approx(1 / 3, abs=1e-4), "of each batch of 3 the first alone is its scene"
    assert [len(part) for part in asked] == [3, 3]
    with pytest.raises(ValueError, match="at least 1 scene"):
        measure({}, n=0)


def test_fresh_scenes_are_the_same_for_a_seed() -> None:
    few, many = fresh(3, 5), fresh(6, 5)
    assert few.scenes == many.scenes[:3]
    assert few.prompts == many.prompts[:3]
    assert torch.equal(few.pictures, many.pictures[:3])
    assert [is_heldout(scene.describe(), "dev") for scene in many.scenes] == [False, False, True] * 2
    assert [prompt.isascii() for prompt in many.prompts] == [True, False] * 3
    assert {len(scene.objects) for scene in fresh(5, 1, kind="single").scenes} == {1}


def test_diversity_is_the_mean_angle_between_pictures_of_a_prompt() -> None:
    alike = torch.ones(2, 4, 3)
    assert diversity(alike) == pytest.approx(0, abs=1e-9)
    apart = torch.eye(3)[None]
    assert diversity(apart) == pytest.approx(1)
    assert diversity(torch.cat([apart, alike[:1, :3]])) == pytest.approx(0.5)
    assert diversity(7 * apart) == pytest.approx(1), "lengths say nothing"
    with pytest.raises(ValueError, match="at least 2"):
        diversity(alike[:, :1])
