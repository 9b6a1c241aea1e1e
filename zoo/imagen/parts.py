"""Imagen as parts of a pipeline: a generator of small pictures, a cascade that enlarges them (arXiv 2205.11487)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import mul
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, settings, shrunk
from zoo.diffusion.convention import Convention, grid_of
from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.inputs import check_size
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.imagen.keys import IF
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
    TextFeatures,
    TextSpec,
)
from zoo.stages import StagesConfig, load_stages, save_stages

BASE = Path("base") / "model.safetensors"


class BaseConfig(BaseModel):
    """Everything about a generator of pixels but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unet: AdmUNetConfig
    schedule: Schedule = Schedule("cosine")
    text: TextSpec
    factor: int = 1  # how much larger, per side, the decoder's pictures are
    resolution: tuple[int, int]  # height and width of its own pictures, as trained
    prediction: Target = "epsilon"
    variance: Variance = "fixed_small"
    convention: Convention | None = None  # of a published checkpoint's own scheduler, the spacing "published"

    @model_validator(mode="after")
    def _fits(self) -> BaseConfig:
        if self.text.width != self.unet.context_width:
            raise ValueError(f"the text is {self.text.width} wide, but the U-Net takes {self.unet.context_width}")
        return self


class PixelGenerator(nn.Module):
    """Text features to small pictures [batch, 3, height / factor, width / factor] in [-1, 1]."""

    def __init__(self, denoiser: Denoiser, config: BaseConfig) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.config = config

    @classmethod
    def of(cls, network: AdmUNet, config: BaseConfig) -> PixelGenerator:
        """The generator of a network that was trained as `config` says."""
        denoiser = Denoiser(network, config.schedule, config.prediction, config.variance)
        denoiser.times = "exact" if config.convention is None else config.convention.times
        return cls(denoiser, config)

    def enlarged(self, factor: int) -> PixelGenerator:
        """The same generator for a decoder whose pictures are `factor` times as large, per side."""
        if factor == self.config.factor:
            return self
        return PixelGenerator(self.denoiser, self.config.model_copy(update={"factor": factor}))

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> PixelGenerator:
        """The generator of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or the file is damaged.
        """
        config = BaseConfig.model_validate(arguments)
        network = tensors.load(lambda: AdmUNet(config.unet), folder / BASE)
        return cls.of(network, config)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / BASE, self.denoiser.network.state_dict(), dtype)
        return self.config.model_dump(mode="json"), [BASE]

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The U-Net, and what adapter files of DeepFloyd IF call its modules."""
        network = self.denoiser.network
        return {"unet": Adaptable(network, IF.published(network))}

    @property
    def needs(self) -> TextSpec:
        return self.config.text

    @property
    def produces(self) -> RepresentationSpec:
        return RepresentationSpec("pixels", (3, None, None), PIXELS)

    def shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """The shape of the small picture for a final one of (height, width) pixels, by default as trained.

        Raises:
            ValueError: an impossible size; the message names the nearest possible one.
        """
        factor, multiple = self.config.factor, self.config.factor * self.config.unet.downsampling
        height, width = size or (self.config.resolution[0] * factor, self.config.resolution[1] * factor)
        check_size(height, width, multiple)
        return 3, height // factor, width // factor

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
        """Small pictures for text features [batch, ...], guided away from `null`.

        Raises:
            ValueError: an impossible size, a layout, or sampling settings that do not exist.
        """
        if layout is not None:
            raise ValueError("this generator was trained without semantic maps: leave out layout=")
        shape = (text.tokens.shape[0], *self.shape(size))
        asked, away = (Conditioning(tokens=said.tokens, mask=said.mask) for said in (text, null))
        data = sample(
            self.denoiser,
            asked,
            away,
            noise,
            sampling,
            shape,
            stage="base",
            init=init,
            observe=observe,
            grid=grid_of(self.config.convention, self.config.schedule, sampling),
        )
        return Representation(data.clamp(-1, 1), "pixels", PIXELS)


class CascadeConfig(StagesConfig):
    """The stages in their order, each with its network: Efficient U-Nets, or the ADM U-Net of DeepFloyd IF.

    Without any, small pictures are shown as they are.
    """

    @model_validator(mode="after")
    def _one_text(self) -> CascadeConfig:
        texts = {stage.text for stage in self.stages if stage.text is not None}
        if len(texts) > 1:
            raise ValueError(
                f"text is encoded once for all, but stages read different kinds: {sorted(map(str, texts))}"
            )
        return self


class CascadeDecoder(nn.Module):
    """Small pictures to large ones, stage by stage; the way back is to shrink them."""

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        super().__init__()
        self.chain = nn.ModuleList(stages)

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> CascadeDecoder:
        """The cascade of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or a file is damaged.
        """
        return cls(load_stages(folder, CascadeConfig.model_validate(arguments)))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        return CascadeConfig.of(self.stages).model_dump(mode="json"), save_stages(folder, self.stages, dtype)

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The network of each stage by the stage's name, known by its own names."""
        return {stage.config.name: Adaptable(stage.denoiser.network, {}) for stage in self.stages}

    @property
    def stages(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.chain]

    @property
    def defaults(self) -> dict[str, Sampling]:
        """How each stage is sampled unless the call says otherwise."""
        return {stage.config.name: stage.config.sampling for stage in self.stages}

    def check(self, sampling: Sequence[Sampling]) -> None:
        """Raises ValueError where a stage cannot be sampled so; one setting a stage."""
        for stage, how in zip(self.stages, sampling, strict=True):
            stage.check(how)

    @property
    def factor(self) -> int:
        """How much larger the pictures become, per side."""
        return reduce(mul, (stage.config.factor for stage in self.stages), 1)

    @property
    def multiple(self) -> int:
        """What height and width of images must be multiples of, so that every stage can make its picture."""
        return CascadeConfig.of(self.stages).multiple

    @property
    def needs(self) -> RepresentationSpec:
        return RepresentationSpec("pixels", (3, None, None), PIXELS)

    @property
    def needs_text(self) -> TextSpec | None:
        return next((stage.config.text for stage in self.stages if stage.config.text is not None), None)

    def decode(
        self,
        representation: Representation,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sequence[Sampling] = (),
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """Images [batch, 3, height, width] in [0, 1], float32; `sampling` is that of each stage, or empty.

        Raises:
            ValueError: settings for some of the stages only, or such as do not exist.
        """
        pictures = representation.data
        asked = settings(self.defaults, sampling)
        for stage, how in zip(self.stages, asked, strict=True):
            pictures = stage(pictures, text, null, noise, how, observe=observe).clamp(-1, 1)
        return (pictures.float().clamp(-1, 1) + 1) / 2

    def encode(self, images: Tensor) -> Representation:
        """Images [batch, 3, height, width] in [0, 1] as the small pictures that the generator makes.

        Raises:
            ValueError: height or width do not divide by `factor`.
        """
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} do not shrink by {self.factor}: give height and "
                f"width that are multiples of {self.factor}"
            )
        return Representation(shrunk(images * 2 - 1, self.factor), "pixels", PIXELS)
