"""A tiny CLIP through the whole of training, and its image tower alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file

from tests.train.ends import check_resumed
from zoo.clip import Clip
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, cache, checkpoint, clip, gates, run
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


PROMPTS = ["a red star", "红色的星星", "two small blue cars on a mint background"]


def averaged(out: Path, home: Path) -> CLIP:
    """open_clip's model with a run's averaged weights, rounded as an export rounds them."""
    task = clip.ClipTask(validate(clip.ClipRecipe, read_toml(home / "clip.toml")), torch.device("cpu"))
    model = task.build()
    last = load_file(checkpoint.found(out / "checkpoints")[0])
    model.load_state_dict({name.removeprefix("ema."): t for name, t in last.items() if name.startswith("ema.")})
    return clip._clip(model).half().float().eval()


@pytest.fixture
def moved(home: Path) -> Path:
    """A run whose weights are large, for near its random start CLIP's activation and heads hardly matter."""
    out = home / "moved"
    if not out.exists():
        run(home / "clip.toml", [f"out={out}", "optimiser.lr=0.1", "optimiser.warmup=0"], device="cpu")
    return out


@torch.no_grad()
def test_the_export_is_the_clip_that_was_trained(home: Path, moved: Path) -> None:
    theirs, ours = averaged(moved, home), Clip.load(moved / "final")
    images = torch.rand(3, 3, 64, 64)
    expected = theirs.encode_image(images * 2 - 1, normalize=True)
    torch.testing.assert_close(ours.embed_images(images), expected, atol=1e-4, rtol=0)
    expected = theirs.encode_text(ours.tokenizer.encode(PROMPTS), normalize=True)
    torch.testing.assert_close(ours.embed_texts(PROMPTS), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_texts_are_trained_as_open_clip_encodes_them_and_as_generators_read_them(home: Path, moved: Path) -> None:
    theirs, ours = averaged(moved, home), ClipTextEncoder.load(moved / "final")
    tokens = ours.tokenizer.encode(PROMPTS)
    longest = int((tokens != ours.tokenizer.padding).sum(1).max())
    assert longest < tokens.shape[1], "the window is cut to the longest text"
    vectors, hidden = clip._encode_text(theirs, tokens[:, :longest])
    torch.testing.assert_close(vectors, theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden, ours.encode(PROMPTS).tokens[:, :longest], atol=1e-4, rtol=1e-4)


def test_both_towers_of_a_clip_folder_pass_their_gates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "text_gate", lambda encoder: {"space": encoder.produces.space})
    monkeypatch.setattr(gates, "image_gate", lambda tower: {"space": tower.image_space})
    monkeypatch.setattr(gates, "judged", lambda text, image: {"text": text, "image": image})
    final = home / "clip" / "final"
    spaces = {"text": {"space": _text_space(final)}, "image": {"space": Clip.load(final).image_space}}
    assert gates.report(str(final)) == spaces


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
    more = [f"train={train}", *([f"init={home / 'clip' / 'final'}"] if train == "vision" else [])]
    check_resumed(home / "clip.toml", home / f"parts-{train}", "checkpoint_every=2", *more)


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


def test_it_is_not_made_to_be_recomputed(home: Path) -> None:
    with pytest.raises(TrainingError, match="clip has no blocks that can be computed again"):
        run(home / "clip.toml", [f"out={home / 'recomputed'}", "recompute=true"], device="cpu")


def test_it_is_not_made_to_be_compiled(home: Path) -> None:
    with pytest.raises(TrainingError, match="clip is not made to be compiled: remove compile"):
        run(home / "clip.toml", [f"out={home / 'compiled'}", "compile=true"], device="cpu")
