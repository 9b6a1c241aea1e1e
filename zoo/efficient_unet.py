"""The Efficient U-Net of Imagen's super-resolution (arXiv 2205.11487, appendix B.1, figures A.27 to A.30).

    stem      3x3 convolution at full size
    down      per level a DBlock: strided 3x3 convolution, residual blocks, attention
    up        per level, coarsest first, a UBlock: the skip of the DBlock of its size, residual blocks, attention,
              upsampling 3x3 convolution
    head      GroupNorm, SiLU, 3x3 convolution at full size

Against the U-Nets of `zoo.adm` and latent diffusion, a level halves the size *before* its blocks and doubles it after
them, so that already the finest level works at half size; most blocks stand where pictures are small; there is one skip
a level and no middle. Where the paper leaves a choice:

- Figure A.28 draws "CombineEmbs" (time, pooled text, augmentation level) once a level, between its convolution and its
  blocks; the tables of appendix F say `use_scale_shift_norm`, which belongs to a residual block's second norm. Here
  the embeddings become one vector, which scales and shifts in every block.
- "Scaling the skip connections by 1/sqrt 2" may mean those within residual blocks or those of the U: `skip_scale`.
- The coarsest UBlock takes no skip: it would be its own input.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from zoo.diffusion.inputs import check_inputs
from zoo.interface import Conditioning
from zoo.nn.embeddings import VectorEmbedding, sinusoidal
from zoo.nn.resampling import Upsample
from zoo.nn.resnet import ResidualBlock
from zoo.nn.text import TextAttention, TextPooling

EPS = 1e-5  # of every norm
SkipScale = Literal["residual", "concat", "none"]


class EfficientUNetConfig(BaseModel):
    """The shape of an Efficient U-Net; the defaults are Imagen's from 64 to 256 pixels. "Per level" runs finest first.

    `skip_scale` names what is multiplied by 1/sqrt 2: "residual" the sum at the end of a residual block, which keeps
    the variance of two independent branches (arXiv 2011.13456, to which the paper points; so does DeepFloyd IF);
    "concat" the skip that a UBlock joins, which halves the skip's variance (public replicas of Imagen); or "none".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 6  # of the noisy input and the concatenated picture together
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 1024)  # per level; level i works at 1 / 2^(i + 1) of the input's size
    blocks_per_level: tuple[PositiveInt, ...] = (2, 4, 8, 8)  # residual blocks of a DBlock, and as many of its UBlock
    self_attention: tuple[bool, ...] = (False, False, False, True)  # per level: pixels look at each other
    text_attention: tuple[bool, ...] = (False, False, False, True)  # per level: pixels look at the text
    heads: int = 8  # of every attention, which is twice as wide as its level
    context_width: int | None = 4096  # of the text tokens; None for a network without text
    text_channels: int = 1024  # to which the tokens are projected before any use
    augmentation: bool = True  # is the noise level of the concatenated picture an input?
    skip_scale: SkipScale = "residual"
    dropout: float = 0.0  # in the residual blocks
    groups: int = 32  # of every GroupNorm

    @model_validator(mode="after")
    def _fits(self) -> EfficientUNetConfig:
        levels = len(self.channels)
        for name in ("blocks_per_level", "self_attention", "text_attention"):
            value = getattr(self, name)
            if len(value) != levels:
                raise ValueError(f"{name}={value} has {len(value)} entries, but channels={self.channels} has {levels}")
        for level, channels in enumerate(self.channels):
            if channels % self.groups:
                raise ValueError(f"channels={self.channels} must all be multiples of groups={self.groups}")
            if self.attends(level) and 2 * channels % self.heads:
                raise ValueError(
                    f"attention of level {level} is 2 * {channels} wide, which heads={self.heads} does not divide"
                )
        if self.context_width is None and any(self.text_attention):
            raise ValueError(
                f"text_attention={self.text_attention} needs a context_width; without text it is False everywhere"
            )
        if self.context_width is not None and self.text_channels % self.heads:
            raise ValueError(f"text_channels={self.text_channels} must be a multiple of heads={self.heads}")
        return self

    def attends(self, level: int) -> bool:
        """Has a level attention of any kind?"""
        return self.self_attention[level] or self.text_attention[level]

    @property
    def downsampling(self) -> int:
        """Height and width of the input must be multiples of this."""
        return int(2 ** len(self.channels))

    def blocks(self, level: int, in_channels: int) -> nn.ModuleList:
        """The residual blocks of a level, the first of which takes `in_channels`."""
        channels = self.channels[level]
        return nn.ModuleList(
            ResidualBlock(
                in_channels if block == 0 else channels,
                channels,
                groups=self.groups,
                eps=EPS,
                time_width=4 * self.channels[0],
                scale_shift=True,
                scale=0.5**0.5 if self.skip_scale == "residual" else 1.0,
                dropout=self.dropout,
            )
            for block in range(self.blocks_per_level[level])
        )

    def attention(self, level: int) -> TextAttention | None:
        """The attention of a level, if it has one."""
        if not self.attends(level):
            return None
        channels = self.channels[level]
        return TextAttention(
            channels,
            heads=self.heads,
            head_width=2 * channels // self.heads,
            context_width=self.text_channels if self.text_attention[level] else None,
            self_attention=self.self_attention[level],
            groups=self.groups,
            eps=EPS,
        )


SR_256 = EfficientUNetConfig()  # 64 to 256 pixels; the paper counts 600M parameters
SR_1024 = EfficientUNetConfig(self_attention=(False, False, False, False))  # 256 to 1024 pixels; the paper: 400M


class EfficientUNet(nn.Module):
    """Noisy images [batch, channels, height, width] and times to the network's output [batch, out_channels, ..]."""

    def __init__(self, config: EfficientUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, context_width = config.channels, config.context_width
        time_width = 4 * widths[0]

        self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time = VectorEmbedding(widths[0], time_width)
        self.augmentation = VectorEmbedding(widths[0], time_width) if config.augmentation else None
        self.text = self.pool = None
        if context_width is not None:
            self.text = nn.Sequential(nn.LayerNorm(context_width, EPS), nn.Linear(context_width, config.text_channels))
            self.pool = TextPooling(config.text_channels, time_width, config.heads)

        levels = range(len(widths))
        self.down = nn.ModuleList(DBlock(config, level, widths[max(level - 1, 0)]) for level in levels)
        self.up = nn.ModuleList(UBlock(config, level) for level in reversed(levels))

        self.norm = nn.GroupNorm(config.groups, widths[0], EPS)
        self.head = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """One evaluation, in the precision of the parameters; the output has the precision of `x`.

        Args:
            x: noisy images [batch, channels, height, width].
            t: times [batch] in [0, 1000), integer or fractional.
            conditioning: `tokens` [batch, length, context_width] with their `mask`, and `augmentation` in [0, 1], if
                this network was built for them; `concat`, the low-resolution picture, which the caller has enlarged to
                the size of `x` and noised. Without self-attention, a text that is masked out entirely counts as the
                mean of its tokens.

        Raises:
            ValueError: if an input is missing, not asked for, or of the wrong shape.
        """
        c = self.config
        check_inputs(
            x,
            t,
            conditioning,
            downsampling=c.downsampling,
            in_channels=c.in_channels,
            context_width=c.context_width,
            augmentation=c.augmentation,
            resize="; enlarge the low-resolution picture to the size of the input first",
        )
        dtype = self.stem.weight.dtype
        h = x if conditioning.concat is None else torch.cat([x, conditioning.concat.to(x.dtype)], dim=1)
        text, mask = None, conditioning.mask
        if self.text is not None and conditioning.tokens is not None:
            text = self.text(conditioning.tokens.to(dtype))

        time = silu(self._embed(t, conditioning, text, dtype))
        h = self.stem(h.to(dtype))
        skips = []
        for block in self.down:
            h = block(h, time, text, mask)
            skips.append(h)
        skips[-1] = None
        for block in self.up:
            h = block(h, skips.pop(), time, text, mask)
        return self.head(silu(self.norm(h))).to(x.dtype)

    def _embed(self, t: Tensor, conditioning: Conditioning, text: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The time, and what is joined with it, as one vector [batch, time_width]."""
        width = self.config.channels[0]
        time: Tensor = self.time(sinusoidal(t, width).to(dtype))
        if self.augmentation is not None and conditioning.augmentation is not None:
            level = sinusoidal(1000 * conditioning.augmentation.float(), width)
            time = time + self.augmentation(level.to(dtype))
        if self.pool is not None and text is not None:
            time = time + self.pool(text, conditioning.mask)
        return time


class DBlock(nn.Module):
    """Halves the size, then works there: [batch, in_channels, 2h, 2w] to [batch, channels, h, w] (figure A.28)."""

    def __init__(self, config: EfficientUNetConfig, level: int, in_channels: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.blocks = config.blocks(level, channels)
        self.attention = config.attention(level)

    def forward(self, h: Tensor, time: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.conv(h)
        for block in self.blocks:
            h = block(h, time)
        return h if self.attention is None else self.attention(h, text, mask)


class UBlock(nn.Module):
    """Joins a skip, works, then doubles the size: [batch, .., h, w] to [batch, channels, 2h, 2w] (figure A.29)."""

    def __init__(self, config: EfficientUNetConfig, level: int) -> None:
        super().__init__()
        channels, coarser = config.channels[level], config.channels[level + 1 : level + 2]
        self.skip_scale = 0.5**0.5 if config.skip_scale == "concat" else 1.0
        self.blocks = config.blocks(level, channels + sum(coarser))
        self.attention = config.attention(level)
        self.upsample = Upsample(channels)

    def forward(self, h: Tensor, skip: Tensor | None, time: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip if self.skip_scale == 1 else skip * self.skip_scale], dim=1)
        for block in self.blocks:
            h = block(h, time)
        h = h if self.attention is None else self.attention(h, text, mask)
        return self.upsample(h)
