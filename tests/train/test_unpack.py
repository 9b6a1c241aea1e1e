"""What ships can be trained further: its parts become runs again, between which what is learned still fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import zoo
from zoo import config as configs
from zoo.train import run
from zoo.train.assemble import assemble
from zoo.train.model_recipe import ShipRecipe
from zoo.train.unpack import unpack

pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def shipped(home: Path, tmp_path_factory: pytest.TempPathFactory) -> ShipRecipe:
    """A trained model that ships in eight bits: other weights than those it was trained with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.setattr("zoo.train.cache.PROBED", 2)
        out = tmp_path_factory.mktemp("runs") / "unet"
        run(home / "unet.toml", [*_between(home / "vae", home / "text"), f"out={out}"], device="cpu")
    text, story = out.parent / "text", {"recipe": {"part": "clip"}, "step": 1, "images": 2, "minutes": 0.5}
    shutil.copytree(home / "text", text)
    (text / "training.json").write_text(json.dumps(story), "utf-8")
    recipe = ShipRecipe.model_validate(
        {
            "name": "small",
            "family": "Stable Diffusion",
            "summary": "Tiny.",
            "bits": 8,
            "out": out.parent / "shelf",
            "text_encoder": {"kind": "clip-text", "run": text, "arguments": {"layer": -2}},
            "generator": {"kind": "latent-diffusion", "run": out / "final"},
            "decoder": {"kind": "vae", "run": home / "vae" / "final"},
        }
    )
    assemble(recipe)
    return recipe


def _between(vae: Path, text: Path) -> list[str]:
    return [f"vae={vae / 'final'}", f"text_encoder={text}", "judged=0"]


def test_a_generator_trained_on_goes_with_the_parts_that_ship(home: Path, shipped: ShipRecipe, tmp_path: Path) -> None:
    folder, runs = shipped.out / shipped.name, tmp_path / "runs"
    places = unpack(folder, runs)
    assert {place.parent.name for place in places} == {"clip", "clip-vision", "unet", "vae"}
    more = ["steps=1", f"init={runs / 'unet' / 'final'}", f"out={tmp_path / 'more'}"]
    run(home / "unet.toml", [*_between(runs / "vae", runs / "clip" / "final"), *more], device="cpu")

    story = json.loads((tmp_path / "more" / "final" / "training.json").read_text("utf-8"))
    assert story["before"] == {"step": 3, "images": 6, "minutes": story["before"]["minutes"]}
    again = {
        "text_encoder": {"kind": "clip-text", "run": runs / "clip" / "final", "arguments": {"layer": -2}},
        "generator": {"kind": "latent-diffusion", "run": tmp_path / "more" / "final"},
        "decoder": {"kind": "vae", "run": runs / "vae" / "final"},
        "out": tmp_path / "shelf",
    }
    before = zoo.load(folder, device="cpu")
    after = zoo.load(assemble(ShipRecipe.model_validate(shipped.model_dump() | again)), device="cpu")  # they fit
    for role in ("text_encoder", "decoder"):  # rounded twice, they are what they were, and go by the same name
        states = [getattr(pipe, role).state_dict() for pipe in (before, after)]
        assert all(torch.allclose(states[0][name], states[1][name], rtol=2e-3) for name in states[0])
    asked = {"n": 1, "steps": 2, "progress": False}
    assert not torch.equal(before("a red star", **asked).tensor, after("a red star", **asked).tensor)


def test_a_generator_alone_takes_the_place_of_the_old_one(home: Path, shipped: ShipRecipe, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shutil.copytree(shipped.out, shelf)
    run(home / "unet.toml", [*_between(home / "vae", home / "text"), f"out={tmp_path / 'new'}", "seed=1"], device="cpu")
    source = {"generator": {"kind": "latent-diffusion", "run": tmp_path / "new" / "final"}, "out": shelf}
    config = json.loads((shelf / "small" / "config.json").read_text("utf-8"))
    config["results"] = {"psnr": 31.5, "seconds_per_image": 0.5}  # of the VAE alone, and of all parts
    (shelf / "small" / "config.json").write_text(json.dumps(config), "utf-8")
    before = configs.read(shelf / "small")
    after = configs.read(assemble(ShipRecipe.model_validate(shipped.model_dump() | source), ["generator"]))
    assert after.generator.files != before.generator.files
    assert (after.text_encoder, after.decoder) == (before.text_encoder, before.decoder)
    assert after.results == {"psnr": 31.5}
    assert {part: after.training[part] for part in ("clip", "vae")} == {
        part: before.training[part] for part in ("clip", "vae")
    }
    assert after.training["unet"] != before.training["unet"]  # another number of minutes
    zoo.load(shelf / "small", device="cpu")


def test_nothing_is_written_over(shipped: ShipRecipe, tmp_path: Path) -> None:
    unpack(shipped.out / shipped.name, tmp_path)
    with pytest.raises(ValueError, match=r"clip/final is there already: remove it, or choose another folder"):
        unpack(shipped.out / shipped.name, tmp_path)


def test_every_shipped_model_says_what_it_can_go_on_from(tmp_path: Path) -> None:
    for model in ("stable-diffusion-small", "imagen-small", "dalle2-small", "gan-small"):
        places = unpack(model, tmp_path / model)
        assert places
        assert all((place / "config.json").is_file() and (place / "training.json").is_file() for place in places)
    with pytest.raises(ValueError, match="is stable-diffusion-small with an adapter folded in: unpack stable-diff"):
        unpack("stable-diffusion-small-lcm", tmp_path / "lcm")
