"""Model folders: `config.json`, safetensors with their SHA-256, a tokenizer. Every file that a config lists is checked.

    config.json                        what the parts are and how the model is sampled (zoo.config.ModelConfig)
    text_encoder/, tokenizer/          in the transformers layout
    unet/, vae/ ...                    one model.safetensors each
    README.md                          the model card, rendered from the config

Which class a part is, the config says by a name of the table below: nothing else can be imported.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, cast, runtime_checkable

import torch
from pydantic import JsonValue, ValidationError

from zoo import model_card, published, tensors
from zoo.adapt.adapters import fold
from zoo.atomic import write_text
from zoo.config import FILE, Defaults, ModelConfig, PartConfig
from zoo.finite import later
from zoo.interface import Decoder, Generator, TextEncoder

if TYPE_CHECKING:
    from zoo.cascade import Stage

Part: TypeAlias = TextEncoder | Generator | Decoder

CLASSES = {
    "bert-text": "zoo.text.bert:BertTextEncoder",
    "clip": "zoo.clip:Clip",
    "clip-text": "zoo.text.clip:ClipTextEncoder",
    "t5-text": "zoo.text.t5:T5TextEncoder",
    "latent-diffusion": "zoo.stable_diffusion.parts:LatentGenerator",
    "diffusion-prior": "zoo.dalle2.prior:DiffusionPrior",
    "autoregressive-prior": "zoo.dalle2.autoregressive_prior:AutoregressivePrior",
    "one-step-prior": "zoo.dalle2.one_step_prior:OneStepPrior",
    "unclip-decoder": "zoo.dalle2.decoder:UnclipDecoder",
    "pixel-diffusion": "zoo.imagen.parts:PixelGenerator",
    "gan": "zoo.gan.parts:GanGenerator",
    "cascade": "zoo.imagen.parts:CascadeDecoder",
    "karlo": "zoo.dalle2.karlo:KarloDecoder",
    "vae": "zoo.stable_diffusion.parts:VaeDecoder",
}

LOOKS = "image_encoder"  # the folder of a model's own image encoder, a whole CLIP


@runtime_checkable
class Storable(Protocol):
    """A part that can be written to a model folder and read from it."""

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> Self: ...

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]: ...


@runtime_checkable
class Staged(Protocol):
    """A decoder that is a chain of stages."""

    @property
    def stages(self) -> Sequence[Stage]: ...


@runtime_checkable
class Enlarged(Protocol):
    """A decoder after which stages may come."""

    def enlarged_by(self, stages: Sequence[Stage]) -> object: ...


def load_part(folder: Path, config: PartConfig) -> Part:
    """One part of a model folder, in float32 on the CPU, its files checked against the config.

    Within `zoo.finite.checked_later`, as in `zoo.load`, weights that the config does not list are refused; elsewhere
    what a training run left may be read, of which no config is written yet.

    Raises:
        ValueError: a file is missing, changed, damaged or not listed, the class is unknown, or the weights do not fit
            it.
    """
    own = folder
    if config.shared is not None:
        folder = folder.resolve().parent / config.shared
    for name, expected in config.files.items():
        tensors.check_sum(folder / name, expected)
    part_class, unread = _class(config.kind), later()
    before = len(unread.sources) if unread is not None else 0
    try:
        part: Part = part_class.load(folder / config.folder, config.arguments)  # type: ignore[assignment]
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"the arguments of {config.kind!r} in {folder / FILE} are not valid: {faults}") from error
    if unread is not None:
        _check_listed(folder, config, unread.sources[before:])
    if config.lora is not None:
        fold(part, folder / config.lora)
    if config.upsamplers is None:
        return part
    cascade = load_part(own, config.upsamplers)
    if not isinstance(part, Enlarged) or not isinstance(cascade, Staged):
        raise ValueError(f"in {own / FILE}, stages of a {config.upsamplers.kind!r} cannot come after a {config.kind!r}")
    return cast(Part, part.enlarged_by(cascade.stages))


def _check_listed(folder: Path, config: PartConfig, sources: Sequence[str]) -> None:
    """What a part's weights were taken from are files that its config lists, an index of shards with all of them."""
    paths = [Path(source) for source in sources]
    shards = [shard for path in paths if path.suffix == ".json" for shard in published.shards(path.parent, path.name)]
    listed = {folder / name for name in config.files}
    if strange := [str(path) for path in (*paths, *shards) if path not in listed]:
        named = ", ".join(strange)
        raise ValueError(f"{named} cannot be checked: the files of this {config.kind!r} in the config leave it out")


def save_part(folder: Path, part: object, *, subfolder: str = ".", dtype: torch.dtype | None = None) -> PartConfig:
    """Write a part's files below `folder / subfolder`; returns the config that `load_part` wants.

    Raises:
        ValueError: the part is of a class that the table does not know.
    """
    kinds = {target.rpartition(":")[2]: kind for kind, target in CLASSES.items()}
    kind = kinds.get(type(part).__name__)
    if kind is None or not isinstance(part, Storable):
        raise ValueError(f"{type(part).__name__} cannot be stored: zoo.weights.CLASSES knows {', '.join(kinds)}")
    root = folder / subfolder
    root.mkdir(parents=True, exist_ok=True)
    arguments, files = part.save(root, dtype)
    checked = {(root / file).relative_to(folder).as_posix(): tensors.sha256(root / file) for file in files}
    return PartConfig.model_validate({"kind": kind, "arguments": arguments, "files": checked, "folder": subfolder})


def share_part(
    folder: Path, shared: Path, kind: str, arguments: Mapping[str, object], files: Sequence[str]
) -> PartConfig:
    """The config of a part whose files lie in `shared`, a folder beside the model's own."""
    if shared.resolve().parent != folder.resolve().parent:
        raise ValueError(f"{shared} must lie beside {folder} to be shared with it")
    checked = {name: tensors.sha256(shared / name) for name in files}
    said = {"kind": kind, "arguments": arguments, "files": checked, "shared": shared.name}
    return PartConfig.model_validate(said)


def save_model(
    folder: Path,
    text_encoder: TextEncoder,
    generator: Generator,
    decoder: Decoder,
    *,
    image_encoder: object = None,
    family: str,
    resolution: tuple[int, int],
    name: str | None = None,
    defaults: Defaults | Mapping[str, JsonValue] | None = None,
    dtype: torch.dtype | None = None,
    summary: str = "",
    licence: str = "Apache-2.0",
    languages: Sequence[str] = ("en",),
    papers: Sequence[str] = (),
    recipes: Sequence[str] = (),
    examples: Sequence[str] = (),
    results: Mapping[str, JsonValue] | None = None,
) -> ModelConfig:
    """Write a model folder: the parts' weights as `dtype`, then its card and, last of all, its config.

    image_encoder: the `zoo.clip.Clip` that the decoder was trained with, where it decodes what a CLIP sees.

    A folder that is half written cannot be loaded, because its sums do not match.

    Raises:
        ValueError: a part cannot be stored, or a setting is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig.model_validate(
        {
            "name": name or folder.name,
            "family": family,
            "summary": summary,
            "resolution": resolution,
            "text_encoder": save_part(folder, text_encoder, dtype=dtype),
            "generator": save_part(folder, generator, dtype=dtype),
            "decoder": save_part(folder, decoder, dtype=dtype),
            "image_encoder": image_encoder and save_part(folder, image_encoder, subfolder=LOOKS, dtype=dtype),
            "defaults": defaults or Defaults(),
            "licence": licence,
            "languages": languages,
            "papers": papers,
            "recipes": recipes,
            "examples": examples,
            "results": results or {},
        }
    )
    write_config(folder, config)
    return config


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write `config.json` and the model card rendered from it."""
    said = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)
    for name, text in (("README.md", model_card.render(config)), (FILE, said + "\n")):
        write_text(folder / name, text)


def _class(kind: str) -> type[Storable]:
    if kind not in CLASSES:
        raise ValueError(f"unknown kind of part {kind!r} in {FILE}; known: {', '.join(CLASSES)}")
    module, _, name = CLASSES[kind].partition(":")
    found: type[Storable] = getattr(importlib.import_module(module), name)
    return found
