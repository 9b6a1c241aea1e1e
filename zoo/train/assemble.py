"""Model folders from trained parts: written, what they cost told, and models that share a folder's files kept true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue

from zoo import config as configs
from zoo import tensors, weights
from zoo.adapt.files import LORA
from zoo.atomic import replacing
from zoo.clip import Clip
from zoo.config import AdapterConfig, ModelConfig, PartConfig, Role
from zoo.imagen.parts import CascadeConfig
from zoo.train.loop import STORY, cost
from zoo.train.model_recipe import WORDS, ShipRecipe, Source

TRAINED: Mapping[Role, tuple[str, ...]] = {  # trainings whose results are in a part of a base
    "text_encoder": ("tokenizer", "clip", "clip-vision", "t5"),
    "generator": (
        *("unet", "map", "lcm", "lcm-lora", "phases-lora", "imagen-base", "gan"),
        *("diffusion-prior", "autoregressive-prior", "one-step-prior"),
    ),
    "decoder": ("vae", "unclip-decoder", "super-resolution"),
}
MEASURED_OF: Mapping[str, Role] = {"gates": "text_encoder", "psnr": "decoder", "enlarging": "decoder"}  # one part alone


def assemble(recipe: ShipRecipe, only: Collection[Role] = configs.ROLES) -> Path:
    """Write the model folder, tensors in `bits`, and the folders it shares; returns the model's.

    only: the roles whose parts are written; the others stay as they are, with what was measured of them alone.

    Raises:
        ValueError: a run or a model that parts come from is not there; nothing is written then.
    """
    folder = recipe.out / recipe.name
    kept = [role for role in configs.ROLES if role not in only]
    before = configs.read(folder) if kept else None
    _check_sources(recipe, kept, before)
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
    adapters = {} if before is None else _outlasting(folder, before.adapters, kept, parts["decoder"])
    looks = parts["text_encoder"] if recipe.image_encoder else None
    config = ModelConfig.model_validate(
        {
            **{field: getattr(recipe, field) for field in ("name", "family", "resolution", "defaults", *WORDS)},
            **parts,
            "variants": {role: varied for role, varied in variants.items() if varied},
            "image_encoder": looks and looks.model_copy(update={"kind": "clip", "arguments": {}}),
            "adapters": adapters,
            "training": training(recipe, before, kept),
            "results": _of(kept, before.results) if before is not None else {},
        }
    )
    weights.write_config(folder, config)
    for place in (folder / configs.ADAPTERS).glob("*"):
        if place.name not in adapters:
            shutil.rmtree(place, ignore_errors=True)
    tell_sharers(folder.parent, folder.name)
    return folder


def _outlasting(
    folder: Path, adapters: Mapping[str, AdapterConfig], kept: Collection[Role], decoder: PartConfig
) -> dict[str, AdapterConfig]:
    """The adapters that act on parts which stay.

    A VAE only shows what they help to make, and may be another one; so may a cascade, of which some are made, too.
    """
    if not {"text_encoder", "generator"} <= {*kept}:
        return {}
    if decoder.kind == "vae":
        return dict(adapters)
    if decoder.kind == "cascade":
        stages = {stage.name for stage in CascadeConfig.model_validate(decoder.arguments).stages}
        return {name: one for name, one in adapters.items() if not stages & _adapted(folder, one)}
    return {}


def _adapted(folder: Path, adapter: AdapterConfig) -> set[str]:
    """The names of the networks that an adapter's files act on."""
    said = [tensors.metadata(folder / file) for file in adapter.files]
    return {name for one in said for name in (*one.get("parts", "").split(","), one.get("part", ""))}


def _check_sources(recipe: ShipRecipe, kept: Collection[Role], before: ModelConfig | None) -> None:
    """All that is to be written is at hand: half of a new model over an old one would be neither."""
    for source in recipe.sources(kept):
        if source.run is not None and not (source.run / STORY).is_file():
            raise ValueError(f"{source.run} is no finished run (it has no {STORY}): train it first, or unpack it")
        for model in (source.base, source.upsamplers):
            if model is not None:
                configs.read(recipe.out / model)
    if recipe.image_encoder:
        reads = recipe.text_encoder
        whose = before if "text_encoder" in kept else configs.read(recipe.out / reads.base) if reads.base else None
        if (reads.shared if whose is None else whose.text_encoder.shared) is None:
            raise ValueError("image_encoder = true needs a text encoder that is part of a whole, shared CLIP")


def _of(roles: Collection[Role], results: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: found for name, found in results.items() if MEASURED_OF.get(name) in roles}


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
    tell_sharers(shelf, name)
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


def tell_sharers(shelf: Path, shared: str) -> None:
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
