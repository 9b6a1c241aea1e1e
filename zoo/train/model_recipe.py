"""The recipe of a shipped model: which trained parts it is made of, and what its config and card say of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import JsonValue, model_validator

from zoo import config as configs
from zoo.config import Defaults, Role, SharedName
from zoo.train.measure import Measuring
from zoo.train.recipe import Table

WORDS = ("summary", "languages", "papers", "recipes", "examples", "notes")  # what a config says of a model in words


class Source(Table):
    """Where a part comes from: a training `run` that exported it, or the shipped model `base`, whose files it shares.

    `shared`: the run is a whole CLIP, whose files go to a folder of this name beside the model's, to serve many models.
    """

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


class Adapter(Table):
    """An adapter that comes with the model: the training `run` that left it, and what the card says of it."""

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
