"""From trained parts to a shipped model: `python -m zoo.train.ship recipes/stable-diffusion-small.toml [--measure]`.

Without `--measure` the model folder is written and can be loaded; with it, the folder's scores, gates and pictures are
made and become its results and its card. The held-out test half is looked at only then.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from zoo import config as configs
from zoo import tensors, weights
from zoo.adapt.files import LORA
from zoo.adapt.formats import locate
from zoo.clip import Clip
from zoo.config import AdapterConfig, Defaults, ModelConfig, PartConfig, Role, SharedName
from zoo.loading import load
from zoo.train.checkpoint import replacing
from zoo.train.loop import STORY, cost
from zoo.train.measure import MEASUREMENTS, Measuring, measure
from zoo.train.methods import BASE, goes_with, weights_of
from zoo.train.recipe import read_toml

TRAINED: Mapping[Role, tuple[str, ...]] = {  # trainings whose results are in a part of a base
    "text_encoder": ("tokenizer", "clip", "clip-vision", "t5"),
    "generator": (
        *("unet", "map", "lcm", "lcm-lora", "phases-lora", "imagen-base", "gan"),
        *("diffusion-prior", "autoregressive-prior", "one-step-prior"),
    ),
    "decoder": ("vae", "unclip-decoder", "super-resolution"),
}
MEASURED_OF: Mapping[str, Role] = {"gates": "text_encoder", "psnr": "decoder", "enlarging": "decoder"}  # one part alone
WORDS = ("summary", "languages", "papers", "recipes", "examples", "notes")  # what a config says of a model in words


class Source(BaseModel):
    """Where a part comes from: a training `run` that exported it, or the shipped model `base`, whose files it shares.

    `shared`: the run is a whole CLIP, whose files go to a folder of this name beside the model's, to serve many models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str | None = None  # a name in `zoo.weights.CLASSES`
    run: Path | None = None
    arguments: dict[str, JsonValue] | None = None  # unless the run's config.json says them
    shared: str | None = None
    upsamplers: str | None = None  # the shipped model whose cascade comes after a decoder of DALL-E 2, files shared
    base: str | None = None
    adapter: SharedName | None = None  # of base: a LoRA that comes with it, which is this part's difference from it

    @model_validator(mode="after")
    def _one(self) -> Self:
        own = [value is not None for value in (self.kind, self.run)]
        if self.adapter is not None and self.base is None:
            raise ValueError(f"adapter = {self.adapter!r} of which model? Say it with base")
        if any([*own, self.arguments, self.shared, self.upsamplers]) if self.base else not all(own):
            raise ValueError("say where the part comes from: either base, or both of kind and run")
        return self


class Adapter(BaseModel):
    """An adapter that comes with the model: the training `run` that left it, and what the card says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path
    summary: str
    prompt: str
    settings: Mapping[str, JsonValue] = {}  # what a call asks for beside it


class ShipRecipe(Measuring):
    """What a shipped model is made of, how it is sampled and measured, and what its card says."""

    name: str
    family: str
    summary: str
    text_encoder: Source
    generator: Source | str  # or which of its variants it is
    decoder: Source
    image_encoder: bool = False  # does the model look at pictures, by the whole CLIP that its text encoder is part of?
    variants: Mapping[Role, Mapping[str, Source]] = {}
    adapters: Mapping[SharedName, Adapter] = {}  # trained on the model as it ships, and so added to it later
    bits: Literal[8, 16] = 16  # of each weight
    out: Path = Path("weights")
    defaults: Defaults = Defaults()
    resolution: tuple[int, int] = (64, 64)
    languages: tuple[str, ...] = ("en", "zh")
    papers: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    notes: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _known(self) -> Self:
        varied = self.variants.get("generator", {})
        if isinstance(self.generator, str) and self.generator not in varied:
            raise ValueError(f"generator = {self.generator!r} is none of its variants: {', '.join(varied) or 'none'}")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """How tensors are stored."""
        return torch.int8 if self.bits == 8 else torch.float16

    def sources(self, but: Collection[Role] = ()) -> list[Source]:
        """Where the parts come from, variants included, `but` those of some roles."""
        roles = [role for role in configs.ROLES if role not in but]
        own = [source for role in roles if isinstance(source := getattr(self, role), Source)]
        return [*own, *(source for role in roles for source in self.variants.get(role, {}).values())]


def assemble(recipe: ShipRecipe, only: Collection[Role] = configs.ROLES) -> Path:
    """Write the model folder, tensors in `bits`, and the folders it shares; returns the model's.

    only: the roles whose parts are written; the others stay as they are, with what was measured of them alone.

    Raises:
        ValueError: a run or a model that parts come from is not there; nothing is written then.
    """
    folder = recipe.out / recipe.name
    kept = [role for role in configs.ROLES if role not in only]
    before = configs.read(folder) if kept else None
    _check_sources(recipe, kept)
    folder.mkdir(parents=True, exist_ok=True)
    roles: dict[Role, Source | str] = {
        "text_encoder": recipe.text_encoder,
        "generator": recipe.generator,
        "decoder": recipe.decoder,
    }
    parts: dict[Role, PartConfig] = {}
    variants: dict[Role, dict[str, PartConfig]] = {}
    for role, source in roles.items():
        if before is not None and role in kept:
            parts[role], variants[role] = before.part(role), before.variants.get(role, {})
            continue
        varied = recipe.variants.get(role, {})
        variants[role] = {name: _part(folder, role, one, recipe.dtype, name) for name, one in varied.items()}
        parts[role] = variants[role][source] if isinstance(source, str) else _part(folder, role, source, recipe.dtype)
    looks = parts["text_encoder"] if recipe.image_encoder else None
    if looks is not None and looks.shared is None:
        raise ValueError("image_encoder = true needs a text encoder that is part of a whole, shared CLIP")
    config = ModelConfig.model_validate(
        {
            **{field: getattr(recipe, field) for field in ("name", "family", "resolution", "defaults", *WORDS)},
            **parts,
            "variants": {role: varied for role, varied in variants.items() if varied},
            "image_encoder": looks and looks.model_copy(update={"kind": "clip", "arguments": {}}),
            "training": training(recipe, before, kept),
            "results": _of(kept, before.results) if before is not None else {},
        }
    )
    shutil.rmtree(folder / configs.ADAPTERS, ignore_errors=True)  # they were made for the model of before
    weights.write_config(folder, config)
    _tell_sharers(folder.parent, folder.name)
    return folder


def _check_sources(recipe: ShipRecipe, kept: Collection[Role]) -> None:
    """All that is to be written is at hand: half of a new model over an old one would be neither."""
    for source in recipe.sources(kept):
        if source.run is not None and not (source.run / STORY).is_file():
            raise ValueError(f"{source.run} is no finished run (it has no {STORY}): train it first, or unpack it")
        for model in (source.base, source.upsamplers):
            if model is not None:
                configs.read(recipe.out / model)


def retell(folder: Path, recipe: ShipRecipe) -> None:
    """Have a model folder say what the recipe says now, of it and of its adapters, in words; all else stays."""
    config = configs.read(folder)
    adapters = {
        name: one.model_copy(update={"summary": recipe.adapters[name].summary} if name in recipe.adapters else {})
        for name, one in config.adapters.items()
    }
    words = {field: getattr(recipe, field) for field in WORDS}
    weights.write_config(folder, config.model_copy(update=words | {"adapters": adapters}))


def _of(roles: Collection[Role], results: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: found for name, found in results.items() if MEASURED_OF.get(name) in roles}


def add_adapters(folder: Path, recipe: ShipRecipe, names: Sequence[str] = ()) -> None:
    """Put what the runs of the recipe's adapters left beside the model that they were trained on; LoRAs in `bits`.

    `names`: those to add, in place of all; others that are there already stay.

    Raises:
        ValueError: no such adapter, a run left nothing that can be added, or was of another model.
    """
    if unknown := [name for name in names if name not in recipe.adapters]:
        raise ValueError(f"the recipe has no adapter {unknown[0]!r}, only {', '.join(recipe.adapters) or 'none'}")
    config = configs.read(folder)
    told = {name: one for name, one in config.adapters.items() if names and name in recipe.adapters}
    weights_there = weights_of(load(folder, device="cpu"))
    for name in names or recipe.adapters:
        adapter = recipe.adapters[name]
        if not (adapter.run / BASE).is_file():
            raise ValueError(f"{adapter.run} holds no adapter: train it first")
        if not goes_with(adapter.run, weights_there):
            raise ValueError(f"{adapter.run} was trained on other weights than those in {folder}: train it again")
        locate(adapter.run)  # there is one that `load_adapter` finds
        files = sorted(adapter.run.glob("*.safetensors"))
        place = folder / configs.ADAPTERS / name
        with replacing(place) as temporary:
            temporary.mkdir(parents=True)
            for file in files:
                dtype = torch.int8 if recipe.bits == 8 and file.name == LORA.name else None
                tensors.write(temporary / file.name, tensors.read(file), dtype, tensors.metadata(file))
        inside = {file.relative_to(folder).as_posix(): tensors.sha256(file) for file in sorted(place.iterdir())}
        story = json.loads((adapter.run / STORY).read_text("utf-8"))
        told[name] = AdapterConfig(
            summary=adapter.summary,
            prompt=adapter.prompt,
            settings=dict(adapter.settings),
            files=inside,
            training={story["recipe"]["part"]: dict(cost(story))},
        )
    ordered = {name: told[name] for name in recipe.adapters if name in told}
    weights.write_config(folder, config.model_copy(update={"adapters": ordered}))
    _tell_sharers(folder.parent, folder.name)


def share(recipe: ShipRecipe) -> list[Path]:
    """Write the folders that the recipe's parts share, and no model's own; all that share one are told what it cost.

    For an image tower that was trained on: models that read the text tower's tokens stay what they are. What was
    measured by the old one (gates, distances, rerank) is to be measured again.

    Raises:
        ValueError: the recipe's parts share nothing.
    """
    runs = {source.shared: source.run for source in recipe.sources() if source.shared and source.run}
    if not runs:
        raise ValueError(f"no part of {recipe.name} is a shared one")
    for name, run in runs.items():
        _shared(recipe.out, run, name, recipe.dtype)
        story = json.loads((run / STORY).read_text("utf-8"))
        part = story["recipe"]["part"]
        for folder, config in _sharers(recipe.out, name):
            if part in config.training:
                told = {**config.training, part: dict(cost(story))}
                weights.write_config(folder, config.model_copy(update={"training": told}))
    return [recipe.out / name for name in runs]


def _shared(shelf: Path, run: Path, name: str, dtype: torch.dtype) -> list[str]:
    """A whole CLIP, written into a folder of its own on the shelf; the names of its files."""
    with replacing(shelf / name) as temporary:
        _, files = Clip.load(run).save(temporary, dtype)
    _tell_sharers(shelf, name)
    return [file.as_posix() for file in files]


def _part(folder: Path, role: Role, source: Source, dtype: torch.dtype, variant: str | None = None) -> PartConfig:
    """A part's files, written into the model folder or the shared one, and its config."""
    if source.base is not None:
        base = configs.read(folder.parent / source.base)
        part = base.part(role, variant)
        if source.adapter is None:
            return part.model_copy(update={"shared": part.shared or source.base})
        held, lora = _adapter(base, source.adapter).files, f"{configs.ADAPTERS}/{source.adapter}/{LORA}"
        if part.shared is not None or lora not in held:
            raise ValueError(f"adapter {source.adapter!r} of {base.name} holds {', '.join(held)}: needed is {lora}")
        return part.model_copy(update={"shared": source.base, "lora": lora, "files": {**part.files, lora: held[lora]}})
    assert source.kind is not None  # so the recipe promises
    assert source.run is not None
    if source.shared is not None:
        names = _shared(folder.parent, source.run, source.shared, dtype)
        return weights.share_part(folder, folder.parent / source.shared, source.kind, source.arguments or {}, names)
    arguments = source.arguments
    if arguments is None:
        arguments = _exported(source.run)
    loaded: object = weights.load_part(
        source.run, PartConfig.model_validate({"kind": source.kind, "arguments": arguments})
    )
    part = weights.save_part(folder, loaded, subfolder=variant or ".", dtype=dtype)
    if source.upsamplers is None:
        return part
    cascade = configs.read(folder.parent / source.upsamplers).decoder
    return part.model_copy(update={"upsamplers": cascade.model_copy(update={"shared": source.upsamplers})})


def _adapter(base: ModelConfig, name: str) -> AdapterConfig:
    if name not in base.adapters:
        raise ValueError(
            f"no adapter {name!r} comes with {base.name} (there are: {', '.join(base.adapters) or 'none'})"
        )
    return base.adapters[name]


def _exported(run: Path) -> dict[str, JsonValue]:
    """The arguments of the part that a training run exported."""
    said: dict[str, JsonValue] = json.loads((run / "config.json").read_text("utf-8"))
    return said


def _tell_sharers(shelf: Path, shared: str) -> None:
    """Models that share this folder's files are told their new sums; whether they still fit, loading tells."""

    def told(part: PartConfig) -> PartConfig:
        more = part.upsamplers and told(part.upsamplers)
        if part.shared != shared:
            return part.model_copy(update={"upsamplers": more})
        sums = dict(part.files)  # what is gone keeps its sum, and loading tells
        sums |= {name: tensors.sha256(path) for name in sums if (path := shelf / shared / name).is_file()}
        return part.model_copy(update={"files": sums, "upsamplers": more})

    for folder, config in _sharers(shelf, shared):
        parts = {name: getattr(config, name) for name in (*configs.ROLES, "image_encoder")}
        new = config.model_copy(update={name: part and told(part) for name, part in parts.items()})
        if new != config:
            weights.write_config(folder, new)


def _sharers(shelf: Path, shared: str) -> Iterator[tuple[Path, ModelConfig]]:
    """The other models on the shelf that may use files of the folder `shared`."""
    for path in sorted(shelf.glob(f"*/{configs.FILE}")):
        if path.parent.name != shared and "format" in json.loads(path.read_bytes()):
            yield path.parent, configs.read(path.parent)


def training(
    recipe: ShipRecipe, before: ModelConfig | None = None, kept: Collection[Role] = ()
) -> dict[str, JsonValue]:
    """What each part has cost, with what it began with: steps, images seen, minutes.

    Of the roles that are `kept`, what the folder said `before`.
    """
    said: dict[str, JsonValue] = {}
    if before is not None:
        said |= {part: told for role in kept for part, told in before.training.items() if part in TRAINED[role]}
    for role in (role for role in configs.ROLES if role not in kept):
        source = getattr(recipe, role)
        if isinstance(source, Source) and source.base is not None:
            base = configs.read(recipe.out / source.base)
            said |= {part: told for part, told in base.training.items() if part in TRAINED[role]}
            if source.adapter is not None:
                said |= _adapter(base, source.adapter).training
        if isinstance(source, Source) and source.upsamplers is not None:
            stages = configs.read(recipe.out / source.upsamplers).training
            said |= {part: told for part, told in stages.items() if part == "super-resolution"}
    for source in recipe.sources(kept):
        if source.run is not None:
            story = json.loads((source.run / STORY).read_text("utf-8"))
            said[story["recipe"]["part"]] = dict(cost(story))
    return said


def main() -> None:
    """Assemble, unless only measuring, and measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train.ship", description=__doc__)
    parser.add_argument("recipe", help="recipes/<model>.toml")
    parser.add_argument(
        "--measure", nargs="*", choices=MEASUREMENTS, help="all of it, the held-out test half included, or some"
    )
    parser.add_argument("--out", type=Path, help="the folder to write the model's into, in place of the recipe's")
    parser.add_argument(
        "--keep", action="store_true", help="leave the weights as they are: only what the recipe says in words is new"
    )
    parser.add_argument(
        "--shared", action="store_true", help="write the CLIP that it shares with other models alone, and tell them"
    )
    parser.add_argument(
        "--only", nargs="+", choices=configs.ROLES, help="write the parts of these roles, and leave the others alone"
    )
    parser.add_argument(
        "--adapters", nargs="*", metavar="NAME", help="add the recipe's adapters, trained on this very model, or some"
    )
    arguments = parser.parse_args()
    if arguments.keep and arguments.only:
        parser.error("--keep leaves all parts as they are, --only writes some: give one of them")
    more = (arguments.adapters, arguments.measure, arguments.only)
    if arguments.shared and (arguments.keep or any(given is not None for given in more)):
        parser.error("--shared writes the shared CLIP and does nothing else: measure and add adapters in a second call")
    recipe = ShipRecipe.model_validate(read_toml(arguments.recipe))
    if arguments.out is not None:
        recipe = recipe.model_copy(update={"out": arguments.out})
    if arguments.shared:
        print(*share(recipe), sep="\n")
        return
    folder = recipe.out / recipe.name
    if arguments.keep:
        retell(folder, recipe)
    else:
        assemble(recipe, arguments.only or configs.ROLES)
    if arguments.adapters is not None:
        add_adapters(folder, recipe, arguments.adapters)
    if arguments.measure is not None:
        measure(folder, recipe, arguments.measure or MEASUREMENTS)
    print(folder)


if __name__ == "__main__":
    main()
