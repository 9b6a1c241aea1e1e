"""Distilling a latent generator into one that sees the end of its teacher's way from anywhere on it.

Latent consistency models (arXiv 2310.04378): a network of its own, with guidance as one input more (part "lcm"), or a
LoRA beside the teacher's (part "lcm-lora", arXiv 2311.05556).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self, TypeVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.diffusion import consistency
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.spacing import DISTILLED
from zoo.interface import Sampling
from zoo.stable_diffusion.unet import UNet
from zoo.train.distil import Distillation, DistillationRecipe, LoraDistillation, LoraRecipe, load_teacher
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Metrics

DECAY = 0.95  # of the target


class ConsistencyRecipe(DistillationRecipe):
    """What recipes of latent consistency models share. `ema` is the decay of the target, whose weights are exported."""

    ema: float = Field(DECAY, ge=0, lt=1)
    skip: int = Field(20, ge=1)  # of 1000 times, what one step of the teacher spans: a multiple of 20
    sample_steps: int = Field(4, ge=1, le=DISTILLED)  # of the sample grid


class LcmRecipe(ConsistencyRecipe):
    """The recipe of a student that is a network of its own."""

    guidance_range: tuple[float, float] = (1.0, 7.0)  # that the student learns to act out
    guidance_width: int = Field(256, ge=4, multiple_of=2)  # of the waves that guidance is fed as

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        low, high = self.guidance_range
        if not low <= self.guidance <= high:
            raise ValueError(f"guidance = {self.guidance:g} of the sample grid is outside guidance_range {low, high}")
        return self


class LcmLoraRecipe(LoraRecipe, ConsistencyRecipe):
    """The recipe of a student that is a LoRA of its teacher."""

    ema: float = Field(DECAY, ge=0, lt=1)  # said again: pydantic takes it from the first base, which has every recipe's


ConsistencyT = TypeVar("ConsistencyT", bound=ConsistencyRecipe)


class Consistency(Distillation[ConsistencyT]):
    """The student is to say of a noisy latent what its running average says one step of the teacher later."""

    def consistency(
        self, student: Denoiser, batch: Batch, guidance: tuple[float, float] | None = None
    ) -> tuple[Tensor, Metrics]:
        """The loss of a batch."""
        assert self.target is not None  # the loop calls `follow` before the first step
        x0, text = self.clean(batch)
        value = consistency.loss(
            student,
            self.target,
            self.teacher,
            x0,
            text,
            self.null,
            skip=self.recipe.skip,
            guidance=guidance,
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
        """The teacher's steps lead somewhere."""
        try:
            consistency.check_skip(self.taught.config.schedule, self.recipe.skip)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        super()._check()


class LcmTask(Consistency[LcmRecipe]):
    """A student that is told the guidance which it acts out."""

    recipe_type = LcmRecipe

    def __init__(self, recipe: LcmRecipe, device: torch.device) -> None:
        taught = load_teacher(recipe.teacher)
        unet = taught.config.unet.model_copy(update={"guidance_width": recipe.guidance_width})
        super().__init__(recipe, device, taught, unet)

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
        return self.consistency(cast(Denoiser, model), batch)


class LcmLoraTask(LoraDistillation[LcmLoraRecipe], Consistency[LcmLoraRecipe]):
    """A student that acts out the guidance of its recipe."""

    recipe_type = LcmLoraRecipe

    def __init__(self, recipe: LcmLoraRecipe, device: torch.device) -> None:
        if recipe.compile:
            raise RecipeError("compile = true does not go with a LoRA, which acts beside the network's own modules")
        super().__init__(recipe, device)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        return self.consistency(self.student, batch, (self.recipe.guidance,) * 2)

    @property
    def sampling(self) -> Sampling:
        return replace(super().sampling, guidance=1.0)  # the student's is in what it learned
