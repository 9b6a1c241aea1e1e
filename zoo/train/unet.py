"""Training the text-conditional U-Net on cached latents and cached text (arXiv 2112.10752).

Images and captions pass the frozen VAE and text encoder once, before training, and stay on disk in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo import tensors
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.sample import sample
from zoo.interface import Conditioning
from zoo.stable_diffusion.parts import UNET, GeneratorConfig, LatentGenerator
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE
from zoo.train import vae as autoencoder
from zoo.train.cache import Array, Scenes, filled, fingerprint, picked, root
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Metrics, to_float, write_config
from zoo.train.text_to_image import CHUNK, Denoising, PromptRecipe, PromptTask, all_of, precision


class LatentRecipe(PromptRecipe):
    """The recipe of a latent generator: `vae` and `text_encoder` are the folders of the frozen parts."""

    vae: Path = Path("runs/vae/final")


class UNetRecipe(Denoising, LatentRecipe):
    """The recipe of a latent generator that learns from pictures alone."""

    model: UNetConfig = UNetConfig()


LatentRecipeT = TypeVar("LatentRecipeT", bound=LatentRecipe)


class LatentTask(PromptTask[LatentRecipeT]):
    """Batches of latents and text tokens; the trained model is a `Denoiser` of a U-Net of the shape `unet`."""

    classes: ClassVar[tuple[str, ...]] = ()  # of a semantic map that joins the latents

    def __init__(self, recipe: LatentRecipeT, device: torch.device, unet: UNetConfig) -> None:
        self.unet = unet
        try:
            decoder = autoencoder.load_part(recipe.vae)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        self.vae, self.space = decoder.vae.to(device), decoder.needs.space
        super().__init__(recipe, device)
        with torch.no_grad(), self.autocast():
            self.latents = latents(self.scenes, self.vae, self.space, device)

    def start(self, model: nn.Module, folder: Path) -> None:
        weights = tensors.read(folder / UNET)
        tensors.assign(model.get_submodule("network"), weights, source=folder / UNET)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        return {"latents": torch.from_numpy(picked(self.latents, rows))} | super().rows(rows, rng)

    def clean(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """The latents and the text of a batch, as networks take them."""
        return batch["latents"].float().contiguous(memory_format=self.layout), self.read(batch)

    def _draw(self, model: nn.Module, text: Conditioning, seeds: list[int]) -> Tensor:
        shape = (len(seeds), *self.latents.shape[1:])
        null, denoiser = all_of(self.null, len(seeds)), cast(Denoiser, model)
        made = sample(denoiser, text, null, ImageNoise(seeds), self.sampling, shape)
        return self.vae.decode(self.vae.from_diffusion(made))

    def export(self, model: nn.Module, folder: Path) -> None:
        """unet/model.safetensors in half precision; config.json has the arguments for `LatentGenerator.load`."""
        size, denoiser = self.recipe.data.size, cast(Denoiser, model)
        network = cast(UNet, denoiser.network)
        config = GeneratorConfig(
            unet=network.config,
            schedule=denoiser.schedule,
            text=self.text.produces,
            latent_space=self.space,
            factor=self.vae.downsampling,
            resolution=(size, size),
            prediction=denoiser.prediction,
            guidance_range=denoiser.guidance_range,
            classes=self.classes,
        )
        generator = LatentGenerator.of(network, config)
        arguments, _ = generator.save(folder, torch.float16)
        write_config(folder, arguments)

    def _check(self) -> None:
        size, shrinking = self.recipe.data.size, self.vae.downsampling * self.unet.downsampling
        if size % shrinking:
            raise RecipeError(
                f"data.size = {size} is no multiple of {shrinking}, by which VAE and U-Net together shrink a picture"
            )


class UNetTask(LatentTask[UNetRecipe]):
    """Noise is to be told from latents."""

    recipe_type = UNetRecipe

    def __init__(self, recipe: UNetRecipe, device: torch.device) -> None:
        super().__init__(recipe, device, recipe.model)

    def build(self) -> nn.Module:
        return Denoiser(UNet(self.unet), self.recipe.schedule, self.recipe.prediction)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        x0, text = self.clean(batch)
        return self.recipe.loss(cast(Denoiser, model), x0, text, self.null), {}

    def _check(self) -> None:
        z, width = self.vae.config.latent_channels, self.text.produces.width
        for key, value, wanted in (
            ("model.in_channels", self.unet.in_channels, z + len(self.classes)),
            ("model.out_channels", self.unet.out_channels, z),
            ("model.context_width", self.unet.context_width, width),
        ):
            if value != wanted:
                raise RecipeError(f"{key} = {value}, but the frozen parts need {wanted}: set {key}={wanted}")
        super()._check()


def latents(pictures: Scenes, vae: VAE, space: str, device: torch.device) -> Array:
    """The posterior means of all pictures in the units of diffusion: float16 [scenes, channels, height, width]."""

    def encoded() -> Iterator[Array]:
        for start in range(0, len(pictures), CHUNK):
            images = to_float(torch.from_numpy(np.array(pictures.images[start : start + CHUNK])).to(device))
            yield vae.to_diffusion(vae.encode(images).mean).half().cpu().numpy()

    size = pictures.images.shape[1] // vae.downsampling
    shape = (len(pictures), vae.config.latent_channels, size, size)
    folder = root() / f"latents-{fingerprint(pictures.folder.name, space, precision())}"
    return filled(folder, shape, encoded(), what="encoding pictures")
