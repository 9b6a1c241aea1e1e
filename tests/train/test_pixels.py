"""Tiny Imagen parts are trained, resumed and read back: the base, and a stage that enlarges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from tests.train.ends import check_resumed
from zoo import tensors
from zoo.data.draw import render
from zoo.data.scenes import random_scene
from zoo.diffusion.noise import ImageNoise
from zoo.evaluate import enlarging
from zoo.evaluate.checker import Verdict
from zoo.imagen.parts import CascadeDecoder, PixelGenerator
from zoo.interface import Representation, Sampling
from zoo.pipeline import Pipeline
from zoo.text.t5 import T5TextEncoder
from zoo.text.tokenizer import Tokenizer
from zoo.train import RecipeError, pixels, run, text_to_image
from zoo.train.recipe import read_toml, validate

ROOT = Path(__file__).parents[2]
COMMON = """
steps = 3
batch = 2
threads = 1
log_every = 1
length = 40
[data]
scenes = 8
size = 64
workers = 1
"""
BASE = """
part = "imagen-base"
judged = 1
model = {channels = [8, 16], attention = [false, true], head_width = 8, groups = 4, blocks_per_level = 1, \
context_width = 16, pool_heads = 2}
"""
STAGE = """
part = "super-resolution"
enlarged = 8
sampling = {steps = 2, threshold = 1.0, augmentation = 0.1}
model = {channels = [8, 16], self_attention = [false, true], text_attention = [false, true], heads = 2, groups = 4, \
blocks_per_level = [1, 1], context_width = 16, text_channels = 8}
"""


@pytest.fixture(scope="module")
def parts(home: Path, scene_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny T5 and the recipes."""
    folder = tmp_path_factory.mktemp("imagen")
    tokenizer = Tokenizer(scene_words.read_bytes(), 40, begin=False)
    ids = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.padding}
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, **ids)
    T5TextEncoder(T5EncoderModel(config), tokenizer).save(folder / "t5")
    (folder / "base.toml").write_text(BASE + COMMON, "utf-8")
    (folder / "stage.toml").write_text(STAGE + COMMON, "utf-8")
    return folder


@pytest.fixture(autouse=True)
def quick(same_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real checker is slow to say no to noise."""
    for module in (text_to_image, enlarging):
        monkeypatch.setattr(module, "judge", lambda picture, scene: Verdict(False, {}, ()))


def said(parts: Path, out: str, *more: str) -> list[str]:
    return [f"text_encoder={parts / 't5'}", f"out={parts / out}", *more]


def test_base_and_stage_train_and_draw_together(parts: Path) -> None:
    for part in ("base", "stage"):
        summary = run(parts / f"{part}.toml", said(parts, part), device="cpu")
        assert summary.finished
    folders = [parts / part / "final" for part in ("base", "stage")]
    arguments = [json.loads((folder / "config.json").read_text("utf-8")) for folder in folders]
    pipe = Pipeline(
        T5TextEncoder.load(parts / "t5", {"length": 40}),
        PixelGenerator.load(folders[0], arguments[0]),
        CascadeDecoder.load(folders[1], arguments[1]),
        defaults=Sampling(steps=2, guidance=2.0, threshold=1.0),
    )
    drawn = pipe("a red star", n=2, progress=False)
    assert drawn.tensor.shape == (2, 3, 64, 64)
    assert pipe.decoder.defaults["super-resolution"].augmentation == 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["base", "stage"])
def test_resume_is_bit_for_bit(parts: Path, part: str) -> None:
    out, more = f"{part}-resumed", ["judged=0"] if part == "base" else []
    check_resumed(parts / f"{part}.toml", parts / out, *said(parts, out, *more))


def test_a_stage_learns_to_enlarge(parts: Path) -> None:
    """From the trained weights on, on whole pictures: what it makes of a small scene comes nearer to the scene."""
    more = ["consistent=false", "reads=false", "text_encoder=nowhere", "model.self_attention=[false,false]"]
    base = ["crop=64", "optimiser.lr=3e-3", "optimiser.warmup=5", "ema=0.9", "batch=8", "sample_every=1000"]
    found = []
    for steps in (1, 150):
        out = f"learned-{steps}"
        run(parts / "stage.toml", said(parts, out, *more, *base, f"steps={steps}"), device="cpu")
        folder = parts / out / "final"
        assert not any(name.startswith("pool.") for name in tensors.read(folder / "super-resolution/model.safetensors"))
        decoder = CascadeDecoder.load(folder, json.loads((folder / "config.json").read_text("utf-8")))
        rng = np.random.default_rng(5)
        scenes = np.stack([render(random_scene(rng), 64) for _ in range(8)])
        true = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255
        text = T5TextEncoder.load(parts / "t5", {"length": 40}).null(8)
        small = Representation(torch.nn.functional.avg_pool2d(true, 2) * 2 - 1, "pixels", "rgb")
        made = decoder.decode(small, text, text, ImageNoise(range(8)))
        found.append(float((made - true).square().mean()))
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("base", "model.context_width=24", "set model.context_width=16"),
        ("base", "factor=3", "made 3 times smaller is no multiple of 2"),
        ("stage", "model.context_width=24", "set model.context_width=16"),
        ("stage", "crop=31", "must be a multiple of factor"),
        ("stage", "crop=34", "crop = 34 is no multiple of 4"),
        ("base", "threshold=1.5", "threshold is a quantile"),
        ("stage", "sampling.sampler=dpmpp", "unknown sampler 'dpmpp'"),
        ("stage", "sampling.spacing=trailling", "unknown spacing 'trailling'"),
    ],
)
def test_what_does_not_fit_is_told(parts: Path, part: str, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(parts / f"{part}.toml", said(parts, "unfit", change), device="cpu")


def test_crops_are_the_same_place_in_both_sizes(parts: Path) -> None:
    recipe = validate(pixels.StageRecipe, read_toml(parts / "stage.toml", said(parts, "crops", "crop=32", "batch=4")))
    task = pixels.StageTask(recipe, torch.device("cpu"))
    rows = np.array([0, 3, 5, 7])
    batch = task.rows(rows, np.random.default_rng(0))
    assert batch["images"].shape == (4, 32, 32, 3)
    for row, crop in zip(rows, batch["images"].numpy(), strict=True):
        whole = task.scenes.images[row]
        places = [
            (y, x) for y in range(0, 33, 2) for x in range(0, 33, 2) if (whole[y : y + 32, x : x + 32] == crop).all()
        ]
        assert places, "an even place, so that pixels of the small picture are whole"


def test_text_that_is_padding_is_masked(parts: Path) -> None:
    recipe = validate(pixels.BaseRecipe, read_toml(parts / "base.toml", said(parts, "masks")))
    task = pixels.BaseTask(recipe, torch.device("cpu"))
    text = task.read(task.rows(np.array([0, 1]), np.random.default_rng(0)))
    assert text.mask is not None
    assert text.tokens is not None
    lengths = text.mask.sum(1)
    assert ((lengths > 2) & (lengths < 40)).all()
    assert not text.tokens[~text.mask].any()
    assert task.null.mask is not None
    assert int(task.null.mask.sum()) == 1, "no text is the end marker alone"


@pytest.mark.parametrize(
    ("kind", "name"), [(pixels.BaseRecipe, "imagen-base"), (pixels.StageRecipe, "super-resolution")]
)
def test_the_projects_recipes_are_recipes(kind: type[pixels.BaseRecipe], name: str) -> None:
    recipe = validate(kind, read_toml(ROOT / "recipes" / f"{name}.toml"))
    assert recipe.part == name
    assert recipe.data.scenes == read_toml(ROOT / "recipes" / "unet.toml")["data"]["scenes"]  # type: ignore[index]
