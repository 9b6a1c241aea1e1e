"""A tiny CLIP through the whole of training, and its image tower alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.ends import check_same_end
from zoo.clip import Clip
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, cache, clip, run
from zoo.train.recipe import read_toml, validate

RECIPE = """
part = "clip"
steps = 4
batch = 4
threads = 1
log_every = 1
model = {width = 32, heads = 2, vision_layers = 1, text_layers = 2, embedding = 16}
[data]
scenes = 40
size = 64
workers = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a cache and a tiny trained CLIP."""
    home = tmp_path_factory.mktemp("home")
    (home / "clip.toml").write_text(f"tokenizer = '{scene_words}'\n{RECIPE}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.setattr(cache, "PROBED", 2)
        patch.setattr(clip, "FRESH", 8)
        patch.setattr(clip, "WINDOW", 64)
        run(home / "clip.toml", [f"out={home / 'clip'}"], device="cpu")
    return home


@pytest.fixture(autouse=True)
def _same_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(home / "cache"))
    monkeypatch.setattr(cache, "PROBED", 2)
    monkeypatch.setattr(clip, "FRESH", 8)
    monkeypatch.setattr(clip, "WINDOW", 64)


def test_the_trained_clip_is_read_back(home: Path) -> None:
    trained = Clip.load(home / "clip" / "final")
    vectors = torch.cat(
        [trained.embed_images(torch.rand(2, 3, 64, 64)), trained.embed_texts(["a red star", "红色的星星"])]
    )
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_the_image_tower_alone_leaves_every_text_weight(home: Path) -> None:
    init, out = home / "clip" / "final", home / "vision"
    run(home / "clip.toml", [f"out={out}", f"init={init}", "train=vision"], device="cpu")
    before, after = (load_file(folder / "model.safetensors") for folder in (init, out / "final"))
    text = [name for name in before if name.startswith("text_")]
    assert len(text) > 20
    assert all(torch.equal(before[name], after[name]) for name in text)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("vision_"))
    assert _text_space(init) == _text_space(out / "final")


def test_the_image_tower_alone_leaves_the_text_space_of_a_clip_that_shipped_in_eight_bits(home: Path) -> None:
    init, out, again = home / "shipped", home / "vision-of-shipped", home / "shipped-again"
    Clip.load(home / "clip" / "final").save(init, torch.int8)
    run(home / "clip.toml", [f"out={out}", f"init={init}", "train=vision"], device="cpu")
    Clip.load(out / "final").save(again, torch.int8)
    assert _text_space(init) == _text_space(out / "final") == _text_space(again)
    before, after = (load_file(folder / "model.safetensors") for folder in (init, again))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("text_"))


def _text_space(folder: Path) -> str:
    return ClipTextEncoder.load(folder).produces.space


def test_a_missing_tokenizer_is_told_before_anything_is_drawn(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tokenizer = none\.model cannot be read: train recipes/tokenizer\.toml"):
        run(home / "clip.toml", [f"out={tmp_path}", "tokenizer=none.model", "data.scenes=1000000000"], device="cpu")


@pytest.mark.parametrize("train", ["both", "vision"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(home: Path, train: str) -> None:
    more = [
        "checkpoint_every=2",
        "optimiser.warmup=0",
        f"train={train}",
        *([f"init={home / 'clip' / 'final'}"] if train == "vision" else []),
    ]
    whole, parts = home / f"whole-{train}", home / f"parts-{train}"
    run(home / "clip.toml", [f"out={whole}", *more], device="cpu")
    run(home / "clip.toml", [f"out={parts}", *more], device="cpu")
    (parts / "checkpoints" / "step-00000004.safetensors").unlink()  # as if it had been killed before the last one
    run(home / "clip.toml", [f"out={parts}", *more], device="cpu", resume=True)
    check_same_end(whole, parts)


@pytest.mark.parametrize(
    ("override", "said"), [("train=vision", "needs init"), ("train=vision init=. pictures_every=2", "pictures_every")]
)
def test_what_the_image_tower_alone_needs(home: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "clip.toml", override.split(), device="cpu")


def test_what_is_fresh_was_drawn_for_no_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "FRESH", 48)  # of 40 scenes in the cache
    recipe = validate(clip.ClipRecipe, read_toml(home / "clip.toml"))
    task = clip.ClipTask(recipe, torch.device("cpu"))
    assert task.fresh["images"].shape == (48, 64, 64, 3)
    cached = {image.tobytes() for image in task.scenes.images}
    assert not any(image.numpy().tobytes() in cached for image in task.fresh["images"])


def test_it_is_not_made_to_be_compiled(home: Path) -> None:
    with pytest.raises(TrainingError, match="clip is not made to be compiled: remove compile"):
        run(home / "clip.toml", [f"out={home / 'compiled'}", "compile=true"], device="cpu")
