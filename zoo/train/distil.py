"""What all ways of distilling a latent generator into one that draws in a few steps have in common.

The student begins as its teacher and learns on the teacher's cached latents and text. It is a network of its own, or a
LoRA beside the teacher's (arXiv 2311.05556), which goes with other adapters of the teacher and acts out the guidance
that it was distilled at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self, TypeVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo import config as configs
from zoo.adapt import active
from zoo.adapt.files import LORA
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA, Target, inject
from zoo.adapt.report import load as read_lora
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import check_interval
from zoo.interface import Conditioning
from zoo.loading import load
from zoo.stable_diffusion.parts import LatentGenerator
from zoo.stable_diffusion.unet import UNetConfig
from zoo.train.methods import weights_of, write_base
from zoo.train.recipe import RecipeError
from zoo.train.unet import LatentRecipe, LatentTask
from zoo.weights import load_part


class DistillationRecipe(LatentRecipe):
    """What recipes of distillations share."""

    teacher: Path  # a model folder, or what a run of the part "unet" exported
    interval: tuple[float, float] | None = None  # noise levels at which its teacher is guided; None is all
    huber: float | None = Field(0.001, gt=0)  # width of the distance's quadratic part; leave out for squared errors

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.interval is not None:
            check_interval(self.interval)
        return self


class LoraRecipe(DistillationRecipe):
    """The recipe of a student that is a LoRA of its teacher, the generator of a model folder."""

    guidance: float = Field(7.0, ge=0)  # of the teacher, which the student learns to act out
    layers: tuple[str, ...] = ("*",)  # of the teacher's network that get a LoRA: patterns on their names
    rank: int = Field(32, ge=1)
    alpha: float | None = None  # None: as the rank


DistillationT = TypeVar("DistillationT", bound=DistillationRecipe)
LoraT = TypeVar("LoraT", bound=LoraRecipe)


class Distillation(LatentTask[DistillationT]):
    """A student learns from a teacher; its running average, the target, is what is kept of it."""

    def __init__(self, recipe: DistillationT, device: torch.device, taught: LatentGenerator, unet: UNetConfig) -> None:
        self.taught = taught
        super().__init__(recipe, device, unet)
        self.teacher = taught.denoiser.to(device).to(memory_format=self.layout)
        self.target: Denoiser | None = None

    def _check(self) -> None:
        """The teacher was trained between the same frozen parts."""
        taught, text = self.taught.config, self.text.produces.space
        for key, value, wanted in (("text_encoder", text, taught.text.space), ("vae", self.space, taught.latent_space)):
            if value != wanted:
                raise RecipeError(
                    f"{key} = {getattr(self.recipe, key)} defines the space {value}, but the teacher was trained in "
                    f"{wanted}: give the {key} that it was trained with"
                )
        super()._check()


class LoraDistillation(Distillation[LoraT]):
    """One network three times: alone it is the teacher, with the LoRA the student, with its average the target."""

    def __init__(self, recipe: LoraT, device: torch.device) -> None:
        try:
            pipe = load(recipe.teacher, device="cpu")
        except ValueError as error:
            raise RecipeError(f"teacher = {recipe.teacher}: {error}") from None
        self.base = weights_of(pipe)
        taught = distillable(pipe.generator, recipe.teacher)
        ((self.name, network),) = taught.adaptable.items()
        try:
            targets = [Target(pattern=layer, rank=recipe.rank, alpha=recipe.alpha) for layer in recipe.layers]
            self.fresh = LoRA.build(network.module.requires_grad_(False), targets, seed=recipe.seed)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        super().__init__(recipe, device, taught, taught.config.unet)
        self.student = self._acting("student")

    def build(self) -> nn.Module:
        inject(self.taught.denoiser.network, self.fresh, "student")
        return self.fresh

    def recompute(self, model: nn.Module) -> int:
        return super().recompute(self.taught.denoiser)

    def follow(self, average: nn.Module) -> None:
        inject(self.taught.denoiser.network, cast(LoRA, average), "target")
        self.target = self._acting("target")

    def start(self, model: nn.Module, folder: Path) -> None:
        """Also of a LoRA of a lower rank, such as `zoo lora extract` makes of an older student and its teacher."""
        loras, _ = read_lora(folder / LORA, self.taught.adaptable)
        cast(LoRA, model).begin_as(loras[self.name])

    def export(self, model: nn.Module, folder: Path) -> None:
        """lora.safetensors in half precision, and which model it is for."""
        write(folder / LORA, {self.name: cast(LoRA, model)}, dtype=torch.float16)
        write_base(self.base, {"generator"}, folder)

    def _draw(self, model: nn.Module, text: Conditioning, seeds: list[int]) -> Tensor:
        assert self.target is not None  # the loop calls `follow` before the first step
        return super()._draw(self.target, text, seeds)  # with the average, which `model` is

    def _acting(self, name: str) -> Denoiser:
        teacher = self.taught.denoiser
        return Denoiser(Acting(teacher.network, name), teacher.schedule, teacher.prediction, teacher.variance)


class Acting(nn.Module):
    """A network beside which one of its adapters acts."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with active.use({self.name: 1.0}):
            return cast(Tensor, self.network(x, t, conditioning))


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
    return distillable(part, folder)


def distillable(part: object, folder: Path) -> LatentGenerator:
    """The part, if it can be a teacher. Raises RecipeError where it cannot."""
    if not isinstance(part, LatentGenerator) or part.config.guidance_range is not None:
        raise RecipeError(f"teacher = {folder} cannot be distilled: a latent generator is needed, itself not distilled")
    return part
