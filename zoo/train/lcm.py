"""Distilling a latent generator into one that draws in a few steps (latent consistency models, arXiv 2310.04378).

The student begins as its teacher, with guidance as one input more; it learns on the teacher's cached latents and text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo import config as configs
from zoo.diffusion import consistency
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import check_interval
from zoo.interface import Sampling
from zoo.stable_diffusion.parts import LatentGenerator
from zoo.stable_diffusion.unet import UNet
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Metrics
from zoo.train.unet import LatentRecipe, LatentTask
from zoo.weights import load_part


class LcmRecipe(LatentRecipe):
    """The recipe of a distillation. `ema` is the decay of the target, whose weights are also the finished ones."""

    teacher: Path  # a model folder, or what a run of the part "unet" exported
    ema: float = Field(0.95, ge=0, lt=1)
    guidance_range: tuple[float, float] = (1.0, 7.0)  # that the student learns to act out
    interval: tuple[float, float] | None = None  # noise levels at which its teacher is guided; None is all
    guidance_width: int = Field(256, ge=4, multiple_of=2)  # of the waves that guidance is fed as
    skip: int = Field(20, ge=1)  # of 1000 times, what one step of the teacher spans: a multiple of 20
    huber: float | None = Field(0.001, gt=0)  # width of the distance's quadratic part; leave out for squared errors
    sample_steps: int = Field(4, ge=1, le=consistency.TIMES)  # of the sample grid

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.interval is not None:
            check_interval(self.interval)
        low, high = self.guidance_range
        if not low <= self.guidance <= high:
            raise ValueError(f"guidance = {self.guidance:g} of the sample grid is outside guidance_range {low, high}")
        return self


class LcmTask(LatentTask[LcmRecipe]):
    """The student is to say of a noisy latent what its running average says one step of the teacher later."""

    recipe_type = LcmRecipe

    def __init__(self, recipe: LcmRecipe, device: torch.device) -> None:
        self.taught = load_teacher(recipe.teacher)
        config = self.taught.config.unet.model_copy(update={"guidance_width": recipe.guidance_width})
        super().__init__(recipe, device, config)
        self.teacher = self.taught.denoiser.to(device).to(memory_format=self.layout)
        self.target: Denoiser | None = None

    def build(self) -> nn.Module:
        teacher = self.taught.denoiser
        network = UNet(self.unet)
        fresh = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("guidance.")}
        network.load_state_dict({name: tensor.cpu() for name, tensor in teacher.network.state_dict().items()} | fresh)
        return Denoiser(network, teacher.schedule, teacher.prediction, teacher.variance, self.recipe.guidance_range)

    def follow(self, average: nn.Module) -> None:
        self.target = cast(Denoiser, average)

    def compile(self, model: nn.Module) -> None:
        for denoiser in (model, self.target, self.teacher):
            super().compile(cast(Denoiser, denoiser))

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        assert self.target is not None  # the loop says so before the first step
        x0, text = self.clean(batch)
        value = consistency.loss(
            cast(Denoiser, model),
            self.target,
            self.teacher,
            x0,
            text,
            self.null,
            skip=self.recipe.skip,
            interval=self.recipe.interval,
            huber=self.recipe.huber,
            generator=torch.default_generator,  # the CPU's, which the loop has seeded for this step
        )
        return value, {}

    @property
    def sampling(self) -> Sampling:
        steps = self.recipe.sample_steps
        return Sampling(steps=steps, sampler="lcm", spacing="lcm", guidance=self.recipe.guidance)

    def _check(self) -> None:
        """The teacher was trained between the same frozen parts, and its steps lead somewhere."""
        taught, text = self.taught.config, self.text.produces.space
        for key, value, wanted in (("text_encoder", text, taught.text.space), ("vae", self.space, taught.latent_space)):
            if value != wanted:
                raise RecipeError(
                    f"{key} = {getattr(self.recipe, key)} defines the space {value}, but the teacher was trained in "
                    f"{wanted}: give the {key} that it was trained with"
                )
        try:
            consistency.check_skip(taught.schedule, self.recipe.skip)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        super()._check()


def load_teacher(folder: Path) -> LatentGenerator:
    """The generator in a model folder, or in the folder that a training run exported.

    Raises:
        RecipeError: there is none that can be distilled.
    """
    try:
        said = json.loads((folder / configs.FILE).read_text("utf-8"))
        if "generator" in said:
            part = load_part(folder, configs.read(folder).generator)
        else:
            part = LatentGenerator.load(folder, said)
    except (OSError, ValueError) as error:
        raise RecipeError(f"no trained U-Net in teacher = {folder}: {error}") from None
    if not isinstance(part, LatentGenerator) or part.config.guidance_range is not None:
        raise RecipeError(f"teacher = {folder} cannot be distilled: a latent generator is needed, itself not distilled")
    return part
