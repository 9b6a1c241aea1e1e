"""DF-GAN as a part of a pipeline: a generator of whole pictures in one pass (arXiv 2008.05865)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.diffusion.noise import INITIAL
from zoo.diffusion.ports import cast
from zoo.gan.generator import FusionGenerator, FusionGeneratorConfig
from zoo.interface import (
    PIXELS,
    Adaptable,
    Conditioning,
    Init,
    NoiseSource,
    Observer,
    Representation,
    RepresentationSpec,
    Sampling,
    Step,
    TextFeatures,
    TextSpec,
)

FILE = Path("gan") / "model.safetensors"
STAGE = "gan"


class GanConfig(BaseModel):
    """Everything about a generator but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: FusionGeneratorConfig
    text: TextSpec
    truncation: float = Field(1.0, gt=0, le=1)  # what noise is multiplied by: less is less varied (arXiv 1809.11096)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.text.width != self.network.context_width:
            raise ValueError(f"the text is {self.text.width} wide, but the network reads {self.network.context_width}")
        return self


class GanGenerator(nn.Module):
    """Text features to pictures [batch, 3, size, size] in [-1, 1], in one pass.

    Nothing is sampled step by step, so steps, sampler, guidance and the rest of `Sampling` change nothing; what a
    caller would be sorry to see ignored is an error: a picture to start from, a layout, another size, a negative text.
    """

    heeds_negative = False  # nothing leads away from anything

    def __init__(self, network: FusionGenerator, config: GanConfig) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.config = config

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> GanGenerator:
        """The generator of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or the file is damaged.
        """
        config = GanConfig.model_validate(arguments)
        network = tensors.load(lambda: FusionGenerator(config.network), folder / FILE)
        return cls(network, config)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / FILE, self.network.state_dict(), dtype)
        return self.config.model_dump(mode="json"), [FILE]

    def truncated(self, truncation: float) -> GanGenerator:
        """The same generator with noise multiplied by `truncation` in (0, 1]: less variety, for `load(generator=...)`.

        Raises:
            ValueError: it is not in (0, 1].
        """
        config = GanConfig.model_validate(self.config.model_dump() | {"truncation": truncation})
        return GanGenerator(self.network, config)

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The network, known by its own names."""
        return {"generator": Adaptable(self.network, {})}

    @property
    def needs(self) -> TextSpec:
        return replace(self.config.text, pooled=None)

    @property
    def produces(self) -> RepresentationSpec:
        size = self.config.network.size
        return RepresentationSpec("pixels", (3, size, size), PIXELS)

    @property
    def own_steps(self) -> int:
        """One pass, whatever a call says."""
        return 1

    def shape(self, size: tuple[int, int] | None) -> tuple[int]:
        """The shape, without the batch, of the noise that a picture is made of.

        Raises:
            ValueError: a size that this generator was not built for.
        """
        side = self.config.network.size
        if size not in (None, (side, side)):
            raise ValueError(f"impossible size {size[0]} x {size[1]}: this generator makes {side} x {side} only")
        return (self.config.network.noise_width,)

    @torch.no_grad()
    def generate(
        self,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sampling,
        *,
        size: tuple[int, int] | None = None,
        init: Init | None = None,
        layout: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Representation:
        """Pictures for text features [batch, ...]; `null` and `sampling` are not looked at. `observe` is called once.

        Raises:
            ValueError: another size, a picture to start from, a layout, or text of another width.
        """
        if init is not None:
            raise ValueError("a GAN makes pictures of noise and text alone, in one pass: leave out image=")
        if layout is not None:
            raise ValueError("this generator was trained without semantic maps: leave out layout=")
        weight = self.network.head.weight
        drawn = noise.draw(STAGE, INITIAL, (len(text.tokens), *self.shape(size)))
        drawn = (drawn * self.config.truncation).to(weight.device, weight.dtype)
        said = cast(Conditioning(tokens=text.tokens, mask=text.mask), weight.device, weight.dtype)
        made = self.network(drawn, said).float().clamp(-1, 1)
        if observe is not None:
            observe(STAGE, Step(0, 0.0, made, made))
        return Representation(made, "pixels", PIXELS)
