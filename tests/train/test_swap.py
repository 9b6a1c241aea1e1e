"""Every generator learns every encoder on one budget; the page's table is what was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zoo import config as configs
from zoo.stable_diffusion.parts import LatentGenerator, VaeDecoder
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, readers, run, swap, text_to_image, vae
from zoo.train.results import shipped
from zoo.weights import save_model
from zoo.weights import write_config as save_config

ROOT = Path(__file__).parents[2]
FRESH = ("*.cross_attention.to_k.*", "*.cross_attention.to_v.*")


@pytest.fixture
def recipe(home: Path, same_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> swap.SwapRecipe:
    """A tiny U-Net that was trained on one encoder, its model, and another encoder."""
    monkeypatch.setattr(text_to_image, "judge", lambda picture, scene: pytest.fail("a swap is scored at its end"))
    monkeypatch.setattr(text_to_image.PromptTask, "inspect", lambda self, model: (None, {}))
    frozen = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}", "seed=3"]
    first = run(home / "unet.toml", [f"out={tmp_path / 'first'}", *frozen], device="cpu").folder
    text = ClipTextEncoder.load(home / "text")
    made = LatentGenerator.load(first, json.loads((first / "config.json").read_text("utf-8")))
    decoder = VaeDecoder(vae.load(home / "vae" / "final"))
    save_model(tmp_path / "tiny", text, made, decoder, family="tiny", resolution=(64, 64), defaults={"steps": 2})
    torch.manual_seed(1)
    with torch.no_grad():
        text.model.text_model.final_layer_norm.weight.mul_(1.5)  # another encoder now
    other = ClipTextEncoder(text.model, text.tokenizer)
    other.save(tmp_path / "other")
    shutil.copytree(home / "text" / "tokenizer", tmp_path / "other" / "tokenizer", dirs_exist_ok=True)
    adapted = tmp_path / "unet.toml"
    text_of = (home / "unet.toml").read_text("utf-8")
    adapted.write_text(f'vae = "{home / "vae" / "final"}"\n{text_of}', "utf-8")
    said = {
        "steps": 2,
        "batch": 2,
        "scenes": 8,
        "threads": 1,
        "out": tmp_path / "pairs",
        "per_task": 1,
        "encoders": {"CLIP": home / "text", "Other": tmp_path / "other"},
        "generators": {
            "Latent": {
                "recipe": adapted,
                "init": first,
                "fresh": FRESH,
                "kind": "latent-diffusion",
                "model": str(tmp_path / "tiny"),
            }
        },
    }
    return swap.SwapRecipe.model_validate(said)


def test_every_pair_is_trained_scored_and_told(
    recipe: swap.SwapRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = swap.measured(recipe)
    assert found.keys() == {"Latent"}
    read = found["Latent"]["encoders"]
    assert {name: one["images"] for name, one in read.items()} == {"CLIP": 4, "Other": 4}
    folders = [tmp_path / "pairs" / f"latent-{name}" / "final" for name in ("clip", "other")]
    weights = [load_file(folder / "unet" / "model.safetensors") for folder in folders]
    before = load_file(recipe.generators["Latent"].init / "unet" / "model.safetensors")
    for name, tensor in before.items():
        moved = [float((after[name].float() - tensor.float()).abs().max()) for after in weights]
        reads = ".cross_attention.to_k." in name or ".cross_attention.to_v." in name
        assert all(far > 0.05 if reads else far < 0.05 for far in moved), name  # learnt anew, or trained two steps more
    for folder in folders:
        ran = json.loads((folder / "training.json").read_text("utf-8"))["recipe"]
        assert (ran["data"]["scenes"], ran["optimiser"]["warmup"]) == (8, 0)
    assert all(one.keys() >= {"overall", "clean", "tasks", "intervals"} for one in read.values())

    def twice(*_: object, **__: object) -> None:
        pytest.fail("each is trained and scored once")

    with monkeypatch.context() as patched:
        patched.setattr(swap, "run", twice)
        patched.setattr(swap, "pipeline", twice)
        assert swap.measured(recipe) == found
    other = swap.measured(recipe.model_copy(update={"heldout": "test"}))["Latent"]
    assert other["heldout"] == "test"
    assert other["encoders"]["CLIP"] != read["CLIP"], "the scores that were kept are of the other half"


def test_what_was_found_is_in_config_card_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command leaves it in a checkout."""
    models = [tmp_path / "weights" / name for name in ("stable-diffusion-small", "imagen-small")]
    for folder in models:
        folder.mkdir(parents=True)
        shutil.copyfile(ROOT / folder.relative_to(tmp_path) / "config.json", folder / "config.json")
        config = configs.read(folder)
        shown = {name: told for name, told in config.results.items() if name != "readers"}
        save_config(folder, config.model_copy(update={"results": shown}))
    for name in ("docs", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / readers.PAGE).write_text("above\n" + "".join(readers.MARKS) + "\nbelow\n", "utf-8")
    share = {split: {"en": 0.5, "zh": 0.25} for split in ("seen", "held_out")}
    spread = {split: {"en": [0.4, 0.6], "zh": [0.2, 0.3]} for split in ("seen", "held_out")}
    pair = {"images": 10, "minutes": 1.5, "overall": share, "intervals": {"overall": spread}}
    pair |= {"tasks": {"colour attribution": share}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swap, "scored", lambda recipe, generator, encoder: pair)
    monkeypatch.setattr("sys.argv", ["swap", str(ROOT / "recipes" / "text-encoders.toml")])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert not readers.stale(tmp_path, [configs.read(folder) for folder in models])
    swap.main()
    row = "0.5 (0.40–0.60) | 0.25 (0.20–0.30) | 0.5 (0.40–0.60) | 0.25 (0.20–0.30) | 0.5 | 0.25 | 10 | 2 |"
    text = (tmp_path / readers.PAGE).read_text("utf-8")
    for folder in models:
        card = (folder / "README.md").read_text("utf-8")
        assert "### Which text encoder" in card
        for encoder in ("CLIP", "T5"):
            assert f"| {encoder} | {row}" in card
            assert f"| {folder.name} | {encoder} | {row}" in text
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    said = [config for _, config in shipped(tmp_path)]
    assert not readers.stale(tmp_path, said)
    (tmp_path / readers.PAGE).write_text(text.replace("0.60", "0.90"), "utf-8")
    assert readers.stale(tmp_path, said)


def test_this_checkouts_recipe_fits() -> None:
    recipe = swap.SwapRecipe.model_validate(swap.read_toml(ROOT / "recipes" / "text-encoders.toml"))
    assert all((ROOT / reader.recipe).is_file() for reader in recipe.generators.values())
    assert all((ROOT / reader.model / "config.json").is_file() for reader in recipe.generators.values())


def test_fresh_weights_need_an_init_and_a_match(home: Path, same_cache: None, tmp_path: Path) -> None:
    frozen = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(RecipeError, match="there is no init"):
        run(home / "unet.toml", [*frozen, 'fresh=["*.to_k.*"]'], device="cpu")
    with pytest.raises(TrainingError, match=r"fresh: '\*\.to_x' matches no weight, such as: network\."):
        run(home / "unet.toml", [*frozen, 'fresh=["*.to_x"]', f"init={home}"], device="cpu")
