"""The table of diffusion against GAN is what the configs hold, and nothing where one of them is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo import config as configs
from zoo.config import ModelConfig
from zoo.train import rivals
from zoo.train.results import shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(tiny_models: Path) -> list[ModelConfig]:
    tiny = configs.read(tiny_models / "tiny")
    shares = {"seen": {"en": 0.5, "zh": 0.25}, "held_out": {"en": None}}
    results = {"evaluation": {"overall": shares}, "seconds_per_image": 0.125, "parameters": {"generator": 4_000_000}}
    gan = {"step": 5, "images": 160, "minutes": 1.5}
    return [
        tiny.model_copy(update={"name": "gan-small", "results": results, "training": {"clip": {}, "gan": gan}}),
        tiny.model_copy(update={"name": "stable-diffusion-small", "results": {}}),
    ]


def test_figures_are_those_of_the_configs(models: list[ModelConfig]) -> None:
    table = rivals.compared(models)
    assert "| pictures that are what the prompt says, seen, zh | 0.25 | – |" in table
    assert "| pictures that are what the prompt says, held out, en | – | – |" in table
    assert "| seconds a picture, warm | 0.125 | – |" in table
    assert "| generator, M parameters | 4 | – |" in table
    assert "| pictures seen in training | 160 | – |" in table


def test_drawings_have_a_column_beside_sets_of_pictures(models: list[ModelConfig]) -> None:
    made, drawn = ({"fd_clip": distance, "recall": 0.5} for distance in (3.25, 0.75))
    results = {"distances": {"scenes": 2000, "made": made, "drawn": drawn}}
    table = rivals.compared([models[0], models[1].model_copy(update={"results": results})])
    assert "|  | gan-small | stable-diffusion-small | drawings |" in table
    assert "| FD-CLIP | – | 3.25 | 0.75 |" in table
    assert "| seconds a picture, warm | 0.125 | – | – |" in table


def test_the_page_is_written_and_found_stale(models: list[ModelConfig], tmp_path: Path) -> None:
    path = tmp_path / rivals.PAGE
    rivals.write(tmp_path, models)  # there is no page yet
    path.parent.mkdir()
    path.write_text((ROOT / rivals.PAGE).read_text("utf-8"), "utf-8")
    rivals.write(tmp_path, models[:1])
    assert path.read_text("utf-8") == (ROOT / rivals.PAGE).read_text("utf-8"), "a table of one is none"
    assert rivals.stale(tmp_path, models)
    rivals.write(tmp_path, models)
    assert "|  | stable-diffusion-small | gan-small |" in path.read_text("utf-8")
    assert not rivals.stale(tmp_path, models)
    rivals.write(tmp_path, models)
    assert path.read_text("utf-8").count("| gan-small |") == 1
    path.write_text(path.read_text("utf-8").replace("0.125", "0.025"), "utf-8")
    assert rivals.stale(tmp_path, models)


def test_this_checkouts_page_agrees() -> None:
    assert not rivals.stale(ROOT, [config for _, config in shipped(ROOT)])
