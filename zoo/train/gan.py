"""Training the GAN (DF-GAN, arXiv 2008.05865): a generator of pictures against a discriminator, on cached text.

Both learn at every step, from the same pictures and each from its own loss: the generator's sees the discriminator's
weights as constants, and the discriminator's what was made as data. Adam keeps state and step for each parameter by
itself, so one optimiser with two rates is the paper's two. The averaged weights are what is shown and shipped.

A wrong text for a picture is that of another one or, harder, its own with one facet changed: only who can tell those
from the true one has to know which colour belongs to which object.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from zoo import tensors
from zoo.data.captions import caption, partial, swapped
from zoo.data.scenes import Scene
from zoo.diffusion import draws
from zoo.diffusion.noise import INITIAL, ImageNoise
from zoo.diffusion.ports import choose, rows
from zoo.gan.discriminator import POWER, WEIGHT, Discriminator, DiscriminatorConfig, gradient_penalty
from zoo.gan.generator import FusionGenerator, FusionGeneratorConfig
from zoo.gan.parts import FILE, STAGE, GanConfig, GanGenerator
from zoo.interface import Conditioning
from zoo.train.cache import Array, picked
from zoo.train.precision import aside
from zoo.train.recipe import Optimiser, RecipeError
from zoo.train.task import Batch, Image, Metrics, to_float, write_config
from zoo.train.text_to_image import LANGUAGES, PromptRecipe, PromptTask

DISCRIMINATOR = Path("discriminator") / "model.safetensors"  # of an exported run, to go on from; it is not shipped


class GanOptimiser(Optimiser):
    """Adam as GANs are trained: without momentum or weight decay, and the discriminator faster (arXiv 1706.08500)."""

    kind: Literal["adamw"] = "adamw"  # without decay, Adam; Muon has one rate for all
    lr: float = Field(1e-4, gt=0)  # of the generator
    discriminator: float = Field(4.0, gt=0)  # how many times that the discriminator's rate is
    betas: tuple[float, float] = (0.0, 0.9)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(100.0, gt=0)  # of both networks' gradients together: against accidents only
    warmup: int = Field(0, ge=0)


class GanRecipe(PromptRecipe):
    """The recipe of a GAN; `model` is the generator."""

    optimiser: GanOptimiser = GanOptimiser()
    model: FusionGeneratorConfig = FusionGeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    guidance: float = Field(1.0, ge=1, le=1)  # one pass has nothing to be guided by
    dropout: float = Field(0.05, ge=0, le=1)  # share of captions replaced by the empty one: any picture will do
    changed: float = Field(0.5, ge=0, le=1)  # share of wrong texts that are the true one with one facet changed
    penalty: float = Field(WEIGHT, ge=0)  # weight of the gradient penalty
    power: float = Field(POWER, gt=0)  # of the norms in it
    penalised: float = Field(0.25, gt=0, le=1)  # share of a batch that it is taken on: it is the dearest part of a step


class GanTask(PromptTask[GanRecipe]):
    """Batches of pictures, their text and wrong text. The trained model holds `generator` and `discriminator`."""

    recipe_type = GanRecipe

    def build(self) -> nn.Module:
        generator, discriminator = FusionGenerator(self.recipe.model), Discriminator(self.recipe.discriminator)
        return nn.ModuleDict({"generator": generator, "discriminator": discriminator})

    def start(self, model: nn.Module, folder: Path) -> None:
        for network, file in ((_generator(model), FILE), (_discriminator(model), DISCRIMINATOR)):
            tensors.assign(network, tensors.read(folder / file), source=folder / file)

    def pace(self, name: str) -> float:
        return self.recipe.optimiser.discriminator if name.startswith("discriminator.") else 1.0

    def compile(self, model: nn.Module) -> None:
        """The generator alone: what is compiled has no second derivative, which the gradient penalty takes."""
        _generator(model).compile()

    def recompute(self, model: nn.Module) -> int:
        return 0  # a step computes with the discriminator's weights in two ways, and in the backward pass with one

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        batch = super().rows(rows, rng)
        images = torch.from_numpy(picked(self.scenes.images, rows))
        return batch | {"images": images, "wrong": self._wrong(rows, batch["tokens"], rng)}

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        recipe, generator, discriminator = self.recipe, _generator(model), _discriminator(model)
        images = to_float(batch["images"], self.layout)
        count = len(images)
        # From the CPU's generator, which the loop has seeded for this step: the same wherever the run goes on.
        noise = draws.randn((count, recipe.model.noise_width)).to(images)
        said = choose(draws.rand((count,)) < recipe.dropout, self.null, self.read(batch))
        wrong = self.read({"tokens": batch["wrong"]})

        made = generator(noise, said)
        constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fooled = -functional_call(discriminator, constants, (made, said)).float().mean()

        real, mismatched, fake = _verdicts(discriminator, images, made.detach(), said, wrong)
        told = F.relu(1 - real).mean() + (F.relu(1 + mismatched).mean() + F.relu(1 + fake).mean()) / 2
        loss, metrics = fooled + told, {"fooled": fooled, "told": told}
        if recipe.penalty:
            few = max(1, round(recipe.penalised * count))
            true = rows(said, range(few))
            steep = gradient_penalty(discriminator, images[:few], true, weight=recipe.penalty, power=recipe.power)
            loss, metrics["penalty"] = loss + steep, steep
        verdicts = {"real": real.mean(), "mismatched": mismatched.mean(), "fake": fake.mean()}
        return loss, {name: value.detach() for name, value in (metrics | verdicts).items()}

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """As of every generator from text; `variety` is the mean difference of two pictures of one prompt, in [0, 1]:
        a GAN that forgets its noise is seen there first."""
        picture, figures = super().inspect(model)
        one, other = (self._draw(model, self.shown, [seed] * len(self.recipe.prompts)).float() for seed in (0, 1))
        return picture, figures | {"variety": float((one - other).abs().mean()) / 2}

    def export(self, model: nn.Module, folder: Path) -> None:
        """gan/ and discriminator/model.safetensors in half precision; config.json has the arguments for
        `GanGenerator.load`, which reads the first alone."""
        part = GanGenerator(_generator(model), GanConfig(network=self.recipe.model, text=self.text.produces))
        arguments, _ = part.save(folder, torch.float16)
        tensors.write(folder / DISCRIMINATOR, _discriminator(model).state_dict(), torch.float16)
        write_config(folder, arguments)

    def _draw(self, model: nn.Module, text: Conditioning, seeds: list[int]) -> Tensor:
        noise = ImageNoise(seeds).draw(STAGE, INITIAL, (len(seeds), self.recipe.model.noise_width))
        return cast(Tensor, _generator(model)(noise.to(self.device), text)).clamp(-1, 1)

    def _wrong(self, rows: Array, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """For each picture text that is not true of it, as `tokens` [batch, length, width] are those that are."""
        wrong, changed = tokens.roll(1, 0), round(self.recipe.changed * len(rows))
        if not changed:
            return wrong
        texts = [self._altered(self.scenes.scenes[row], rng) for row in rows[:changed]]
        with torch.no_grad(), aside(self.autocast()):  # encoded as the cache is, or its rounding would tell
            features = self.text.encode(texts)
        words = features.tokens if features.mask is None else features.tokens * features.mask[..., None]
        wrong[:changed] = words.to(wrong)
        return wrong

    def _altered(self, scene: Scene, rng: np.random.Generator) -> str:
        whole = scene.describe()
        said = whole if rng.random() < self.recipe.full else partial(whole, rng, self.recipe.coloured)
        return caption(swapped(said, rng), LANGUAGES[int(rng.integers(len(LANGUAGES)))], rng)

    def _check(self) -> None:
        width, size = self.text.produces.width, self.recipe.data.size
        for table, network in (("model", self.recipe.model), ("discriminator", self.recipe.discriminator)):
            if network.context_width != width:
                raise RecipeError(
                    f"{table}.context_width = {network.context_width}, but the text encoder's tokens are {width} wide: "
                    f"set {table}.context_width={width}"
                )
            if network.size != size:
                raise RecipeError(
                    f"data.size = {size}, but [{table}] is built for {network.size}: {len(network.channels)} levels, "
                    f"the coarsest of side {network.side}"
                )


def _generator(model: nn.Module) -> FusionGenerator:
    return cast(FusionGenerator, model.get_submodule("generator"))


def _discriminator(model: nn.Module) -> Discriminator:
    return cast(Discriminator, model.get_submodule("discriminator"))


def _verdicts(
    discriminator: Discriminator, images: Tensor, made: Tensor, said: Conditioning, wrong: Conditioning
) -> tuple[Tensor, Tensor, Tensor]:
    """The verdicts on true pictures with their text, with a wrong one, and on what was made: [batch] each, float32."""
    true, false = discriminator.see(torch.cat([images, made.to(images)])).chunk(2)
    assert said.tokens is not None
    assert wrong.tokens is not None
    texts = replace(said, tokens=torch.cat([said.tokens, wrong.tokens, said.tokens]))
    if said.mask is not None and wrong.mask is not None:
        texts = replace(texts, mask=torch.cat([said.mask, wrong.mask, said.mask]))
    real, mismatched, fake = discriminator.judge(torch.cat([true, true, false]), texts).float().chunk(3)
    return real, mismatched, fake
