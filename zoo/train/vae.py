"""Training the autoencoder (arXiv 2112.10752): L1, L1 of the edges, a small KL, and late a patch discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from accelerate.utils import gather
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zoo import tensors
from zoo.data.draw import render
from zoo.data.scenes import random_scene
from zoo.diffusion import draws
from zoo.stable_diffusion.parts import VAE_FILE, VaeDecoder
from zoo.stable_diffusion.vae import VAE, VAEConfig
from zoo.train.cache import SceneData, picked, scenes
from zoo.train.recipe import Recipe, RecipeError
from zoo.train.task import Batch, Image, Metrics, Task, grid, to_float, write_config

FRESH = 256  # scenes that PSNR and latent scale are measured on, drawn from a seed that training does not use
SHOWN = 16
STRIPE = (0.04, 0.25)  # half the width of a stripe of another hue, of half a picture
DARKEST = 0.5  # of pictures in other hues, as a factor


class VaeRecipe(Recipe):
    """The recipe of an autoencoder."""

    model: VAEConfig = VAEConfig()
    data: SceneData = SceneData()
    kl: float = Field(1e-4, ge=0)  # weight of the divergence per latent value, beside an L1 per pixel value
    squared: float = Field(0.0, ge=0)  # weight of the squared error, which minds wrong colours more than soft edges
    edges: float = Field(0.5, ge=0)  # weight of the L1 between horizontal and vertical differences
    crop: int | None = Field(None, ge=8)  # train on windows of this size, placed where there is something to see ...
    crop_until: float = Field(0.7, ge=0, le=1)  # ... until this progress, and on whole pictures from then on
    adversarial: float = Field(0.0, ge=0)  # weight of the discriminator's verdict; 0 trains none
    adversarial_from: float = Field(0.8, ge=0, le=1)  # progress at which it sets in
    train: Literal["whole", "decoder"] = "whole"  # the decoder alone: latents stay those of `init`, generators fit on
    noise: float = Field(0.0, ge=0)  # largest deviation of noise on latents, a share of theirs: generators err a little
    turned: float = Field(0.0, ge=0, le=1)  # share of pictures in hues that drawn scenes lack: see `_turned_hues`
    like: Path | None = None  # an exported VAE whose generators are to go on in these latents: see `standardise`

    @model_validator(mode="after")
    def _decoder_of_something(self) -> Self:
        if self.train == "decoder" and self.init is None:
            raise ValueError("train = 'decoder' needs init = ..., the folder of the VAE whose latents are kept")
        if self.train == "decoder" and self.like is not None:
            raise ValueError("train = 'decoder' keeps the latents of init as they are: leave out like")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop is not None and self.crop > self.data.size:
            raise ValueError(f"crop = {self.crop} must be at most data.size, which is {self.data.size}")
        return self


class Discriminator(nn.Module):
    """A patch discriminator: images [batch, 3, height, width] to a verdict per overlapping patch of 22 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(images))


class VaeTask(Task[VaeRecipe]):
    """Batches of cached scenes; the trained model holds the VAE and, if asked for, its discriminator."""

    recipe_type = VaeRecipe

    def __init__(self, recipe: VaeRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.frozen = recipe.train == "decoder"
        try:
            self.config = recipe.model if recipe.init is None or not self.frozen else read_config(recipe.init)
            self.like = None if recipe.like is None else load(recipe.like)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        if self.frozen and "model" in recipe.model_fields_set and _shape(recipe.model) != _shape(self.config):
            raise RecipeError(f"model is not that of init = {recipe.init}, whose latents are kept: leave it out")
        if self.like is not None and not _comparable(self.config, self.like.config):
            raise RecipeError(f"like = {recipe.like} has latents of another shape than the recipe's model")
        for what, side in (("data.size", recipe.data.size), ("crop", recipe.crop or 0)):
            if side % self.config.downsampling:
                raise RecipeError(
                    f"{what} = {side} is no multiple of {self.config.downsampling}, by which the VAE shrinks a picture"
                )
        self.scenes = scenes(recipe.data)
        rng = np.random.default_rng([recipe.data.seed, 2**40])
        fresh = np.stack([render(random_scene(rng), recipe.data.size) for _ in range(FRESH)])
        self.fresh = to_float(torch.from_numpy(fresh), self.layout)

    def build(self) -> nn.Module:
        vae = VAE(self.config)
        if self.frozen:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        parts: dict[str, nn.Module] = {"vae": vae}
        if self.recipe.adversarial:
            parts["discriminator"] = Discriminator()
        return nn.ModuleDict(parts)

    def start(self, model: nn.Module, folder: Path) -> None:
        tensors.assign(_vae(model), tensors.read(folder / VAE_FILE), source=folder / VAE_FILE)

    def compile(self, model: nn.Module) -> None:
        vae = _vae(model)
        vae.encoder.compile()
        vae.decoder.compile()

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        rows = rng.integers(len(self.scenes), size=self.recipe.batch)
        return {"images": torch.from_numpy(picked(self.scenes.images, rows))}

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        recipe, vae = self.recipe, _vae(model)
        images = to_float(batch["images"], self.layout)
        if recipe.turned:
            images = _turned_hues(images, recipe.turned)
        if recipe.crop and progress < recipe.crop_until:
            images = _cropped(images, recipe.crop).contiguous(memory_format=self.layout)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            posterior = vae.encode(images)
            latents = posterior.sample(draws.randn_like(posterior.mean))
        if recipe.noise:
            deviation = recipe.noise * draws.rand((len(latents), 1, 1, 1), device=latents.device)
            # Of the whole batch, also where processes share it, but not where one computes it in parts.
            spread = gather(posterior.mean.detach()).std()
            latents = latents + deviation * spread * draws.randn_like(latents)
        made = vae.decode(latents).float()
        l1, edges = F.l1_loss(made, images), _edges(made, images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        squared = F.mse_loss(made, images)
        loss = l1 + recipe.squared * squared + recipe.edges * edges + recipe.kl * kl
        metrics = {"l1": l1, "squared": squared, "edges": edges, "kl": kl}
        if recipe.adversarial and progress >= recipe.adversarial_from:
            judge = model.get_submodule("discriminator")
            fooled, told = _duel(judge, images, made)
            loss = loss + recipe.adversarial * fooled + told
            metrics |= {"fooled": fooled, "told": told}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        vae = _vae(model)
        images = self.fresh.to(self.device)
        posteriors = [vae.encode(part) for part in images.split(64)]
        made = torch.cat([vae.decode(posterior.mean) for posterior in posteriors]).float().clamp(-1, 1)
        error = (made - images).square().flatten(1).mean(1)
        psnr = 10 * torch.log10(4 / error.clamp(min=1e-10))
        mean = torch.cat([posterior.mean for posterior in posteriors])
        rows = torch.stack([images[:SHOWN], made[:SHOWN]], 1).flatten(0, 1)
        figures = {"psnr": psnr.mean(), "l1": (made - images).abs().mean(), "latent_std": mean.std()}
        return grid(rows, columns=8), {name: float(value) for name, value in figures.items()}

    @property
    def kept(self) -> dict[str, str]:
        """The name of the latents' space, where they stay as they were: one rounded for shipping keeps its old name."""
        if not self.frozen or self.recipe.init is None:
            return {}
        return tensors.spaces(self.recipe.init / VAE_FILE)

    def export(self, model: nn.Module, folder: Path) -> None:
        """config.json, with the factor that brings its latents to unit variance, and the weights in half precision.

        Before, each channel of the latents is brought to mean 0 and variance 1 (`standardise`), where the VAE can. A
        decoder trained alone leaves the latents and their factor as they were, and the name that they go by.
        """
        vae = _vae(model)
        config = self.config.model_dump(mode="json")
        if not self.frozen:
            standardise(vae, self.fresh, self.like)
            with torch.no_grad():
                latents = torch.cat([vae.encode(part).mean for part in self.fresh.split(64)])
            config |= {"scaling_factor": round(float(1 / latents.std()), 5), "shift_factor": 0.0}
        write_config(folder, config)
        (folder / VAE_FILE).parent.mkdir()
        tensors.write(folder / VAE_FILE, vae.state_dict(), torch.float16, tensors.naming(self.kept))


def load(folder: str | Path) -> VAE:
    """The VAE that a training run exported, frozen, in float32, on the CPU.

    Raises:
        ValueError: a file is missing or does not fit.
    """
    return load_part(folder).vae


def load_part(folder: str | Path) -> VaeDecoder:
    """The same as a part, which knows the name of its latent space."""
    return VaeDecoder.load(Path(folder), read_config(folder).model_dump())


def read_config(folder: str | Path) -> VAEConfig:
    """The configuration of an exported VAE. Raises ValueError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"no trained VAE in {folder}: train recipes/vae.toml, or say where one is with vae=...")
    return VAEConfig.model_validate_json(path.read_text(encoding="utf-8"))


@torch.no_grad()
def standardise(vae: VAE, images: Tensor, like: VAE | None = None) -> None:
    """Give each latent channel mean 0 and variance 1 over `images`, by changing the two 1x1 convolutions around it.

    What the VAE reconstructs stays the same. Diffusion adds equal noise to all channels, so those that happen to be
    small would drown in it first; one scaling factor for all of them cannot mend that. Does nothing without the two.

    like: a VAE whose latents generators know already. The channels then get the covariance of its own, and are turned
    to be as near to them as that lets them be, but for the mean (orthogonal Procrustes), so that those generators have
    less to learn anew. Turned axes would correlate the posterior's deviations; it keeps their mean over the images.
    """
    inward, outward = vae.quant_conv, vae.post_quant_conv
    if not isinstance(inward, nn.Conv2d) or not isinstance(outward, nn.Conv2d):
        return
    assert inward.bias is not None
    assert outward.bias is not None
    posteriors = [vae.encode(part) for part in images.split(64)]
    latents = _rows([posterior.mean for posterior in posteriors])
    mean, z = latents.mean(0), latents.shape[1]
    if like is None:
        change = (1 / latents.std(0)).diag()
        inward.bias[z:] += 2 * change.diagonal().log()  # the second half is the log variance
    else:
        theirs = _rows([like.encode(part).mean for part in images.split(64)])
        change = _turned(latents - mean, theirs - theirs.mean(0))
        variance = _rows([posterior.logvar for posterior in posteriors]).exp().mean(0)
        inward.weight[z:] = 0.0
        inward.bias[z:] = (change.square().T @ variance).log()
    inward.weight[:z] = torch.einsum("ij,ikhw->jkhw", change, inward.weight[:z])
    inward.bias[:z] = change.T @ (inward.bias[:z] - mean)
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight.copy_(torch.einsum("okhw,jk->ojhw", outward.weight, change.inverse()))


def _turned(latents: Tensor, theirs: Tensor) -> Tensor:
    """The matrix [z, z] that gives centred latents [rows, z] the covariance of others, as near to them as it can be."""
    wanted = _power(theirs.T.cov(), 0.5)
    white = _power(latents.T.cov(), -0.5)
    left, _, right = torch.linalg.svd(white @ latents.T @ theirs @ wanted)
    return white @ left @ right @ wanted


def _power(covariance: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ (values.clamp(min=1e-12).pow(exponent)[:, None] * vectors.T)


def _shape(config: VAEConfig) -> dict[str, object]:
    """All of a config but the units that training settles."""
    return config.model_dump(exclude={"scaling_factor", "shift_factor"})


def _comparable(mine: VAEConfig, theirs: VAEConfig) -> bool:
    """Whether two VAEs have latents of one shape, and this one the convolutions that can turn its own."""
    alike = (mine.latent_channels, mine.downsampling) == (theirs.latent_channels, theirs.downsampling)
    return alike and mine.quant_conv and mine.post_quant_conv


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """[batch, z, height, width] parts to one [rows, z]."""
    return torch.cat(list(parts)).permute(0, 2, 3, 1).flatten(0, 2)


def _vae(model: nn.Module) -> VAE:
    return cast(VAE, model.get_submodule("vae"))


def _cropped(images: Tensor, size: int) -> Tensor:
    """A window [size, size] of each image around a pixel that stands out: most of a scene is plain background."""
    height, width = images.shape[-2:]
    outstanding = (images - images.mean((2, 3), keepdim=True)).abs().sum(1).flatten(1) + 1e-3
    centre = draws.choice(outstanding)
    tops = (centre // width - size // 2).clamp(0, height - size).tolist()
    lefts = (centre % width - size // 2).clamp(0, width - size).tolist()
    windows = [image[:, y : y + size, x : x + size] for image, y, x in zip(images, tops, lefts, strict=True)]
    return torch.stack(windows)


def _turned_hues(images: Tensor, share: float) -> Tensor:
    """A share of the images [batch, 3, height, width] in (-1, 1), their colours turned around gray and made darker,
    half of these in a stripe alone.

    Scenes have eight colours, and a body has one of them. A VAE that has seen no others draws the colour of a new
    subject as the nearest of them, and a flash along its side as a blur.
    """
    each = (len(images), 1, 1)
    angle = 2 * torch.pi * draws.rand(each, device=images.device)
    gray = torch.full((3, 3), 1 / 3, device=images.device)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=images.device) / 3**0.5
    turns = angle.cos() * (torch.eye(3, device=images.device) - gray) + gray + angle.sin() * axis  # Rodrigues
    turns = turns * (DARKEST + (1 - DARKEST) * draws.rand(each, device=images.device))
    other = torch.einsum("bij,bjhw->bihw", turns, (images + 1) / 2).clamp(0, 1) * 2 - 1
    chosen, striped = (draws.rand((*each, 1), device=images.device) for _ in range(2))
    return torch.where((chosen < share) & ((striped < 0.5) | _stripes(images)), other, images)


def _stripes(images: Tensor) -> Tensor:
    """For each of the images [batch, 3, height, width] where a stripe crosses it: bool [batch, 1, height, width]."""
    batch, _, *sides = images.shape
    down, across = torch.meshgrid(*(torch.linspace(-1, 1, side, device=images.device) for side in sides), indexing="ij")
    angle, place, width = (draws.rand((batch, 1, 1, 1), device=images.device) for _ in range(3))
    narrow, wide = STRIPE
    away = across * (torch.pi * angle).cos() + down * (torch.pi * angle).sin() - (2 * place - 1) * 0.7
    return away.abs() < narrow + (wide - narrow) * width


def _edges(made: Tensor, images: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels: it keeps outlines sharp where plain L1 blurs them."""
    error = made - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _duel(judge: nn.Module, images: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's hinge loss, in which the judge's weights are constants, and the judge's own."""
    constants = {name: parameter.detach() for name, parameter in judge.named_parameters()}
    fooled = -functional_call(judge, constants, (made,)).float().mean()
    real, fake = judge(images).float(), judge(made.detach()).float()
    return fooled, F.relu(1 - real).mean() + F.relu(1 + fake).mean()
