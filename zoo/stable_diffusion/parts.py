"""Stable Diffusion as parts of a pipeline: a generator of latents (arXiv 2112.10752) and their decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.diffusion.convention import Convention, grid_of
from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.inputs import check_size
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.interface import (
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
from zoo.stable_diffusion import keys
from zoo.stable_diffusion.conditioning import map_channels
from zoo.stable_diffusion.tiling import in_slices, in_tiles
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE, VAEConfig

UNET = Path("unet") / "model.safetensors"
VAE_FILE = Path("vae") / "model.safetensors"


class GeneratorConfig(BaseModel):
    """Everything about a latent generator but its weights: network, schedule, and the spaces it was trained between."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unet: UNetConfig
    schedule: Schedule
    text: TextSpec
    latent_space: str
    factor: int  # image pixels per latent pixel, per side
    resolution: tuple[int, int]  # height and width trained at, in pixels
    prediction: Target = "epsilon"
    variance: Variance = "fixed_small"
    guidance_range: tuple[float, float] | None = None  # of a network distilled to take guidance as an input
    classes: tuple[str, ...] = ()  # of the semantic map that it takes beside the text, by their numbers
    convention: Convention | None = None  # of a published checkpoint's own scheduler, the spacing "published"

    @model_validator(mode="after")
    def _fits(self) -> GeneratorConfig:
        if self.text.width != self.unet.context_width:
            raise ValueError(f"the text is {self.text.width} wide, but the U-Net attends to {self.unet.context_width}")
        if self.unet.vector_width not in (None, self.text.pooled):
            raise ValueError(
                f"the pooled text has width {self.text.pooled}, but the U-Net's vector has {self.unet.vector_width}"
            )
        if (self.guidance_range is None) != (self.unet.guidance_width is None):
            raise ValueError(
                f"a U-Net that takes guidance as an input says for which range, and no other: guidance_range is "
                f"{self.guidance_range}, unet.guidance_width {self.unet.guidance_width}"
            )
        if self.classes and self.unet.in_channels != self.unet.out_channels + len(self.classes):
            raise ValueError(
                f"a map of {len(self.classes)} classes and {self.unet.out_channels} latent channels make "
                f"{self.unet.out_channels + len(self.classes)} channels, but the U-Net takes {self.unet.in_channels}"
            )
        if not self.classes and self.unet.in_channels not in (self.unet.out_channels, 2 * self.unet.out_channels + 1):
            raise ValueError(
                f"the U-Net takes {self.unet.in_channels} channels: known are {self.unet.out_channels} of latents, and "
                f"{2 * self.unet.out_channels + 1} with a mask and the latents of what it leaves (inpainting)"
            )
        return self


class LatentGenerator(nn.Module):
    """Text features to a VAE latent [batch, channels, height / factor, width / factor]."""

    def __init__(self, denoiser: Denoiser, config: GeneratorConfig) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.config = config

    @classmethod
    def of(cls, network: UNet, config: GeneratorConfig) -> LatentGenerator:
        """The generator of a network that was trained as `config` says."""
        denoiser = Denoiser(network, config.schedule, config.prediction, config.variance, config.guidance_range)
        denoiser.times = "exact" if config.convention is None else config.convention.times
        return cls(denoiser, config)

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> LatentGenerator:
        """The generator of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or the file is damaged.
        """
        config = GeneratorConfig.model_validate(arguments)
        network = tensors.load(lambda: UNet(config.unet), folder / UNET)
        return cls.of(network, config)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / UNET, self.denoiser.network.state_dict(), dtype)
        return self.config.model_dump(mode="json"), [UNET]

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The U-Net, and what adapter files call its modules."""
        network = self.denoiser.network
        return {"unet": Adaptable(network, keys.UNET.published(network))}

    @property
    def needs(self) -> TextSpec:
        text = self.config.text
        return text if self.config.unet.vector_width else replace(text, pooled=None)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the numbers in a layout mean; empty if this generator takes none."""
        return self.config.classes

    @property
    def inpaints(self) -> bool:
        """Whether it was trained to fill a masked picture, which it then needs: `Init` with `mask` and `known`."""
        return not self.classes and self.config.unet.in_channels > self.config.unet.out_channels

    @property
    def heeds_negative(self) -> bool:
        """Whether sampling is led away from `null`; a network that takes guidance as an input has that built in."""
        return self.config.guidance_range is None

    @property
    def produces(self) -> RepresentationSpec:
        shape = (self.config.unet.out_channels, None, None)
        return RepresentationSpec("latent", shape, self.config.latent_space)

    def shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """The latent's shape for an image of (height, width) pixels, by default the resolution trained at.

        Raises:
            ValueError: an impossible size; the message names the nearest possible one.
        """
        height, width = size or self.config.resolution
        multiple = self.config.factor * self.config.unet.downsampling
        check_size(height, width, multiple)
        return self.config.unet.out_channels, height // self.config.factor, width // self.config.factor

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
        """Latents for text features [batch, ...], guided away from `null`.

        layout [batch, height, width]: the class of every pixel, for a generator that has `classes`; None leaves it
        open. Guidance leads away from `null` in the same layout. The spacing "published" is that of a published
        checkpoint's own scheduler.

        Raises:
            ValueError: an impossible size, a layout that does not fit, no picture for a generator that `inpaints`, or
                sampling settings that do not exist.
        """
        shape = (text.tokens.shape[0], *self.shape(size))
        concat = self._picture(init, shape) if self.inpaints else self._concat(layout, shape)
        if self.inpaints and init is not None:  # it sees for itself what to keep
            init = None if init.strength == 1 else replace(init, mask=None)
        data = sample(
            self.denoiser,
            replace(self._conditioning(text), concat=concat),
            self._conditioning(null),
            noise,
            sampling,
            shape,
            stage="latent",
            init=init,
            observe=observe,
            grid=grid_of(self.config.convention, self.config.schedule, sampling),
        )
        return Representation(data, "latent", self.config.latent_space)

    def _picture(self, init: Init | None, shape: tuple[int, ...]) -> Tensor:
        """What the network is shown of the picture to fill: the mask, and the latents of what the mask leaves."""
        if init is None or init.mask is None or init.known is None:
            raise ValueError("this generator was trained for inpainting: give image= and mask=")
        batch, channels, *size = shape
        return torch.cat([init.mask.expand(batch, 1, *size), init.known.expand(batch, channels, *size)], dim=1)

    def _conditioning(self, text: TextFeatures) -> Conditioning:
        vector = text.pooled if self.config.unet.vector_width else None
        return Conditioning(tokens=text.tokens, mask=text.mask, vector=vector)

    def _concat(self, layout: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        """The layout's channels at the latent's size; zeros if it is left open."""
        batch, _, height, width = shape
        if not self.classes:
            if layout is not None:
                raise ValueError("this generator was trained without semantic maps: leave out layout=")
            return None
        if layout is None:
            return torch.zeros(batch, len(self.classes), height, width)
        pixels = (batch, height * self.config.factor, width * self.config.factor)
        if tuple(layout.shape) != pixels:
            raise ValueError(f"the layout has shape {list(layout.shape)}, but these pictures need {list(pixels)}")
        return map_channels(layout, len(self.classes), self.config.factor)


AT_ONCE = 4 * 96 * 96  # latent places that are encoded or decoded together: memory stays that of a few pictures


class VaeDecoder(nn.Module):
    """A VAE's latents, in the units diffusion works in, to images; with the encoder, also the way back.

    `tile`, the side of a tile in latents (64 is usual), decodes big pictures in parts (`zoo.stable_diffusion.tiling`),
    in little memory and with slightly other colours; None decodes each as a whole.
    """

    def __init__(self, vae: VAE, tile: int | None = None) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.tile = tile
        self.spaces: Mapping[str, str] = {}  # what the file says that it defines

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> VaeDecoder:
        """The decoder of a model folder, or of one that a training run exported.

        Raises:
            ValueError: the arguments or the tensors do not fit, or the file is damaged.
        """
        config = VAEConfig.model_validate(arguments)
        found = cls(tensors.load(lambda: VAE(config), folder / VAE_FILE))
        found.spaces = tensors.spaces(folder / VAE_FILE)
        return found

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / VAE_FILE, self.vae.state_dict(), dtype, tensors.naming({"latents": self.fingerprint}))
        return self.vae.config.model_dump(mode="json"), [VAE_FILE]

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The autoencoder, and what diffusers calls its modules."""
        return {"vae": Adaptable(self.vae, keys.VAE.published(self.vae))}

    @cached_property
    def needs(self) -> RepresentationSpec:
        """The latent space is the encoder's: decoders trained further for one encoder serve the same generators."""
        return RepresentationSpec("latent", (self.vae.config.latent_channels, None, None), f"vae-{self.fingerprint}")

    @cached_property
    def fingerprint(self) -> str:
        """Names what makes latents: see `zoo.tensors.fingerprint`."""
        config = self.vae.config
        inward = {n: t for n, t in self.vae.state_dict().items() if n.startswith(("encoder.", "quant_conv."))}
        units = torch.tensor([config.scaling_factor, config.shift_factor])
        return self.spaces.get("latents") or tensors.fingerprint(inward | {"units": units})

    @property
    def needs_text(self) -> TextSpec | None:
        return None

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
        """Images [batch, 3, height, width] in [0, 1], float32; text and noise are not looked at."""
        weight = next(self.vae.parameters())
        latents = representation.data.to(weight.device, weight.dtype)
        images = in_slices(self._decode, self.vae.from_diffusion(latents), AT_ONCE)
        return ((images.float() + 1) / 2).clamp(0, 1)

    def _decode(self, latents: Tensor) -> Tensor:
        if self.tile is None or max(latents.shape[-2:]) <= self.tile:
            return self.vae.decode(latents)
        return in_tiles(self.vae.decode, latents, self.tile, self.vae.downsampling)

    def encode(self, images: Tensor) -> Representation:
        """Images [batch, 3, height, width] in [0, 1] to latents: the mean of their posterior.

        Raises:
            ValueError: height or width do not divide by the VAE's downsampling.
        """
        weight = next(self.vae.parameters())
        scaled = (images * 2 - 1).to(weight.device, weight.dtype)
        means = in_slices(lambda some: self.vae.encode(some).mean, scaled, AT_ONCE * self.vae.downsampling**2)
        return Representation(self.vae.to_diffusion(means), "latent", self.needs.space)
