"""The recipe of an adapter, or of a model trained on a few pictures: what `zoo.train.personalise` is asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from zoo.train.methods import FullTable, LoRATable, Method, PrefixTable, WordTable
from zoo.train.recipe import Optimiser, Recipe, Table
from zoo.train.views import BesideTable


class PriorTable(Table):
    """Prior preservation; on where it has prompts and a weight."""

    prompts: tuple[str, ...] = ()  # of the class without the identifier, and what else is not to change
    file: Path | None = None  # more of them, one a line
    learn: Literal["noise", "predictions"] = "noise"  # the noise in them, or what the model said of it before
    guidance: float = Field(1.0, ge=1)  # of these predictions; 1: the two branches of guidance, each for itself
    pictures: int = Field(100, ge=1)  # in all
    batch: int | None = Field(None, ge=1)  # of them in each step; None: as many as of the user's pictures
    weight: float = Field(1.0, ge=0)
    last: float | None = Field(None, gt=0)  # the weight at the end, which it grows to by equal factors; None: the same
    steps: int | None = Field(None, ge=1)  # of sampling them; None is the model's own
    dropout: float | None = Field(None, ge=0, le=1)  # as the recipe's, which it is if None
    floor: float | None = Field(None, ge=0)  # likewise

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.guidance != 1 and self.learn != "predictions":
            raise ValueError('guidance is of predictions: set learn = "predictions", or leave it out')
        if self.guidance != 1 and self.dropout:
            raise ValueError("guided predictions are of both branches, and drop no captions: leave dropout out")
        return self

    @property
    def on(self) -> bool:
        return bool(self.prompts or self.file) and self.weight > 0

    def weight_at(self, progress: float) -> float:
        """The weight at `progress` in [0, 1]: what is to be learned comes first, then what is to be kept."""
        return self.weight if self.last is None else self.weight * (self.last / self.weight) ** progress

    @cached_property
    def every(self) -> tuple[str, ...]:
        """All prompts, those of the file with them.

        Raises:
            ValueError: there is no such file.
        """
        if self.file is None:
            return self.prompts
        if not self.file.is_file():
            raise ValueError(f"there is no file {self.file} of prompts for prior.file")
        lines = self.file.read_text("utf-8").splitlines()
        return (*self.prompts, *(line.strip() for line in lines if line.strip()))

    @property
    def each(self) -> list[str]:
        """The prompt of each class picture: all of them in turn.

        Raises:
            ValueError: there are more prompts than pictures.
        """
        if len(self.every) > self.pictures:
            raise ValueError(f"{self.pictures} class pictures are too few for {len(self.every)} prompts of them")
        return [self.every[i % len(self.every)] for i in range(self.pictures)]


ADAPTING = Optimiser(lr=1e-4, warmup=20, weight_decay=0.0)  # far below what trains from nothing: 5e-6 is DreamBooth's


class AdapterRecipe(Recipe):
    """The recipe of an adapter, or of a whole model trained on a few pictures."""

    optimiser: Optimiser = ADAPTING
    model: str  # a model's name or folder
    method: Method = "lora"
    pictures: Path  # a folder: pictures and their captions (`zoo.data.folder`), or pictures told by `prompt`
    prompt: str | None = None  # "a P7 car": of every picture, in place of captions
    flip: bool = False  # also learn mirrored pictures
    views: int = Field(1, ge=1)  # of each: as it is, and made smaller and moved, its border going on
    beside: BesideTable = BesideTable()
    lora: LoRATable = LoRATable()
    prefix: PrefixTable = PrefixTable()
    word: WordTable | None = None
    full: FullTable = FullTable()
    prior: PriorTable = PriorTable()
    dropout: float = Field(0.0, ge=0, le=1)  # share of captions replaced by the empty one
    gamma: float | None = Field(5.0, gt=0)  # of the min-SNR weighting
    floor: float = Field(0.0, ge=0)  # least weight on x0, below which min-SNR does not fall
    prompts: tuple[str, ...] = ()  # of the sample grid; the first captions if there are none
    shown: int = Field(4, ge=1)  # pictures of each
    subject: Literal["p7"] | None = None  # looked for in the sample grid, by `zoo.evaluate.subject`

    @model_validator(mode="after")
    def _rates(self) -> Self:
        own = [table.lr for table in (self.lora, self.prefix, self.word) if table is not None]
        if self.optimiser.kind == "muon" and any(rate is not None for rate in own):
            raise ValueError("lr of lora, prefix or word needs optimiser.kind = 'adamw': Muon has one rate for all")
        if self.compile:
            raise ValueError("compile = true does not go with adapters, which act beside the network's own modules")
        return self
