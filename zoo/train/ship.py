"""From trained parts to a shipped model: `python -m zoo.train.ship recipes/stable-diffusion-small.toml [--measure]`.

Without `--measure` the model folder is written and can be loaded; with it, the folder's scores, gates and pictures are
made and become its results and its card. The held-out test half is looked at only then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from zoo import config as configs
from zoo import model_card, weights
from zoo.config import Defaults, ModelConfig, PartConfig
from zoo.loading import load
from zoo.pipeline import Pipeline
from zoo.sheet import tensor_sheet
from zoo.stable_diffusion.parts import LatentGenerator, VaeDecoder
from zoo.stable_diffusion.vae import VAE
from zoo.train.checkpoint import replacing
from zoo.train.recipe import read_toml
from zoo.train.vae import load as load_vae

CLIP_FILES = ("config.json", "model.safetensors", "tokenizer/tokenizer.model")
SAMPLES = "samples.png"


class ShipRecipe(BaseModel):
    """What a shipped Stable Diffusion is made of, and what its card says.

    Text encoder and decoder are its own, from `clip` and `vae`, or those of the model `base`, whose files it shares.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    unet: Path  # exported by `zoo train recipes/unet.toml`, or by a distillation
    base: str | None = None  # a shipped model beside it
    clip: Path | None = None  # exported by `zoo train recipes/clip.toml`
    clip_name: str | None = None  # the folder beside the model's that both towers are shipped in
    vae: Path | None = None
    layer: int = -2
    heldout: Literal["dev", "test"] = "test"  # half of the held-out combinations that it is scored on
    per_task: int = 100
    edits: int = 24  # scenes for each kind of edit
    maps: int = 48  # painted scenes, seen and of the dev half, for a model that takes maps
    out: Path = Path("weights")
    defaults: Defaults = Defaults()
    resolution: tuple[int, int] = (64, 64)
    languages: tuple[str, ...] = ("en", "zh")
    papers: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    notes: dict[str, str] = {}

    @model_validator(mode="after")
    def _own_or_shared(self) -> Self:
        own = [part is not None for part in (self.clip, self.clip_name, self.vae)]
        if any(own) if self.base else not all(own):
            raise ValueError("say where text encoder and decoder come from: base, or all of clip, clip_name and vae")
        return self


def assemble(recipe: ShipRecipe) -> Path:
    """Write the model folder, tensors in half precision, and a CLIP folder if it has its own; returns the model's."""
    folder = recipe.out / recipe.name
    recipe.out.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = json.loads((recipe.unet / "config.json").read_text("utf-8"))
    generator = LatentGenerator.load(recipe.unet, arguments)
    folder.mkdir(exist_ok=True)
    text, decoder = _own(recipe, folder) if recipe.base is None else _shared(recipe.out / recipe.base)
    config = ModelConfig.model_validate(
        {
            "name": recipe.name,
            "family": "Stable Diffusion",
            "summary": recipe.summary,
            "resolution": recipe.resolution,
            "text_encoder": text,
            "generator": weights.save_part(folder, generator, dtype=torch.float16),
            "decoder": decoder,
            "defaults": recipe.defaults,
            "languages": recipe.languages,
            "papers": recipe.papers,
            "recipes": recipe.recipes,
            "examples": recipe.examples,
            "notes": recipe.notes,
            "training": training(recipe),
        }
    )
    weights.write_config(folder, config)
    return folder


def _own(recipe: ShipRecipe, folder: Path) -> tuple[PartConfig, PartConfig]:
    """Text encoder and decoder, written: both towers of the CLIP beside the model, the VAE in its folder."""
    assert recipe.clip is not None  # so the recipe promises
    assert recipe.clip_name is not None
    assert recipe.vae is not None
    clip = recipe.out / recipe.clip_name
    with replacing(clip) as temporary:
        for name in CLIP_FILES:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe.clip / name, temporary / name)
    text = weights.share_part(folder, clip, "clip-text", {"layer": recipe.layer}, CLIP_FILES)
    return text, weights.save_part(folder, VaeDecoder(load_vae(recipe.vae)), dtype=torch.float16)


def _shared(base: Path) -> tuple[PartConfig, PartConfig]:
    """Text encoder and decoder of a shipped model, whose files they stay."""
    config = configs.read(base)
    text, decoder = (
        part.model_copy(update={"shared": part.shared or base.name}) for part in (config.text_encoder, config.decoder)
    )
    return text, decoder


def training(recipe: ShipRecipe) -> dict[str, JsonValue]:
    """What each part's run says of itself: steps, images seen, minutes."""
    said: dict[str, JsonValue] = {} if recipe.base is None else dict(configs.read(recipe.out / recipe.base).training)
    for part, folder in (("clip", recipe.clip), ("vae", recipe.vae), ("unet", recipe.unet)):
        if folder is not None:
            run = json.loads((folder / "training.json").read_text("utf-8"))
            name = run.get("recipe", {}).get("part", part)  # a U-Net may come from another kind of training
            said[name] = {key: run[key] for key in ("step", "images", "minutes")}
    return said


MEASURES = ("samples", "evaluation", "editing", "maps", "psnr", "clip_gates", "parameters", "seconds_per_image")


def measure(folder: Path, recipe: ShipRecipe, what: Sequence[str] = MEASURES) -> None:
    """Measure the shipped folder itself and write what was found into config, card and README.

    What is not in `what` keeps the figures that it had: they hold as long as its files do.
    """
    from zoo.evaluate import editing, maps
    from zoo.evaluate.distances import reconstruction_psnr
    from zoo.evaluate.run import Pipe, evaluate
    from zoo.train.gates import report

    pipe = load(folder, device="cpu")
    decoder = pipe.decoder
    assert isinstance(decoder, VaeDecoder)
    found: dict[str, JsonValue] = {}
    if "samples" in what:
        drawn = pipe(list(recipe.examples), n=4, seed=0, progress=False)
        _write(drawn.sheet(), folder / SAMPLES)
    if "evaluation" in what:
        found["evaluation"] = json.loads(
            json.dumps(evaluate(cast(Pipe, pipe), per_task=recipe.per_task, heldout=recipe.heldout))
        )
    if "editing" in what:
        edit_scores, edited = editing.evaluate(cast(Pipe, pipe), n=recipe.edits)
        found["editing"] = json.loads(json.dumps(edit_scores))
        _write(tensor_sheet(editing.sheet_rows(edited)), folder / "editing.png")
    if "maps" in what and isinstance(pipe.generator, LatentGenerator) and pipe.generator.classes:
        map_scores, kept = maps.evaluate(cast(Pipe, pipe), n=recipe.maps)
        found["maps"] = json.loads(json.dumps(map_scores))
        _write(tensor_sheet(maps.sheet_rows(kept)), folder / "maps.png")
    if "psnr" in what:
        found["psnr"] = round(reconstruction_psnr(lambda images: _through(decoder.vae, images)), 2)
    if "clip_gates" in what and recipe.clip_name is not None:
        found["clip_gates"] = json.loads(json.dumps(report(str(folder.parent / recipe.clip_name))))
    if "parameters" in what:
        found["parameters"] = parameters(pipe)
    if "seconds_per_image" in what:
        found["seconds_per_image"] = seconds(pipe, recipe.examples[0])
    config = configs.read(folder)
    config = config.model_copy(update={"results": config.results | found})
    weights.write_config(folder, config)
    write_scores(Path("README.md"), config)


def _write(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _through(vae: VAE, images: torch.Tensor) -> torch.Tensor:
    """Images [batch, 3, height, width] in [0, 1] encoded and decoded."""
    made = vae.decode(vae.encode(images * 2 - 1).mean)
    return ((made + 1) / 2).clamp(0, 1)


def write_scores(readme: Path, config: ModelConfig) -> None:
    """Put the model's scores between the README's marks for them, where it has such marks."""
    begin, end = f"<!-- scores of {config.name}: written by `python -m zoo.train.ship` -->\n", "<!-- end of scores -->"
    text = readme.read_text("utf-8") if readme.is_file() else ""
    head, found, rest = text.partition(begin)
    if found:
        with replacing(readme) as temporary:
            tail = rest.partition(end)[2]
            temporary.write_text(f"{head}{begin}\n{model_card.scores(config)}\n\n{end}{tail}", "utf-8")


def parameters(pipe: Pipeline) -> dict[str, JsonValue]:
    """Parameters of each part."""
    parts = {"text encoder": pipe.text_encoder, "generator": pipe.generator, "decoder": pipe.decoder}
    return {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module)
    }


def seconds(pipe: Pipeline, prompt: str, repeats: int = 5) -> float:
    """The median time of one picture, warm."""
    times = []
    for seed in range(repeats + 1):
        started = time.perf_counter()
        pipe(prompt, n=1, seed=seed, progress=False)
        times.append(time.perf_counter() - started)
    return round(sorted(times[1:])[repeats // 2], 3)


def main() -> None:
    """Assemble, unless only measuring, and measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train.ship", description=__doc__)
    parser.add_argument("recipe", help="recipes/<model>.toml")
    parser.add_argument(
        "--measure", nargs="*", choices=MEASURES, help="all of it, the held-out test half included, or some"
    )
    parser.add_argument("--keep", action="store_true", help="measure the folder as it is, without writing it anew")
    arguments = parser.parse_args()
    recipe = ShipRecipe.model_validate(read_toml(arguments.recipe))
    folder = recipe.out / recipe.name if arguments.keep else assemble(recipe)
    if arguments.measure is not None:
        measure(folder, recipe, arguments.measure or MEASURES)
    print(folder)


if __name__ == "__main__":
    main()
