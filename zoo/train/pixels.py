"""Training generators of pixels: Imagen's base on small pictures, and the stages that enlarge them (arXiv 2205.11487).

The base sees each scene made small. A stage sees a crop of it in both sizes, the smaller one enlarged and noised by a
random level that it is told: convolutions learn on crops what they do on whole pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, StageConfig, condition, shrunk
from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.sample import sample
from zoo.efficient_unet import EfficientUNet, EfficientUNetConfig
from zoo.evaluate.enlarging import measure
from zoo.imagen.parts import BASE, BaseConfig, CascadeDecoder, PixelGenerator
from zoo.interface import Conditioning, Sampling
from zoo.train.cache import Array, picked, scenes
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Image, Metrics, Task, grid, to_float, write_config
from zoo.train.text_to_image import (
    UNREAD,
    Denoising,
    PromptRecipe,
    PromptTask,
    TextRecipe,
    TextTask,
    all_of,
    check_sampling,
)

FACTOR = Field(2, ge=1)  # how much smaller than the drawn scenes the small pictures are, per side


class BaseRecipe(Denoising, PromptRecipe):
    """The recipe of a generator of small pictures."""

    text_encoder: Path = Path("runs/t5/final")
    model: AdmUNetConfig = AdmUNetConfig()
    factor: int = FACTOR
    threshold: float | None = 1.0  # of the sample grid: pixels lie in [-1, 1]


class StageRecipe(Denoising, TextRecipe):
    """The recipe of a stage that makes them larger again."""

    text_encoder: Path = Path("runs/t5/final")
    model: EfficientUNetConfig = EfficientUNetConfig()
    factor: int = FACTOR
    name: str = "super-resolution"
    crop: int = Field(32, ge=8)  # of the large pictures, in training
    reads: bool = True  # text; otherwise it sees pictures alone
    noisiest: float = Field(0.5, ge=0, le=1)  # levels of augmentation are drawn evenly from 0 to it
    sampling: Sampling = Sampling(steps=8, threshold=1.0, augmentation=0.1)  # of the sample grid, and by default
    consistent: bool = True  # does the enlarged picture keep the smaller one's means? See `zoo.cascade.consistent`
    enlarged: int = Field(64, ge=8)  # fresh scenes that are judged beside the sample grid

    @property
    def network(self) -> EfficientUNetConfig:
        """The shape of the network: `model`, without text if it shall not read."""
        unread = {"context_width": None, "text_attention": (False,) * len(self.model.channels)}
        return self.model if self.reads else EfficientUNetConfig.model_validate(self.model.model_dump() | unread)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop % self.factor or self.data.size % self.factor or self.crop > self.data.size:
            raise ValueError(
                f"crop = {self.crop} must be a multiple of factor = {self.factor}, and at most data.size, which is "
                f"{self.data.size}"
            )
        return self


class BaseTask(PromptTask[BaseRecipe]):
    """Noise is to be told from small pictures."""

    recipe_type = BaseRecipe

    def build(self) -> nn.Module:
        return Denoiser(AdmUNet(self.recipe.model), self.recipe.schedule, self.recipe.prediction)

    def start(self, model: nn.Module, folder: Path) -> None:
        tensors.assign(model.get_submodule("network"), tensors.read(folder / BASE), source=folder / BASE)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        return {"images": torch.from_numpy(picked(self.scenes.images, rows))} | super().rows(rows, rng)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        x0 = shrunk(to_float(batch["images"]), self.recipe.factor).contiguous(memory_format=self.layout)
        return self.recipe.loss(cast(Denoiser, model), x0, self.read(batch), self.null), {}

    @property
    def sampling(self) -> Sampling:
        return Sampling(guidance=self.recipe.guidance, threshold=self.recipe.threshold)

    def _draw(self, model: nn.Module, text: Conditioning, seeds: list[int]) -> Tensor:
        side, count = self.recipe.data.size // self.recipe.factor, len(seeds)
        null = all_of(self.null, count)
        small = sample(cast(Denoiser, model), text, null, ImageNoise(seeds), self.sampling, (count, 3, side, side))
        return F.interpolate(small, scale_factor=self.recipe.factor, mode="bicubic").clamp(-1, 1)

    def export(self, model: nn.Module, folder: Path) -> None:
        """base/model.safetensors in half precision; config.json has the arguments for `PixelGenerator.load`."""
        denoiser, side = cast(Denoiser, model), self.recipe.data.size // self.recipe.factor
        config = BaseConfig(
            unet=self.recipe.model,
            schedule=denoiser.schedule,
            text=self.text.produces,
            factor=self.recipe.factor,
            resolution=(side, side),
            prediction=denoiser.prediction,
        )
        arguments, _ = PixelGenerator.of(cast(AdmUNet, denoiser.network), config).save(folder, torch.float16)
        write_config(folder, arguments)

    def _check(self) -> None:
        _check_text(self.recipe.model.context_width, self.text.produces.width)
        check_sampling(self.sampling, self.recipe.schedule)
        side = self.recipe.data.size // self.recipe.factor
        if side * self.recipe.factor != self.recipe.data.size or side % self.recipe.model.downsampling:
            raise RecipeError(
                f"data.size = {self.recipe.data.size} made {self.recipe.factor} times smaller is no multiple of "
                f"{self.recipe.model.downsampling}, by which the U-Net shrinks a picture"
            )


class StageTask(TextTask[StageRecipe]):
    """Noise is to be told from large pictures, by what the small ones show and, if it reads, the text says."""

    recipe_type = StageRecipe

    def __init__(self, recipe: StageRecipe, device: torch.device) -> None:
        if recipe.reads:
            super().__init__(recipe, device)
        else:  # there is no text to encode
            Task.__init__(self, recipe, device)
            self._check()
            self.scenes = scenes(recipe.data)
        self.stage = StageConfig(
            name=recipe.name,
            factor=recipe.factor,
            schedule=recipe.schedule,
            prediction=recipe.prediction,
            text=self.text.produces if recipe.reads else None,
            sampling=recipe.sampling,
            consistent=recipe.consistent,
        )

    def build(self) -> nn.Module:
        return Denoiser(EfficientUNet(self.recipe.network), self.recipe.schedule, self.recipe.prediction)

    def start(self, model: nn.Module, folder: Path) -> None:
        path = folder / self.recipe.name / "model.safetensors"
        tensors.assign(model.get_submodule("network"), tensors.read(path), source=path)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        """Crops whose borders are borders of pixels in the small pictures too."""
        step, crop = self.recipe.factor, self.recipe.crop
        places = rng.integers((self.recipe.data.size - crop) // step + 1, size=(len(rows), 2)) * step
        images = picked(self.scenes.images, rows)
        cropped = [image[y : y + crop, x : x + crop] for image, (y, x) in zip(images, places, strict=True)]
        text = super().rows(rows, rng) if self.recipe.reads else {}
        return {"images": torch.from_numpy(np.stack(cropped))} | text

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        x0 = to_float(batch["images"], self.layout)
        # From the CPU's generator, as times and noise are: the same wherever the run goes on.
        level = draws.rand((len(x0),)) * self.recipe.noisiest
        said = condition(shrunk(x0, self.recipe.factor), level, draws.randn(x0.shape).to(x0), self.stage)
        text = self.read(batch) if self.recipe.reads else Conditioning()
        null = self.null if self.recipe.reads else Conditioning()
        given = replace(said, tokens=text.tokens, mask=text.mask)
        return self.recipe.loss(cast(Denoiser, model), x0, given, null), {}

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Fresh scenes made small, as they are when enlarged; and what the checker says of them."""
        stage = Stage(cast(Denoiser, model).network, self.stage)
        shown: list[Tensor] = []

        def enlarge(small: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            text, null = UNREAD, UNREAD
            if self.recipe.reads:
                text, null = self.text.encode(prompts), self.text.null(len(prompts))
            large = stage(small * 2 - 1, text, null, ImageNoise(seeds)).clamp(-1, 1)
            if not shown:
                blocks = F.interpolate(small * 2 - 1, scale_factor=self.recipe.factor).to(large)
                shown.append(torch.stack([blocks[:16], large[:16]], 1).flatten(0, 1))
            return large / 2 + 0.5

        found = measure(enlarge, self.recipe.factor, n=self.recipe.enlarged, size=self.recipe.data.size)
        return grid(shown[0], columns=8), {name: float(found[name]) for name in ("ok", "psnr", "colour_error")}

    def export(self, model: nn.Module, folder: Path) -> None:
        """<name>/model.safetensors in half precision; config.json has the arguments for `CascadeDecoder.load`."""
        network = cast(EfficientUNet, cast(Denoiser, model).network)
        arguments, _ = CascadeDecoder([Stage(network, self.stage)]).save(folder, torch.float16)
        write_config(folder, arguments)

    def _check(self) -> None:
        check_sampling(self.recipe.sampling, self.recipe.schedule)
        if not self.recipe.reads and self.recipe.sampling.guidance != 1:
            raise RecipeError("a stage that does not read text has nothing to be guided by: sampling.guidance = 1")
        if self.recipe.reads:
            _check_text(self.recipe.network.context_width, self.text.produces.width)
        for what, side in (("crop", self.recipe.crop), ("data.size", self.recipe.data.size)):
            if side % self.recipe.model.downsampling:
                raise RecipeError(
                    f"{what} = {side} is no multiple of {self.recipe.model.downsampling}, by which the U-Net shrinks"
                )


def _check_text(asked: int | None, given: int) -> None:
    if asked not in (None, given):
        raise RecipeError(
            f"model.context_width = {asked}, but the text encoder's tokens are {given} wide: set "
            f"model.context_width={given}"
        )
