"""Measures of personalisation, on pipelines whose faults are known: perfect, overfitted, never adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.data.draw import render
from zoo.data.scenes import COLOURS, INDISTINCT, Description, Item, Placed, Scene
from zoo.data.subjects import P7, draw_p7
from zoo.evaluate.personalisation import (
    Contestant,
    Sizes,
    asked,
    judge_rest,
    measure,
    relative,
    spread,
    strip,
)

SIZES = Sizes(per_prompt=1, of_class=4, per_task=1, batch=8)
PLACES = {"left of": (0.27, 0.5), "right of": (0.73, 0.5), "above": (0.5, 0.27), "below": (0.5, 0.73)}


@dataclass
class Made:
    tensor: Tensor


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def true_scene(said: Description, subject: bool) -> Scene:
    """A scene that shows what is said; its car is the P7 if that is the subject."""
    ground, style = said.background or "white", said.style or "plain"
    colours = [c for c in COLOURS if (c, ground) not in INDISTINCT]

    def thing(item: Item, x: float, y: float, extent: float) -> Placed:
        shape = P7 if subject and item.shape == "car" else item.shape
        return Placed(shape, item.colour or colours[0], x, y, extent)

    if said.relation:
        x, y = PLACES[said.relation]
        pair = zip(said.items, ((x, y), (1 - x, 1 - y)), strict=True)
        return Scene(tuple(thing(item, *place, 0.4) for item, place in pair), ground, style, False)
    extent = 0.35 if said.items[0].size == "small" else 0.65
    return Scene((thing(said.items[0], 0.5, 0.5, extent),), ground, style, False)


class Perfect:
    """Draws what the prompt says, "a car" in any colour; if overfitted, the same P7 whatever is asked."""

    def __init__(self, overfitted: bool = False) -> None:
        self.overfitted, self.scenes = overfitted, dict(asked())

    def __call__(self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **more: object) -> Made:
        assert more == {"adapters": {"mine": 1.0}}
        return Made(torch.stack([self.draw(prompt, s) for prompt, s in zip(prompts, seed, strict=True)]))

    def draw(self, prompt: str, seed: int) -> Tensor:
        if self.overfitted:
            return as_tensor(draw_p7(true_scene(Description((Item("car"),), background="cream"), True)))
        if prompt in self.scenes:
            return as_tensor(draw_p7(true_scene(self.scenes[prompt], True)))
        return as_tensor(render(true_scene(Description((Item("car", COLOURS[seed % 4]),)), False)))


def test_a_perfect_and_an_overfitted_model() -> None:
    how = {"adapters": {"mine": 1.0}}
    contestants = [Contestant("perfect", Perfect(), how), Contestant("stuck", Perfect(True), how, 2048)]
    perfect, stuck = (measure(one, SIZES, progress=False) for one in contestants)
    assert (perfect["fidelity"], perfect["alignment"], perfect["both"], perfect["leak"]) == (1.0, 1.0, 1.0, 0.0)
    assert (stuck["fidelity"], stuck["leak"], stuck["spread"]) == (1.0, 1.0, 0.0)
    assert stuck["alignment"] == pytest.approx(2 / 50), "on cream alone, large or of no said size"
    own, other = relative(perfect, perfect), relative(stuck, perfect)
    assert (own["diversity"], own["forgotten"]) == (1.0, 0.0)
    assert (other["diversity"], other["forgotten"]) == (0.0, perfect["others"] - stuck["others"])
    assert np.isnan(relative(perfect, stuck)["diversity"])
    assert strip(contestants).width > 8 * 160


def test_the_rest_of_a_prompt_is_judged_without_the_subject() -> None:
    scene = Description((Item("car"), Item("tree", "red")), relation="left of")
    picture = as_tensor(draw_p7(true_scene(scene, True)))
    assert judge_rest(picture, scene) == (True, True)
    turned = Description(scene.items, relation="right of")
    assert judge_rest(picture, turned) == (True, False)
    assert judge_rest(as_tensor(render(true_scene(scene, False))), scene) == (False, True)
    alone = Description((Item("car"),), background="night", style="cartoon")
    assert judge_rest(as_tensor(draw_p7(true_scene(alone, True))), alone) == (True, True)


def test_every_prompt_says_its_scene_and_can_be_drawn() -> None:
    wanted = asked("a P7 car")
    assert len({prompt for prompt, _ in wanted}) == len(wanted) == 50
    for prompt, scene in wanted:
        assert prompt.startswith(f"a {scene.items[0].size} P7 car" if scene.items[0].size else "a P7 car")
        assert (scene.background or scene.items[1].shape) in prompt
        assert ("cartoon" in prompt) == (scene.style == "cartoon")


def test_distance_between_pictures() -> None:
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert spread(torch.cat([black, white])) == pytest.approx(1.0)
    assert spread(torch.cat([black, black, white])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least two"):
        spread(black)


@pytest.mark.parametrize("sizes", [Sizes(of_class=1), Sizes(per_prompt=0), Sizes(per_task=0)])
def test_sizes_that_measure_nothing(sizes: Sizes) -> None:
    with pytest.raises(ValueError, match="cannot measure"):
        measure(Contestant("one", Perfect(), {}), sizes)
