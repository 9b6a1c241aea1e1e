"""A distilled U-Net ships as a model that shares the rest with its teacher's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import zoo
from zoo import config as configs
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.stable_diffusion.parts import LatentGenerator
from zoo.stable_diffusion.unet import UNet
from zoo.train import PARTS, ship
from zoo.train.assemble import TRAINED, assemble
from zoo.train.distil import load_teacher
from zoo.train.methods import weights_of, write_base
from zoo.train.model_recipe import ShipRecipe, Source
from zoo.train.recipe import read_toml
from zoo.train.ship import add_adapters, retell

ROOT = Path(__file__).parents[2]
BEFORE = {"step": 2, "images": 64, "minutes": 0.25}
RUN = {"recipe": {"part": "lcm"}, "before": BEFORE, "step": 7, "images": 224, "minutes": 0.5}


@pytest.fixture
def recipe(tiny_models: Path, tmp_path: Path) -> ShipRecipe:
    """A shelf with the model tiny, and its U-Net as a distillation exports it."""
    shelf, run = tmp_path / "shelf", tmp_path / "run"
    shutil.copytree(tiny_models / "tiny", shelf / "tiny")
    teacher = load_teacher(shelf / "tiny")
    unet = teacher.config.unet.model_copy(update={"guidance_width": 16})
    network = UNet(unet)
    assert network.guidance is not None
    source = torch.Generator().manual_seed(0)
    told = {"guidance.project.weight": torch.randn(network.guidance.project.weight.shape, generator=source)}
    network.load_state_dict(teacher.denoiser.network.state_dict() | told)
    config = teacher.config.model_copy(update={"unet": unet, "guidance_range": (1.0, 7.0)})
    arguments, _ = LatentGenerator.of(network, config).save(run, torch.float16)
    (run / "config.json").write_text(json.dumps(arguments), "utf-8")
    (run / "training.json").write_text(json.dumps(RUN), "utf-8")
    base = {"base": "tiny"}
    parts = {"text_encoder": base, "generator": {"kind": "latent-diffusion", "run": run}, "decoder": base}
    said = {"name": "fast", "family": "Stable Diffusion", "summary": "Few steps.", "out": shelf, "resolution": (32, 32)}
    lcm = {"steps": 4, "sampler": "lcm", "spacing": "lcm", "guidance": 4.0}
    return ShipRecipe.model_validate(said | parts | {"defaults": lcm})


def test_only_the_unet_is_new(recipe: ShipRecipe) -> None:
    folder = assemble(recipe)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "README.md", "unet/model.safetensors"}
    config = configs.read(folder)
    assert (config.text_encoder.shared, config.generator.shared, config.decoder.shared) == ("tiny", None, "tiny")
    assert config.training["lcm"] == {"step": 9, "images": 288, "minutes": 0.75}


def test_words_alone_may_be_new(recipe: ShipRecipe) -> None:
    folder = assemble(recipe)
    before = configs.read(folder)
    retell(folder, recipe.model_copy(update={"summary": "Four steps.", "notes": {"Limits": "Few."}, "defaults": None}))
    assert configs.read(folder) == before.model_copy(update={"summary": "Four steps.", "notes": {"Limits": "Few."}})
    assert "Four steps." in (folder / "README.md").read_text("utf-8")


def test_it_draws_with_its_own_defaults(recipe: ShipRecipe) -> None:
    pipe, steps = zoo.load(assemble(recipe), device="cpu"), list[int]()
    drawn = pipe("a red star", n=2, progress=False, callback=lambda stage, step: steps.append(step.index))
    assert steps == [0, 1, 2, 3]
    more = pipe("a red star", n=2, guidance=6.0, progress=False)
    assert (drawn.tensor - more.tensor).abs().max() > 1e-3  # without the port they are equal to the bit
    with pytest.raises(ValueError, match="guidance from 1 to 7, got 9"):
        pipe("a red star", n=1, guidance=9.0, progress=False)
    with pytest.raises(ValueError, match="fast .* takes no negative prompt: leave negative out"):
        pipe("a red star", n=1, negative="a blue star", progress=False)
    assert pipe("a red star", n=2, negative="", progress=False).tensor.equal(drawn.tensor)


def test_eight_bits_draw_nearly_the_same(recipe: ShipRecipe) -> None:
    """The U-Net's file is half as large, and still what it says it is."""
    whole = assemble(recipe)
    small = assemble(recipe.model_copy(update={"name": "small", "bits": 8}))
    sizes = [(folder / "unet" / "model.safetensors").stat().st_size for folder in (whole, small)]
    assert sizes[1] < 0.75 * sizes[0], "small tensors and the header weigh much here"
    drawn = [zoo.load(folder, device="cpu")("a red star", n=2, progress=False).tensor for folder in (whole, small)]
    assert 0 < float((drawn[0] - drawn[1]).abs().mean()) < 0.1


@pytest.fixture
def on_a_lora(recipe: ShipRecipe, tmp_path: Path) -> ShipRecipe:
    """A model that is tiny with one of its adapters, which a distillation left."""
    tiny, run = recipe.out / "tiny", tmp_path / "lora"
    pipe = zoo.load(tiny, device="cpu")
    network = pipe.generator.denoiser.network  # type: ignore[attr-defined]
    lora = LoRA.build(network, ["*"])
    torch.manual_seed(0)
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up, std=0.1)
    run.mkdir()
    write(run / "lora.safetensors", {"unet": lora})
    write_base(weights_of(pipe), {"generator"}, run)
    (run / "training.json").write_text(json.dumps(RUN | {"recipe": {"part": "lcm-lora"}}), "utf-8")
    adapters = {"lcm": {"run": run, "summary": "Few steps.", "prompt": "a red star"}}
    add_adapters(tiny, ShipRecipe.model_validate(recipe.model_dump() | {"name": "tiny", "adapters": adapters}))
    said = recipe.model_dump() | {"generator": {"base": "tiny", "adapter": "lcm"}}
    return ShipRecipe.model_validate(said | {"defaults": recipe.defaults.model_copy(update={"guidance": 1.0})})


def test_a_model_may_be_another_with_one_of_its_adapters_folded_in(on_a_lora: ShipRecipe) -> None:
    folder, asked = assemble(on_a_lora), {"n": 2, "progress": False}
    assert {path.name for path in folder.iterdir()} == {"config.json", "README.md"}
    config = configs.read(folder)
    assert config.generator.lora == "adapters/lcm/lora.safetensors"
    assert config.training["lcm-lora"] == {"step": 9, "images": 288, "minutes": 0.75}

    pipe, base = zoo.load(folder, device="cpu"), zoo.load(on_a_lora.out / "tiny", device="cpu")
    assert pipe.adapters() == {}
    settings = {"steps": 4, "sampler": "lcm", "spacing": "lcm", "guidance": 1.0}
    plain = base("a red star", **asked, **settings).tensor
    base.load_lora("lcm")
    beside = base("a red star", adapters={"lcm": 1.0}, **asked, **settings).tensor
    torch.testing.assert_close(pipe("a red star", **asked).tensor, beside, rtol=0, atol=1e-4)
    assert (beside - plain).abs().max() > 0.01


def test_a_model_on_an_adapter_needs_that_adapter(on_a_lora: ShipRecipe) -> None:
    folder, tiny = assemble(on_a_lora), on_a_lora.out / "tiny"
    with pytest.raises(ValueError, match=r"no adapter 'other' comes with tiny \(there are: lcm\)"):
        assemble(on_a_lora.model_copy(update={"generator": Source(base="tiny", adapter="other")}))
    with pytest.raises(ValidationError, match="of which model"):
        Source(adapter="lcm")
    (tiny / "adapters" / "lcm" / "lora.safetensors").unlink()
    with pytest.raises(ValueError, match="lora.safetensors"):
        zoo.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["stable-diffusion-small", "stable-diffusion-small-lcm", "imagen-small"])
def test_the_projects_recipes_are_recipes(name: str) -> None:
    recipe = ShipRecipe.model_validate(read_toml(ROOT / "recipes" / f"{name}.toml"))
    assert recipe.name == name
    assert all((ROOT / path).is_file() for path in recipe.recipes)


@pytest.mark.parametrize("source", [{}, {"kind": "vae"}, {"run": "runs/vae/final"}, {"base": "tiny", "kind": "vae"}])
def test_a_part_has_one_source(recipe: ShipRecipe, source: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="either base, or both of kind and run"):
        ShipRecipe.model_validate(recipe.model_dump() | {"decoder": source})


def test_every_training_is_of_one_role() -> None:
    counted = [part for parts in TRAINED.values() for part in parts]
    assert sorted(counted) == sorted({*PARTS, "tokenizer", "clip-vision"} - {"adapter"})


def test_a_run_that_is_not_there_leaves_the_old_folder_alone(recipe: ShipRecipe, tmp_path: Path) -> None:
    folder = assemble(recipe)
    assert isinstance(recipe.generator, Source)
    lost = recipe.generator.model_copy(update={"run": tmp_path / "nowhere"})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="nowhere is no finished run"):
        assemble(recipe.model_copy(update={"generator": lost}))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "given",
    [
        ["--keep", "--only", "decoder"],
        ["--shared", "--keep"],
        ["--shared", "--measure", "gates"],
        ["--shared", "--adapters"],
    ],
)
def test_flags_that_do_not_go_together_are_told(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ship", str(ROOT / "recipes" / "gan-small.toml"), *given])
    with pytest.raises(SystemExit, match="2"):
        ship.main()
