"""DF-GAN's generator (arXiv 2008.05865), which in one pass makes a picture of noise and a sentence.

    stem        a linear layer: the noise as the coarsest feature map
    levels      coarsest first: upsample; a fusion block; attention to the tokens where the level has it
    head        leaky ReLU, 3x3 convolution, its channels as patches of pixels

In fusion blocks, affine maps that noise and sentence determine act before every nonlinearity, two in a row before each
convolution ("deep text-image fusion"). The paper's sentence is one vector; that levels may also attend to the words is
XMC-GAN's (arXiv 2101.04702) and GigaGAN's (arXiv 2303.05511) way to which colour belongs to which object.

The paper's tanh at the end is left out, as in StyleGAN2 (arXiv 1912.04958): most scenes are bright, so the first thing
that the discriminator teaches is "lighter", and a tanh that has gone to white has no gradient to come back with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from zoo.gan.levels import SLOPE, LevelsConfig
from zoo.interface import Conditioning


class FusionGeneratorConfig(LevelsConfig):
    """The shape of a generator; the defaults make pictures of 64x64 pixels."""

    channels: tuple[int, ...] = (64, 128, 192, 256)
    attention: tuple[bool, ...] = (False, True, True, False)
    noise_width: int = Field(100, ge=1)
    hidden_width: int = Field(128, ge=1)  # of the networks that make affine maps of noise and sentence


class FusionGenerator(nn.Module):
    """Noise [batch, noise_width] and text to pictures [batch, 3, size, size], meant for [-1, 1] but not kept to it."""

    def __init__(self, config: FusionGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels[::-1]
        self.sentence = config.pooling()
        self.stem = nn.Linear(config.noise_width, widths[0] * config.side**2)
        self.levels = nn.ModuleList(
            FusionLevel(config, level, config.channels[min(level + 1, len(widths) - 1)])
            for level in reversed(range(len(widths)))
        )
        self.head = nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)

    def forward(self, noise: Tensor, text: Conditioning) -> Tensor:
        """One pass; of `text` the tokens [batch, length, context_width] and their mask are read.

        Raises:
            ValueError: noise or text of the wrong shape.
        """
        if noise.ndim != 2 or noise.shape[1] != self.config.noise_width:
            raise ValueError(f"noise has shape {list(noise.shape)}; needed is [batch, {self.config.noise_width}]")
        tokens = self.config.check(text, len(noise))
        condition = torch.cat([noise, self.sentence(tokens, text.mask).to(noise.dtype)], dim=1)
        h = rearrange(self.stem(noise), "b (c h w) -> b c h w", h=self.config.side, w=self.config.side)
        for level in self.levels:
            h = level(h, condition, tokens, text.mask)
        patches, side = self.head(F.leaky_relu(h, SLOPE)), self.config.patch
        return rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=side, q=side)


class FusionLevel(nn.Module):
    """What one size is made of; all but the coarsest begin by doubling the size of what they are given."""

    def __init__(self, config: FusionGeneratorConfig, level: int, in_channels: int) -> None:
        super().__init__()
        upsample = level < len(config.channels) - 1
        condition_width = config.noise_width + config.sentence_width
        self.block = FusionBlock(in_channels, config.channels[level], condition_width, config.hidden_width, upsample)
        self.attention = config.looking(level)

    def forward(self, h: Tensor, condition: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        h = self.block(h, condition)
        return h if self.attention is None else self.attention(h, tokens, mask)


class FusionBlock(nn.Module):
    """Two 3x3 convolutions, each after a `Fusion`, beside a shortcut: [b, in, h, w] to [b, out, h, w] or [.., 2h, 2w].

    What acts on each place by itself does so before pixels are repeated, with the same result in a quarter of the time.
    """

    def __init__(
        self, in_channels: int, out_channels: int, condition_width: int, hidden_width: int, upsample: bool
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.fuse1 = Fusion(in_channels, condition_width, hidden_width)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.fuse2 = Fusion(out_channels, condition_width, hidden_width)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(self._doubled(self.fuse1(x, condition)))
        h = self.conv2(self.fuse2(h, condition))
        return h + self._doubled(x if self.shortcut is None else self.shortcut(x))

    def _doubled(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.upsample else x


class Fusion(nn.Module):
    """Twice an affine map that the condition determines, and a leaky ReLU."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.first = Affine(channels, condition_width, hidden_width)
        self.second = Affine(channels, condition_width, hidden_width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x, condition), SLOPE)
        return F.leaky_relu(self.second(x, condition), SLOPE)


class Affine(nn.Module):
    """A scale and a shift for each channel, made of the condition [batch, width]; begins as no change at all."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(condition_width, hidden_width)
        self.out = nn.Linear(hidden_width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made = self.out(F.relu(self.hidden(condition))).to(x.dtype)
        scale, shift = rearrange(made, "b (two c) -> two b c 1 1", two=2)
        return torch.addcmul(shift, x, 1 + scale)
