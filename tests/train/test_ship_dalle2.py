"""A tiny DALL-E 2 from five runs to a shipped folder: every prior draws, pictures are edited, all is measured."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests.dalle2.unclip import write_clip
from zoo import config as configs
from zoo import tensors, weights
from zoo.cascade import Stage
from zoo.clip import Clip
from zoo.config import AdapterConfig
from zoo.dalle2 import interpolate, invert, regenerate, text_diff, variations
from zoo.dalle2.decoder import UnclipDecoder
from zoo.diffusion.noise import GivenNoise, ImageNoise
from zoo.evaluate.checker import Reading, Verdict
from zoo.evaluate.enlarging import LEVELS
from zoo.evaluate.fresh_scenes import Drawn, fresh
from zoo.evaluate.judged import Pipe
from zoo.evaluate.run import evaluate
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import Representation, Step
from zoo.pipeline import Pipeline
from zoo.tensors import sha256
from zoo.train import cache, prior, run, unclip, unclip_measures
from zoo.train.assemble import assemble, share, tell_sharers
from zoo.train.measure import enlarging, measure
from zoo.train.model_recipe import ShipRecipe
from zoo.train.recipe import read_toml
from zoo.weights import save_part

ROOT = Path(__file__).parents[2]
PRIORS = ("diffusion", "autoregressive", "one-step")
COMMON = """
steps = 2
batch = 4
threads = 1
[data]
scenes = 12
size = 64
workers = 1
"""
PARTS = {
    "prior": "model = {width = 16, heads = 2, layers = 1}",
    "autoregressive-prior": "model = {width = 16, heads = 2, layers = 1, dimensions = 3, buckets = 8, levels = 4}",
    "unclip-decoder": "judged = 8\nfactor = 2\nsampling = {steps = 2, guidance = 2.0, threshold = 1.0}\nmodel = "
    "{channels = [8, 16], attention = [false, true], head_width = 8, groups = 4, blocks_per_level = 1, "
    "context_width = 12}",
    "super-resolution": "reads = false\nenlarged = 8\nsampling = {steps = 2, threshold = 1.0, augmentation = 0.1}\n"
    "model = {channels = [8, 16], self_attention = [false, false], text_attention = [false, false], heads = 2, "
    "groups = 4, blocks_per_level = [1, 1]}",
}
NO = Verdict(False, {}, ())
STORY = {"recipe": {"part": "clip"}, "step": 3, "images": 12, "minutes": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a tiny CLIP and what training on it exported: three priors, a decoder, an upsampler."""
    home = tmp_path_factory.mktemp("runs")
    clip = write_clip(home / "clip", scene_words.read_bytes(), window=64)
    (clip / "training.json").write_text(json.dumps(STORY), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.setattr(cache, "PROBED", 2)
        patch.setattr(prior, "FRESH", 4)
        patch.setattr(unclip, "judge", lambda picture, scene: NO)
        patch.setattr("zoo.evaluate.enlarging.judge", lambda picture, scene: NO)
        for part in (*(f"{name}-prior" for name in PRIORS), "unclip-decoder", "super-resolution"):
            said = PARTS.get(part, PARTS["prior"])
            recipe = f'part = "{part}"\ntext_encoder = "{clip}"\nout = "{home / part}"\n{said}\n{COMMON}'
            (home / f"{part}.toml").write_text(recipe, "utf-8")
            run(home / f"{part}.toml", device="cpu")
    return home


def enlarger(runs: Path, shelf: Path, dtype: torch.dtype = torch.int8) -> None:
    """On the shelf, an Imagen of which there is nothing but the cascade, which DALL-E 2 shares."""
    folder, run = shelf / "imagen-tiny", runs / "super-resolution" / "final"
    cascade = CascadeDecoder.load(run, json.loads((run / "config.json").read_text("utf-8")))
    said = {"name": "imagen-tiny", "family": "Imagen", "resolution": (64, 64), "text_encoder": {"kind": "t5-text"}}
    said |= {"generator": {"kind": "pixel-diffusion"}, "decoder": weights.save_part(folder, cascade, dtype=dtype)}
    said |= {"training": {"super-resolution": {"step": 3, "images": 12, "minutes": 0.1}}}
    weights.write_config(folder, configs.ModelConfig.model_validate(said))


def ship(runs: Path, shelf: Path, **more: object) -> ShipRecipe:
    priors = {name: {"kind": f"{name}-prior", "run": runs / f"{name}-prior" / "final"} for name in PRIORS}
    enlarger(runs, shelf)
    said = {
        **{"name": "dalle2-tiny", "family": "DALL-E 2", "summary": "Random.", "out": shelf, "bits": 8},
        "text_encoder": {
            **{"kind": "clip-text", "run": runs / "clip", "arguments": {"layer": -2}},
            "shared": "clip-tiny",
        },
        "generator": "one-step",
        "variants": {"generator": priors},
        "decoder": {"kind": "unclip-decoder", "run": runs / "unclip-decoder" / "final", "upsamplers": "imagen-tiny"},
        "image_encoder": True,
        "examples": ["a red star", "红色的星星"],
        "defaults": {"steps": 2, "guidance": 1.0},
        **{"per_prior": 1, "fed": 2, "varied": 2, "inverted": 1, "reranked": 2, "enlarged": 2},
        **{"scored": 8, "heldout": "dev"},
    }
    return ShipRecipe.model_validate(said | more)


@pytest.fixture(scope="module")
def shipped(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(ship(runs, tmp_path_factory.mktemp("shelf")))


def test_adapters_of_what_stays_outlast_a_new_cascade(runs: Path, tmp_path: Path) -> None:
    enlarger(runs, tmp_path)
    folder, told = tmp_path / "imagen-tiny", {}
    for name, said in (
        ("style", {"parts": "unet"}),
        ("sharp", {"parts": "unet,super-resolution"}),
        ("word", {"kind": "word"}),
    ):
        file = f"adapters/{name}/lora.safetensors"
        tensors.write(folder / file, {"stem.down": torch.zeros(1)}, metadata={"format": "zoo", "kind": "lora"} | said)
        told[name] = AdapterConfig(summary="", prompt="", files={file: sha256(folder / file)}, training={})
    weights.write_config(folder, configs.read(folder).model_copy(update={"adapters": told}))
    base, run = {"base": "imagen-tiny"}, runs / "super-resolution" / "final"
    parts = {"text_encoder": base, "generator": base, "decoder": {"kind": "cascade", "run": run}}
    said = {"name": "imagen-tiny", "family": "Imagen", "summary": "", "out": tmp_path, "resolution": (64, 64)}
    assemble(ShipRecipe.model_validate(said | parts), ["decoder"])
    assert configs.read(folder).adapters == {name: told[name] for name in ("style", "word")}
    assert {path.name for path in (folder / "adapters").iterdir()} == {"style", "word"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}


def test_every_part_is_written_once(shipped: Path) -> None:
    assert files(shipped) == {f"{name}/prior/model.safetensors" for name in PRIORS} | {"decoder/model.safetensors"}
    assert files(shipped.parent) - {f"{shipped.name}/{name}" for name in files(shipped)} == {
        "clip-tiny/model.safetensors",
        "imagen-tiny/super-resolution/model.safetensors",
    }
    config = configs.read(shipped)
    assert config.image_encoder is not None
    assert (config.image_encoder.kind, config.image_encoder.shared) == ("clip", "clip-tiny")
    assert config.generator == config.variants["generator"]["one-step"]
    parts = {"clip", *(f"{name}-prior" for name in PRIORS), "unclip-decoder", "super-resolution"}
    assert set(config.training) == parts


def test_every_prior_draws(shipped: Path) -> None:
    drawn = {}
    for name in (None, *PRIORS):
        pipe = zoo.load(shipped, device="cpu", generator=name)
        seen: list[str] = []

        def watch(stage: str, step: Step, seen: list[str] = seen) -> None:
            seen.append(stage)

        result = pipe("a red star", n=2, progress=False, callback=watch)
        assert result.tensor.shape == (2, 3, 64, 64)
        assert set(seen) == {"prior", "decoder", "super-resolution"}
        drawn[name] = result.tensor
    assert torch.equal(drawn[None], drawn["one-step"])
    assert not any(torch.equal(drawn["one-step"], drawn[name]) for name in PRIORS[:2])
    with pytest.raises(ValueError, match="dalle2-tiny makes pictures of 64 x 64 pixels only, not of 128 x 64"):
        pipe("a red star", height=128, progress=False)


def test_pictures_are_edited_by_the_models_own_clip(shipped: Path) -> None:
    pipe = zoo.load(shipped, device="cpu")
    assert isinstance(pipe.image_encoder, Clip)
    quick = {"decoder": {"steps": 4}}
    given = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert variations(pipe, given, 2, stages=quick).tensor.shape == (2, 3, 64, 64)
    assert interpolate(pipe, given, 1 - given, 3, stages=quick).tensor.shape == (3, 3, 64, 64)
    turned = text_diff(pipe, given, "a red circle", "a blue circle", [0.0, 0.5], stages=quick).tensor
    assert (turned[0] - turned[1]).abs().max() > 0
    assert regenerate(pipe, invert(pipe, given, stages=quick)).tensor.shape == (1, 3, 64, 64)
    decoder = zoo.load(shipped, device="cpu").decoder
    other = zoo.load(shipped, device="cpu", decoder=decoder)
    assert other.image_encoder is None, "which CLIP a decoder object belongs to, the caller says"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real checker is slow to say no to noise; and there is no README to write scores into."""
    monkeypatch.chdir(tmp_path)
    for module in ("feeding", "rerank", "enlarging", "judged"):
        monkeypatch.setattr(f"zoo.evaluate.{module}.judge", lambda picture, scene: NO)
    monkeypatch.setattr("zoo.evaluate.judged.read", lambda picture: Reading(None, (), 0))
    monkeypatch.setattr(unclip_measures, "read", lambda picture: Reading(None, (), 0))


def test_it_is_evaluated(shipped: Path, quick: None) -> None:
    pipe = cast(Pipe, zoo.load(shipped, device="cpu"))
    scores = evaluate(pipe, per_task=1, heldout="dev", calibration=0, progress=False)
    assert scores["images"] == 26


def test_all_of_it_is_measured_into_results_and_card(runs: Path, tmp_path: Path, quick: None) -> None:
    recipe = ship(runs, tmp_path / "shelf")
    folder = assemble(recipe)
    asked = ["priors", "variations", "strips", "inversion", "rerank", "enlarging", "parameters", "distances"]
    measure(folder, recipe, asked)
    results: Any = configs.read(folder).results
    assert set(results) == {*asked, "fed"}
    rows = results["priors"]
    assert list(rows) == list(PRIORS)
    for row in rows.values():
        assert row["images"] == 26
        assert row["diversity"] > 0
        assert row["parameters"] > 1000
    assert len(results["fed"]["ways"]) == 6
    made, drawn = results["distances"]["made"], results["distances"]["drawn"]
    assert list(made) == list(drawn) == ["clip_score_scenes", "kd_clip", "precision", "recall"], "8 are few for FD-CLIP"
    assert made["kd_clip"] > drawn["kd_clip"], "noise is farther from drawings than drawings"
    assert set(results["strips"]["circle to star"]) == {"0", "0.1", "0.2", "0.3", "0.4", "0.5"}
    card = (folder / "README.md").read_text("utf-8")
    for title in (
        "Priors",
        "What the decoder is told",
        "Variations",
        "Between pictures",
        "their noise",
        "Keeping the best",
        "As a set",
    ):
        assert title in card
    assert "{" not in card.split("## Results")[1]
    with Image.open(folder / "strips.webp") as sheet:
        assert sheet.width > 8 * 160


def telling(shipped: Path) -> Pipeline:
    """The shipped model with a decoder in whose pictures all that it is told shows: two steps of training leave what
    begins at zero near it."""
    pipe = zoo.load(shipped, device="cpu")
    assert isinstance(pipe.decoder, UnclipDecoder)
    with torch.no_grad():
        for weights in pipe.decoder.network.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return pipe


def by_hand(pipe: Pipeline, asked: Drawn) -> dict[str, Tensor]:
    """What the decoder makes of scenes, by what it is told of them, in the words of `unclip_measures.ways`."""
    decoder, clip, noise = pipe.decoder, pipe.image_encoder, ImageNoise(asked.seeds)
    assert isinstance(decoder, UnclipDecoder)
    assert isinstance(clip, Clip)
    text, null = pipe.text_encoder.encode(asked.prompts), pipe.text_encoder.null(len(asked))
    picture, prior = clip.encode(asked.pictures), pipe.generator.generate(text, null, noise, pipe.defaults)
    # A CLIP whose towers share a space: its text embedding, where that of a picture is expected.
    spoken = Representation(clip.embed_texts(asked.prompts), "clip_image", clip.image_space)
    nothing = Representation(decoder.network.null().repeat(len(asked), 1), "clip_image", clip.image_space)
    told = {
        "embedding of the true picture, and caption": (picture, text),
        "embedding of the true picture, no caption": (picture, null),
        "embedding by the prior, and caption": (prior, text),
        "embedding by the prior, no caption": (prior, null),
        "text embedding in its place, and caption": (spoken, text),
        "no embedding, caption alone": (nothing, text),
    }
    return {way: decoder.decode(given, said, null, noise) for way, (given, said) in told.items()}


def test_ways_tell_the_decoder_different_things(shipped: Path) -> None:
    pipe = telling(shipped)
    asked, ways = fresh(2, 9), unclip_measures.ways(pipe)
    expected = by_hand(pipe, asked)
    assert list(ways) == list(expected)
    for name, way in ways.items():
        torch.testing.assert_close(way(asked), expected[name], atol=1e-5, rtol=0, msg=name)
    made = list(expected.values())
    assert all(pictures.shape == (2, 3, 64, 64) for pictures in made)
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(made) for b in made[:i])


def test_each_way_is_scored_by_its_own_pictures(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = telling(shipped)
    expected = by_hand(pipe, fresh(2, 3_000_000))
    right = [expected["embedding by the prior, no caption"][0], *expected["no embedding, caption alone"]]

    def judge(picture: Tensor, scene: object) -> Verdict:
        return Verdict(any(torch.allclose(picture, one, atol=1e-5) for one in right), {}, ())

    monkeypatch.setattr("zoo.evaluate.feeding.judge", judge)
    found: Any = unclip_measures.fed(pipe, 2)
    assert found["scenes"] == 2
    assert [scored["ok"] for scored in found["ways"].values()] == [0, 0, 0, 0.5, 0, 1]


def decibels(made: Tensor, true: Tensor) -> float:
    return -10 * math.log10(float((made.clamp(0, 1) - true).square().mean()))


def test_inverted_pictures_are_held_against_the_true_ones(shipped: Path) -> None:
    pipe = zoo.load(shipped, device="cpu")
    decoder = pipe.decoder
    assert isinstance(decoder, UnclipDecoder)
    alone, null = UnclipDecoder(decoder.denoiser, decoder.config), pipe.text_encoder.null(1)
    small, whole = [], []
    given = fresh(2, unclip_measures.INVERTED_SEED)
    for picture, seed in zip(given.pictures, given.seeds, strict=True):
        start = invert(pipe, picture)
        made = alone.decode(start.representation, null, null, GivenNoise(start.noise), [start.sampling])
        small.append(decibels(made, F.avg_pool2d(picture[None], 2)))
        whole.append(decibels(regenerate(pipe, start, seed=seed).tensor, picture[None]))
    means = {"small": pytest.approx(sum(small) / 2, abs=0.006), "whole": pytest.approx(sum(whole) / 2, abs=0.006)}
    assert unclip_measures.inversion(pipe, 2) == means | {"steps": start.sampling.steps, "scenes": 2}


def test_enlarging_is_measured_at_every_level(shipped: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = zoo.load(shipped, device="cpu")
    decoder = pipe.decoder
    assert isinstance(decoder, UnclipDecoder)
    (upsampler,), passed = decoder.upsamplers, list[float | None]()
    torch.nn.init.normal_(upsampler.denoiser.network.get_parameter("head.weight"), std=0.3)  # or it would say nothing
    enlarge = Stage.forward

    def spy(stage: Stage, *given: Any, **more: Any) -> Tensor:
        passed.append(given[-1].augmentation)
        return enlarge(stage, *given, **more)

    monkeypatch.setattr(Stage, "forward", spy)
    found: Any = enlarging(pipe, decoder, 2)
    assert found["used"] == upsampler.config.sampling.augmentation == 0.1
    assert passed == [float(level) for level in found["levels"]] == list(LEVELS)
    scored = {level: figures["psnr"] for level, figures in found["levels"].items()}
    assert len(set(scored.values())) == len(LEVELS), scored
    given = fresh(2, 2_000_000)
    text, null = pipe.text_encoder.encode(given.prompts), pipe.text_encoder.null(2)
    how = replace(upsampler.config.sampling, augmentation=0.3)
    small = F.avg_pool2d(given.pictures, 2) * 2 - 1
    made = decoder.enlarge(small, text, null, ImageNoise(given.seeds), [how])
    by_hand = [decibels(*pair) for pair in zip(made, given.pictures, strict=True)]
    assert scored["0.3"] == pytest.approx(sum(by_hand) / 2, abs=1e-3)


def another_image_tower(runs: Path, run: Path) -> dict[str, object]:
    """A longer run of the CLIP, of which the image tower alone is another; the text encoder that it gives."""
    shutil.copytree(runs / "clip", run)
    clip = Clip.load(run)
    with torch.no_grad():
        clip.model.visual_projection.weight += 1
    save_part(run, clip)
    (run / "training.json").write_text(json.dumps(STORY | {"step": 7}), "utf-8")
    return {"kind": "clip-text", "run": run, "arguments": {"layer": -2}, "shared": "clip-tiny"}


def test_a_clip_is_shipped_anew_alone(runs: Path, tmp_path: Path) -> None:
    """Models beside it keep all their files, and are told its sums and its cost."""
    shelf = tmp_path / "shelf"
    folder = assemble(ship(runs, shelf))
    before, kept = configs.read(folder), {name: sha256(folder / name) for name in files(folder)}
    recipe = ship(runs, shelf, text_encoder=another_image_tower(runs, tmp_path / "other"))
    assert share(recipe) == [shelf / "clip-tiny"]
    after = configs.read(folder)
    assert {name: sha256(folder / name) for name in files(folder)} == kept
    assert after.generator == before.generator
    assert (before.training["clip"]["step"], after.training["clip"]["step"]) == (3, 7)  # type: ignore[index, call-overload]
    assert after.image_encoder is not None
    assert after.image_encoder.files["model.safetensors"] == sha256(shelf / "clip-tiny" / "model.safetensors")
    with pytest.raises(ValueError, match="image encoder Clip and decoder UnclipDecoder do not fit"):
        zoo.load(folder, device="cpu")
    alone = recipe.text_encoder.model_copy(update={"shared": None})
    with pytest.raises(ValueError, match="no part of dalle2-tiny is a shared one"):
        share(recipe.model_copy(update={"text_encoder": alone}))


def test_who_shares_a_clip_is_told_when_it_is_shipped_anew(runs: Path, tmp_path: Path) -> None:
    """Another image tower beside the same text tower: prompts are read as before, embeddings are not."""
    shelf = tmp_path / "shelf"
    first = assemble(ship(runs, shelf))
    before = configs.read(first)
    source = another_image_tower(runs, tmp_path / "other")
    assemble(ship(runs, shelf, name="second", text_encoder=source, image_encoder=False))
    after = configs.read(first)
    assert after.text_encoder.files["model.safetensors"] != before.text_encoder.files["model.safetensors"]
    with pytest.raises(ValueError, match="image encoder Clip and decoder UnclipDecoder do not fit"):
        zoo.load(first, device="cpu")
    assert zoo.load(shelf / "second", device="cpu").image_encoder is None


def test_stages_that_are_shared_may_change(runs: Path, tmp_path: Path) -> None:
    folder = assemble(ship(runs, tmp_path))
    before = zoo.load(folder, device="cpu")("a red star", progress=False)
    enlarger(runs, tmp_path, torch.float16)
    with pytest.raises(ValueError, match="imagen-tiny/super-resolution/model.safetensors is damaged"):
        zoo.load(folder, device="cpu")
    tell_sharers(tmp_path, "imagen-tiny")
    after = zoo.load(folder, device="cpu")("a red star", progress=False)
    assert 0 < (after.tensor - before.tensor).abs().max() < 0.2
    assert configs.read(folder).decoder.upsamplers is not None


def test_what_cannot_be_shipped(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="generator = 'odd' is none of its variants: diffusion, autoregressive"):
        ship(runs, tmp_path, generator="odd")
    priors = {"kind": "one-step-prior", "run": runs / "one-step-prior" / "final", "upsamplers": "imagen-tiny"}
    with pytest.raises(ValueError, match="stages of a 'cascade' cannot come after a 'one-step-prior'"):
        zoo.load(assemble(ship(runs, tmp_path, generator=priors)), device="cpu")
    plain = {"kind": "clip-text", "run": runs / "clip", "arguments": {"layer": -2}}
    with pytest.raises(ValueError, match="part of a whole, shared CLIP"):
        assemble(ship(runs, tmp_path, text_encoder=plain))


def test_the_projects_recipe_is_a_recipe() -> None:
    recipe = ShipRecipe.model_validate(read_toml(ROOT / "recipes" / "dalle2-small.toml"))
    assert all((ROOT / path).is_file() for path in recipe.recipes)
    trained = [read_toml(ROOT / path) for path in recipe.recipes]
    left = {Path(str(said.get("out", f"runs/{said['part']}"))) / "final" for said in trained}
    needed = {source.run for source in recipe.sources() if source.run}
    assert len(needed) == 4
    assert needed <= left, "every run that it is made of is one of the recipes that it names"
