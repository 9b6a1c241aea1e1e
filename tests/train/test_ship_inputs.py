"""A U-Net that takes maps ships beside its base model, and its edits and maps are measured into its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo import config as configs
from zoo.data.maps import CLASSES
from zoo.evaluate.checker import Reading, Verdict
from zoo.stable_diffusion.parts import LatentGenerator
from zoo.stable_diffusion.unet import UNet
from zoo.train.assemble import assemble
from zoo.train.map import MapRecipe
from zoo.train.measure import Measuring, measure
from zoo.train.model_recipe import ShipRecipe
from zoo.train.recipe import read_toml, validate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folder of a model with maps, random weights, beside the model wide that it is based on."""
    monkeypatch.chdir(tmp_path)  # there is no README to write scores into
    for module in ("editing", "maps"):  # the real checker is slow to say no to noise, and the tiny window is short
        monkeypatch.setattr(f"zoo.evaluate.{module}.phrase", lambda *scene: "a red star")
        monkeypatch.setattr(f"zoo.evaluate.{module}.read", lambda picture: Reading(None, (), 0))
        monkeypatch.setattr(f"zoo.evaluate.{module}.judge", lambda reading, said: Verdict(False, {}, ()))
    shelf, run = tmp_path / "shelf", tmp_path / "run"
    shutil.copytree(tiny_models / "wide", shelf / "wide")
    base = zoo.load(shelf / "wide", device="cpu").generator
    assert isinstance(base, LatentGenerator)
    unet = base.config.unet.model_copy(update={"in_channels": 4 + len(CLASSES)})
    config = base.config.model_copy(update={"unet": unet, "classes": CLASSES, "resolution": (64, 64)})
    arguments, _ = LatentGenerator.of(UNet(unet), config).save(run, torch.float16)
    (run / "config.json").write_text(json.dumps(arguments), "utf-8")
    story = {"recipe": {"part": "map"}, "step": 7, "images": 224, "minutes": 0.5}
    (run / "training.json").write_text(json.dumps(story), "utf-8")
    base = {"base": "wide"}
    parts = {"text_encoder": base, "generator": {"kind": "latent-diffusion", "run": run}, "decoder": base}
    said = {"name": "mapped", "family": "Stable Diffusion", "summary": "Maps.", "out": shelf, "edits": 1, "maps": 2}
    recipe = ShipRecipe.model_validate(said | parts | {"defaults": {"steps": 1, "guidance": 2.0}})
    folder = assemble(recipe)
    measure(folder, recipe, ["editing", "maps"])
    return folder


def test_edits_and_maps_are_measured_into_results_card_and_sheets(folder: Path) -> None:
    results = configs.read(folder).results
    assert set(results) == {"editing", "maps"}
    assert results["editing"]["images"] == 2 * 5 + 2  # type: ignore[index, call-overload]
    assert results["maps"]["images"] == 8  # type: ignore[index, call-overload]
    card = (folder / "README.md").read_text("utf-8")
    assert "### Editing" in card
    assert "### Painted maps" in card
    for name in ("editing.webp", "maps.webp"):
        with Image.open(folder / name) as sheet:
            assert min(sheet.size) > 160
    assert configs.read(folder).training["map"] == {"step": 7, "images": 224, "minutes": 0.5}
    assert zoo.load(folder, device="cpu").generator.classes == CLASSES  # type: ignore[attr-defined]


def test_a_measurement_that_is_stopped_leaves_what_was_measured_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*asked: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.train.measure.cost.seconds", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(folder, Measuring(examples=("a red star",)), ["parameters", "seconds_per_image"])
    assert set(configs.read(folder).results) == {"editing", "maps", "parameters"}


def test_the_projects_recipes_are_recipes() -> None:
    recipe = ShipRecipe.model_validate(read_toml(ROOT / "recipes" / "stable-diffusion-small-map.toml"))
    assert all((ROOT / path).is_file() for path in recipe.recipes)
    trained = validate(MapRecipe, read_toml(ROOT / "recipes" / "map.toml"))
    assert trained.model.in_channels == trained.model.out_channels + len(CLASSES)
    base = read_toml(ROOT / "recipes" / "unet.toml")
    assert trained.data.scenes == base["data"]["scenes"], "the base model's caches serve"  # type: ignore[index]


def test_the_cards_example_is_python_that_paints(tmp_path: Path) -> None:
    """The example of the notes, up to the model that may not be trained yet."""
    recipe = ShipRecipe.model_validate(read_toml(ROOT / "recipes" / "stable-diffusion-small-map.toml"))
    code = recipe.notes["Painting a map"].split("```python\n")[1].split("```")[0]
    called: list[Image.Image] = []

    class Pipe:
        generator = type("Generator", (), {"classes": CLASSES})

        def __call__(self, prompt: str, layout: Image.Image) -> Pipe:
            called.append(layout)
            return self

        def save(self, folder: str) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load", lambda name: Pipe())
        exec(compile(code, "card", "exec"), {})
    assert {number for _, number in called[0].getcolors()} == {0, CLASSES.index("circle"), CLASSES.index("square")}
