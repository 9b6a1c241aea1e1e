"""Distilling a latent generator into one that goes from stop to stop of a short grid in one step each.

A LoRA beside the teacher's network (part "phases-lora"): see `zoo.diffusion.phases`.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.diffusion import draws
from zoo.diffusion.phases import led, loss, noised, phases
from zoo.interface import Sampling
from zoo.train.distil import LoraDistillation, LoraRecipe
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Metrics


class PhasesRecipe(LoraRecipe):
    """The recipe of a LoRA with which each phase of the teacher's way is one step."""

    guidance: float = Field(4.0, ge=0)  # of the teacher, which the student learns to act out
    stops: int = Field(4, ge=1)  # steps of the student, and so phases
    spacing: str = "trailing*2"  # of its stops
    substeps: int = Field(5, ge=1)  # of the teacher in a phase
    own: float = Field(0.0, ge=0, le=1)  # share of batches that begin a phase where the student's steps lead
    solver: Literal["ddim", "euler", "heun", "dpmpp_2m", "unipc"] = "dpmpp_2m"  # the teacher's sampler


class PhasesTask(LoraDistillation[PhasesRecipe]):
    """The student is to go in one step where the teacher goes in some: all of a batch in the same phase."""

    recipe_type = PhasesRecipe

    def __init__(self, recipe: PhasesRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        if recipe.compile:  # which goes with nothing that acts beside the network's own modules
            self.teacher = copy.deepcopy(self.teacher)
        try:
            self.walks = phases(self.taught.config.schedule, self.sampling, recipe.substeps)
        except ValueError as error:
            raise RecipeError(f"stops = {recipe.stops}, spacing = {recipe.spacing!r}: {error}") from None
        self.way = Sampling(sampler=recipe.solver, guidance=recipe.guidance, interval=recipe.interval)

    @property
    def sampling(self) -> Sampling:
        return Sampling(steps=self.recipe.stops, sampler="ddim", spacing=self.recipe.spacing, guidance=1.0)

    def compile(self, model: nn.Module) -> None:
        """The teacher alone, which most of the time is spent on."""
        super().compile(self.teacher)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        x0, text = self.clean(batch)
        source = torch.default_generator  # the CPU's, which the loop has seeded for this step
        # One phase for the whole batch, whoever shares it, since some take longer than others.
        phase, own = int(torch.randint(len(self.walks), ())), bool(torch.rand(()) < self.recipe.own)
        if own:
            x = led(self.student, draws.randn(x0.shape, source).to(x0), text, self.walks[:phase])
        else:
            x = noised(x0, self.walks[phase], source)
        walk, huber = self.walks[phase], self.recipe.huber
        return loss(self.student, self.teacher, x, text, self.null, walk, self.way, huber=huber), {}
