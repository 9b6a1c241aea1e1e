"""The KL autoencoder of latent diffusion (arXiv 2112.10752): images to a smaller, smoother space and back.

    encode [batch, 3, height, width] in [-1, 1] -> Posterior over latents [batch, latent_channels, height/f, width/f]
    decode latents -> images in about [-1, 1]

Latents here are as the encoder makes them. Diffusion works on latents of about unit variance: `to_diffusion` and
`from_diffusion` shift and scale between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from zoo.nn.attention import ImageAttention
from zoo.nn.resampling import Downsample, Upsample
from zoo.nn.resnet import ResidualBlock

EPS = 1e-6  # of every GroupNorm


class VAEConfig(BaseModel):
    """The shape of an autoencoder; the defaults are Stable Diffusion's (8x smaller, 4 channels, 84M parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)  # per level, finest first; each further level halves the size
    blocks_per_level: int = 2  # residual blocks of an encoder level; the decoder has one more
    groups: int = 32  # of every GroupNorm
    middle_attention: bool = True
    quant_conv: bool = True  # 1x1 convolution between encoder and posterior
    post_quant_conv: bool = True  # 1x1 convolution between latent and decoder
    scaling_factor: float = 0.18215  # diffusion sees (latent - shift_factor) * scaling_factor
    shift_factor: float = 0.0

    @model_validator(mode="after")
    def _divisible(self) -> VAEConfig:
        if not self.channels or any(c % self.groups for c in self.channels):
            raise ValueError(f"channels {self.channels} must all be multiples of groups={self.groups}")
        return self

    @property
    def downsampling(self) -> int:
        """How many times smaller than the image a latent is, per side."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal distribution over latents: mean and logvar, both [batch, channels, height, width]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + standard deviation * noise, with standard normal `noise` of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, in nats, summed over each image's latent: [batch]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class VAE(nn.Module):
    """Encoder and decoder with the two 1x1 convolutions between them."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.post_quant_conv else nn.Identity()
        self.decoder = Decoder(config)

    @property
    def downsampling(self) -> int:
        return self.config.downsampling

    def encode(self, images: Tensor) -> Posterior:
        """Images [batch, in_channels, height, width] in [-1, 1] to the posterior over their latents.

        Raises:
            ValueError: if the channels are wrong or a side is no multiple of `downsampling`.
        """
        factor, channels = self.downsampling, self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"images have shape {list(images.shape)}; this VAE encodes [batch, {channels}, height, width] with "
                f"height and width multiples of {factor}: crop, pad or resize them first"
            )
        mean, logvar = self.quant_conv(self.encoder(images)).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [batch, latent_channels, h, w], unscaled, to images [batch, out_channels, h * f, w * f].

        Raises:
            ValueError: if the latents have another number of channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"latents have shape {list(latents.shape)}; this VAE decodes [batch, {channels}, height, width]"
            )
        return self.decoder(self.post_quant_conv(latents))

    def to_diffusion(self, latents: Tensor) -> Tensor:
        """The encoder's latents in the units that diffusion works in."""
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def from_diffusion(self, latents: Tensor) -> Tensor:
        """The inverse of `to_diffusion`."""
        return latents / self.config.scaling_factor + self.config.shift_factor

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruct images through the posterior's mean, or through a sample of it: (reconstruction, posterior)."""
        posterior = self.encode(images)
        return self.decode(posterior.mean if noise is None else posterior.sample(noise)), posterior


class Encoder(nn.Module):
    """Images to 2 * latent_channels feature maps, `downsampling` times smaller."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.stem = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.levels = nn.ModuleList()
        channels = first
        for level, out in enumerate(config.channels):
            resample = Downsample(out, padding="end") if level < len(config.channels) - 1 else nn.Identity()
            self.levels.append(Level(channels, out, config.blocks_per_level, config.groups, resample))
            channels = out
        self.middle = Middle(last, config)
        self.norm = nn.GroupNorm(config.groups, last, EPS)
        self.head = nn.Conv2d(last, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level in self.levels:
            x = level(x)
        return self.head(silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Latents to images; its levels run from the coarsest to the finest."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.stem = nn.Conv2d(config.latent_channels, last, 3, padding=1)
        self.middle = Middle(last, config)
        self.levels = nn.ModuleList()
        channels = last
        for level, out in reversed(list(enumerate(config.channels))):
            resample = Upsample(out) if level > 0 else nn.Identity()
            self.levels.append(Level(channels, out, config.blocks_per_level + 1, config.groups, resample))
            channels = out
        self.norm = nn.GroupNorm(config.groups, first, EPS)
        self.head = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.stem(z))
        for level in self.levels:
            x = level(x)
        return self.head(silu(self.norm(x)))


class Level(nn.Module):
    """Residual blocks at one size, then the step to the next size."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(in_channels if i == 0 else out_channels, out_channels, groups=groups, eps=EPS)
                for i in range(blocks)
            )
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class Middle(nn.Module):
    """Two residual blocks at the coarsest size, with one head of self-attention between them."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels, groups=config.groups, eps=EPS)
        self.attention = (
            ImageAttention(channels, heads=1, groups=config.groups, eps=EPS)
            if config.middle_attention
            else nn.Identity()
        )
        self.second = ResidualBlock(channels, channels, groups=config.groups, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.attention(self.first(x)))
