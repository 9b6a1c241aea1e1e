"""A tiny U-Net learns to read a map beside the text, starting from one that knows text alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.ends import check_resumed
from zoo.data.maps import CLASSES, draw_map
from zoo.evaluate.checker import Reading, Verdict
from zoo.evaluate.maps import MEASURES
from zoo.interface import Conditioning
from zoo.pipeline import Pipeline
from zoo.stable_diffusion.parts import UNET, LatentGenerator, VaeDecoder
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, cache, run, vae
from zoo.train.map import MapRecipe, MapTask, maps
from zoo.train.recipe import read_toml, validate

pytestmark = pytest.mark.usefixtures("same_cache")

MAP = """
part = "map"
judged = 0
shown = 2
steps = 3
batch = 4
threads = 1
log_every = 1
[model]
in_channels = 21
channels = [8, 16]
attention = [false, true]
groups = 4
heads = 2
blocks_per_level = 1
context_width = 16
[data]
scenes = 8
size = 64
workers = 1
"""


@pytest.fixture(autouse=True)
def _quick_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one is slow to say no to noise."""
    monkeypatch.setattr("zoo.evaluate.maps.read", lambda picture: Reading(None, (), 0))
    monkeypatch.setattr("zoo.evaluate.maps.judge", lambda reading, said: Verdict(False, {}, ()))


@pytest.fixture
def overrides(home: Path) -> list[str]:
    (home / "map.toml").write_text(MAP, encoding="utf-8")
    return [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"]


@pytest.fixture
def plain(home: Path, overrides: list[str]) -> Path:
    """A folder that a run of the part "unet" exported."""
    out = home / "plain"
    if not out.exists():
        run(home / "unet.toml", [f"out={out}", "judged=0", *overrides], device="cpu")
    return out / "final"


def task(home: Path, overrides: list[str], *more: str) -> MapTask:
    return MapTask(validate(MapRecipe, read_toml(home / "map.toml", [*overrides, *more])), torch.device("cpu"))


def test_maps_are_cached_row_by_row(home: Path) -> None:
    pictures = cache.scenes(cache.SceneData(scenes=8, size=64, workers=1))
    cached = maps(pictures)
    assert (cached.shape, cached.dtype) == ((8, 64, 64), np.uint8)
    for index, scene in enumerate(pictures):
        assert (cached[index] == draw_map(scene)).all()
    again = maps(pictures)
    assert again.filename == cached.filename, "drawn once"


def test_a_start_without_maps_draws_as_before_until_it_learns(home: Path, plain: Path, overrides: list[str]) -> None:
    learner = task(home, overrides, f"init={plain}")
    torch.manual_seed(0)
    model = learner.build()
    learner.start(model, plain)
    batch = learner.batch(0, np.random.default_rng(0))
    assert batch["map"].shape == (4, 64, 64)
    x0, told = learner.clean(batch)
    assert told.concat is not None
    assert told.concat.shape == (4, len(CLASSES), 32, 32)
    t = torch.full((4,), 500)
    source = LatentGenerator.load(plain, json.loads((plain / "config.json").read_text("utf-8"))).denoiser
    assert torch.allclose(model(x0, t, told)[0], source(x0, t, Conditioning(tokens=told.tokens))[0], atol=1e-5)
    stored, widened = load_file(plain / UNET)["stem.weight"], model.state_dict()["network.stem.weight"]
    assert torch.equal(widened[:, :4], stored.float())
    assert widened[:, 4:].abs().max() == 0


def test_maps_are_left_out_as_often_as_the_recipe_says(home: Path, overrides: list[str]) -> None:
    learner = task(home, overrides, "map_dropout=0.25", "batch=400")
    batch = learner.batch(0, np.random.default_rng(0))
    torch.manual_seed(0)
    _, told = learner.clean(batch)
    assert told.concat is not None
    said = told.concat.sum((1, 2, 3)) / (32 * 32)
    assert set(said.tolist()) == {0.0, 1.0}
    assert 0.68 < said.mean() < 0.82
    rows = np.random.default_rng(0).integers(8, size=400)
    assert (batch["map"].numpy() == learner.maps[rows]).all(), "each scene has its own map"


def test_it_trains_exports_and_draws_what_is_painted(home: Path, plain: Path, overrides: list[str]) -> None:
    summary = run(
        home / "map.toml", [*overrides, f"init={plain}", f"out={home / 'map'}", "optimiser.lr=0.02"], device="cpu"
    )
    assert set(summary.figures) == {name.replace(" ", "_") for name in MEASURES}
    generator = LatentGenerator.load(summary.folder, json.loads((summary.folder / "config.json").read_text("utf-8")))
    assert generator.classes == CLASSES
    assert load_file(summary.folder / UNET)["stem.weight"][:, 4:].abs().max() > 0, "the map's channels have learned"
    text, decoder = ClipTextEncoder.load(home / "text"), VaeDecoder(vae.load(home / "vae" / "final"))
    pipe = Pipeline(text, generator, decoder, size=(64, 64))
    layout = torch.zeros(64, 64, dtype=torch.int64)
    layout[10:40, 10:40] = CLASSES.index("star")
    painted = pipe("a red star", n=1, steps=2, layout=layout, progress=False).tensor
    assert not torch.equal(painted, pipe("a red star", n=1, steps=2, progress=False).tensor)
    # What was exported can be trained on.
    more = [*overrides, f"init={summary.folder}", f"out={home / 'more'}", "optimiser.lr=1e-9", "steps=1"]
    again = run(home / "map.toml", more, device="cpu")
    first, second = load_file(summary.folder / UNET), load_file(again.folder / UNET)
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=2e-3) for name in first)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(home: Path, plain: Path, overrides: list[str]) -> None:
    check_resumed(home / "map.toml", home / "map-parts", *overrides, f"init={plain}", "map_dropout=0.5")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.in_channels=4", "model.in_channels = 4, but the frozen parts need 21"),
        ("data.size=32", "maps are judged at 64"),
        ("map_dropout=2", "map_dropout = 2"),
        ("judged=3", "fresh maps are drawn and judged"),
    ],
)
def test_recipes_that_cannot_be(home: Path, overrides: list[str], override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "map.toml", [*overrides, f"out={home / 'unfit'}", override], device="cpu")


def test_weights_of_another_shape_are_no_start(home: Path, plain: Path, overrides: list[str]) -> None:
    wider = [*overrides, f"init={plain}", f"out={home / 'wider'}", "model.channels=[12, 16]"]
    with pytest.raises(TrainingError, match="misshapen"):
        run(home / "map.toml", wider, device="cpu")
