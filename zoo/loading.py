"""From a model's name to a pipeline: find its folder or file, load each part, put them together."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, cast, get_args, runtime_checkable

import torch
from torch import nn

from zoo import config as configs
from zoo import published, registry, weights
from zoo.adapt.files import Shipped
from zoo.call.abilities import ImageEncoder, OneSize, Shaped
from zoo.config import ModelConfig, Role
from zoo.diffusion.denoiser import Target
from zoo.finite import checked_later
from zoo.interface import Decoder, Generator, Sampling, TextEncoder
from zoo.pipeline import Pipeline, device_of
from zoo.published import INDEX, Assembly
from zoo.safety import SafetyChecker, find_checker

# The pipeline's class in a published folder's model_index.json: the module whose `load_folder(folder, *, variant,
# dtype)` gives its `Assembly`. A family that learns to read its published checkpoints adds its classes here.
FAMILIES = {
    **dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInpaintPipelineLegacy",
        ),
        "zoo.stable_diffusion.pretrained",
    ),
    **dict.fromkeys(
        (
            "IFPipeline",
            "IFImg2ImgPipeline",
            "IFInpaintingPipeline",
            "IFSuperResolutionPipeline",
            "IFImg2ImgSuperResolutionPipeline",
            "IFInpaintingSuperResolutionPipeline",
        ),
        "zoo.imagen.pretrained",
    ),
    **dict.fromkeys(("UnCLIPPipeline", "UnCLIPImageVariationPipeline"), "zoo.dalle2.pretrained"),
}
FILE_READER = "zoo.stable_diffusion.pretrained"  # whose `load_file` reads files that hold a whole model

# Where models are, and which of `load`'s options say how they are read there.
OWN, FOLDER, FILE = "a model folder of the zoo", "a diffusers folder", "a single file"
HEEDED = {OWN: (), FOLDER: ("variant", "clip_skip"), FILE: ("prediction", "clip_skip")}


@dataclass(frozen=True)
class Reading:
    """How published checkpoints are fetched and read: see `load`."""

    dtype: torch.dtype | None
    variant: str | None
    revision: str | None
    prediction: Target | None
    clip_skip: int

    def check(self, models: Iterable[str | os.PathLike[str]]) -> None:
        """What needs no file to be looked at: type and prediction, and that one of the models at least has revisions.

        Raises:
            ValueError: it cannot be.
        """
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"dtype is a floating type, such as torch.float16, not {self.dtype!r}")
        if self.prediction not in (None, *get_args(Target)):
            raise ValueError(f"prediction is one of {', '.join(get_args(Target))}, not {self.prediction!r}")
        if self.revision is not None and not any(map(registry.is_fetched, models)):
            raise ValueError("nothing that is loaded here heeds revision: leave it out (it is of what the hub gives)")

    def find(self, model: str | os.PathLike[str], *, safety_checker: bool = False) -> Path:
        """Where a model is, fetched if need be.

        Raises:
            ValueError: as `zoo.registry.find`.
        """
        return registry.find(model, revision=self.revision, variant=self.variant, safety_checker=safety_checker)

    def refuse_unheeded(self, places: Iterable[Path]) -> None:
        """What was asked for is heeded by one of the places at least that parts come from.

        Raises:
            ValueError: it is not.
        """
        heeded = {option for place in places for option in HEEDED[_kind(place)]}
        asked = {"variant": self.variant, "prediction": self.prediction, "clip_skip": self.clip_skip}
        if unheeded := [option for option, value in asked.items() if value and option not in heeded]:
            takes = "; ".join(f"{kind}: {', '.join(options) or 'none'}" for kind, options in HEEDED.items())
            raise ValueError(f"nothing that is loaded here heeds {', '.join(unheeded)}: leave it out ({takes})")


@runtime_checkable
class Enlargeable(Shaped, Protocol):
    """A generator whose pictures a decoder may enlarge."""

    def enlarged(self, factor: int) -> Self: ...


class Source(Protocol):
    """A model that was found: its name, its parts, and how it is sampled."""

    @property
    def name(self) -> str: ...
    @property
    def defaults(self) -> Sampling: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def part(self, role: Role, variant: str | None) -> object: ...
    def looks(self) -> object:
        """The image encoder that belongs to its decoders, if it has one."""
        ...

    def adapters(self) -> Mapping[str, Shipped]:
        """The adapters that come with it, by name."""
        ...


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    text_encoder: str | TextEncoder | None = None,
    generator: str | Generator | None = None,
    decoder: str | Decoder | None = None,
    variant: str | None = None,
    revision: str | None = None,
    prediction: Target | None = None,
    clip_skip: int = 0,
    safety_checker: SafetyChecker | str | None = None,
) -> Pipeline:
    """A pipeline for a model's name, a model folder, a hub id `owner/name`, or a published checkpoint.

    device: "auto" takes an accelerator if there is one. dtype: float32 unless given; in lower precision a seed's
    picture is no longer promised to be the same in every batch. Each part may be replaced: by a variant that the model
    declares, by another model's part ("other-model/generator"), or by a part object, which is moved to device and type
    in place, as the others are: a pipeline that it came from sees it moved.

    Published checkpoints are folders in the diffusers layout and original single files (.safetensors, .ckpt; nothing in
    a pickle is run). Stage II of DeepFloyd IF is a decoder for stage I, decoder="if-ii-l/decoder". variant: of a
    diffusers folder, such as "fp16", the files to take where there are any. revision: of all that is fetched from the
    hub, a branch, tag or commit. prediction: "epsilon" or "v", for single files that do not tell. clip_skip: layers of
    a published CLIP text tower to leave out at its end. How it is sampled by default, and how large, is said by the
    model that the generator comes from.

    safety_checker: None, "published" for the checkpoint's own, or a callable (see `zoo.safety`).

    Files in the precision that is wanted are mapped, not read: whether they hold NaN is seen by the first call.

    Raises:
        ValueError: no such model, part, device or floating type, damaged files, parts that do not fit each other, or an
            option that nothing here heeds. What can be seen without the model's files is told before they are fetched.
    """
    how = Reading(dtype, variant, revision, prediction, clip_skip)
    chosen: dict[Role, object] = {"text_encoder": text_encoder, "generator": generator, "decoder": decoder}
    how.check([name_or_path, *(_model_of(said) for said in chosen.values() if isinstance(said, str) and "/" in said)])
    target, checked = device_of(device), isinstance(safety_checker, str) and safety_checker == "published"
    # One that is given needs no place to be found in.
    given = None if safety_checker is None or checked else find_checker(safety_checker, Path(), device=target)
    place = how.find(name_or_path, safety_checker=checked)
    labels: dict[Role, str] = {}
    parts: dict[Role, object] = {}
    looks: object = None  # comes with the decoder; beside a decoder object it is the caller's to set
    with checked_later() as unread:
        source = sampled = _source(place, how)
        sources = {place: source}
        for role, choice in chosen.items():
            parts[role] = choice
            if choice is None or isinstance(choice, str):
                owner, name = _owner(source, role, choice, how, sources)
                parts[role] = owner.part(role, name)
                looks = owner.looks() if role == "decoder" else looks
                sampled = owner if role == "generator" else sampled
                labels[role] = choice if choice and "/" in choice else f"{source.name}/{choice or role}"
    how.refuse_unheeded(sources)
    unread.keep(part for part in (*parts.values(), looks) if isinstance(part, nn.Module))
    made, size = parts["generator"], sampled.size
    if generator is not None or decoder is not None:
        made, size = _enlarged(made, parts["decoder"], size)
    pipeline = Pipeline(
        cast(TextEncoder, parts["text_encoder"]),  # Pipeline checks what they are
        cast(Generator, made),
        cast(Decoder, parts["decoder"]),
        name=source.name,
        defaults=sampled.defaults,
        size=size,
        labels=labels,
        image_encoder=cast("ImageEncoder | None", looks),
    )
    pipeline.unread, pipeline.shipped = unread, source.adapters()
    pipeline.to(target, dtype)
    pipeline.safety_checker = find_checker("published", place, device=target, variant=variant) if checked else given
    return pipeline


@dataclass(frozen=True)
class OwnFolder:
    """A model folder as this library writes it."""

    folder: Path
    config: ModelConfig

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def defaults(self) -> Sampling:
        return Sampling(**self.config.defaults.model_dump())

    @property
    def size(self) -> tuple[int, int]:
        return self.config.resolution

    def part(self, role: Role, variant: str | None) -> object:
        return weights.load_part(self.folder, self.config.part(role, variant))

    def looks(self) -> object:
        said = self.config.image_encoder
        return None if said is None else weights.load_part(self.folder, said)

    def adapters(self) -> Mapping[str, Shipped]:
        return {
            name: Shipped(
                self.folder / configs.ADAPTERS / name,
                {self.folder / file: sum for file, sum in said.files.items()},
                said.settings,
            )
            for name, said in self.config.adapters.items()
        }


@dataclass(frozen=True)
class PublishedModel:
    """A published checkpoint, loaded as a whole."""

    assembly: Assembly

    @property
    def name(self) -> str:
        return self.assembly.name

    @property
    def defaults(self) -> Sampling:
        return self.assembly.defaults

    @property
    def size(self) -> tuple[int, int]:
        return self.assembly.size

    def part(self, role: Role, variant: str | None) -> object:
        if variant is not None:
            raise ValueError(f"{self.name} has no {role} variant {variant!r}: published checkpoints declare none")
        part = getattr(self.assembly, role)
        if part is None:
            raise ValueError(f"{self.name} has no {role}: {self.assembly.lacking}")
        return part

    def looks(self) -> object:
        return None  # what published folders have of it is not read

    def adapters(self) -> Mapping[str, Shipped]:
        return {}


def _kind(place: Path) -> str:
    """Which of `HEEDED` a place is."""
    if place.is_file():
        return FILE
    return FOLDER if published.inside(place, INDEX).is_file() else OWN


def _source(place: Path, how: Reading) -> Source:
    options = {"clip_skip": how.clip_skip} if how.clip_skip else {}
    dtype, kind = how.dtype or torch.float32, _kind(place)
    if kind == FILE:
        module = importlib.import_module(FILE_READER)
        tokenizer = registry.clip_tokenizer
        found = module.load_file(place, dtype=dtype, prediction=how.prediction, tokenizer=tokenizer, **options)
        return PublishedModel(found)
    if kind == OWN:
        return OwnFolder(place, configs.read(place))
    family = published.options(place, INDEX).get("_class_name")
    if family not in FAMILIES:
        raise ValueError(f"{place / INDEX} is of a {family!r}: published pipelines that load are {', '.join(FAMILIES)}")
    module = importlib.import_module(FAMILIES[str(family)])
    return PublishedModel(module.load_folder(place, variant=how.variant, dtype=dtype, **options))


def _owner(
    source: Source, role: Role, choice: str | None, how: Reading, sources: dict[Path, Source]
) -> tuple[Source, str | None]:
    """The model that a part comes from, and the variant of the part. `sources` are those that were read already."""
    if choice is None or "/" not in choice:
        return source, choice
    place, name = how.find(_model_of(choice)), choice.rpartition("/")[2]
    if place not in sources:
        sources[place] = _source(place, how)
    return sources[place], None if name == role else name


def _model_of(choice: str) -> str:
    """The model of a part that is named as `other-model/part`."""
    return choice.rpartition("/")[0]


def _enlarged(generator: object, decoder: object, size: tuple[int, int]) -> tuple[object, tuple[int, int]]:
    """A generator with a decoder that is not its own: how much that one enlarges, and the size of picture."""
    if isinstance(decoder, OneSize):
        return generator, decoder.size
    factor = getattr(decoder, "factor", None)
    if not isinstance(generator, Enlargeable) or not isinstance(factor, int):
        return generator, size
    larger = generator.enlarged(factor)
    _, height, width = larger.shape(None)
    return larger, (height * factor, width * factor)
