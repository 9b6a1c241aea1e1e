"""The U-Net over pixels that Imagen's base and DALL-E 2's decoder share: ADM (arXiv 2105.05233), told the text.

    stem        3x3 convolution
    down        per level: residual blocks, each followed by attention where the level has it; one block that halves
    middle      residual block, attention (if the coarsest level has it), residual block
    up          per level, coarsest first: one residual block more, each after joining a skip of `down`; one to double
    head        GroupNorm, nonlinearity, 3x3 convolution

The time scales and shifts the second norm of every residual block. The text comes by two paths (arXiv 2112.10741,
2205.11487): its tokens are further keys and values of the image's self-attention, and one vector pooled from them is
added to the time. Other inputs come by more ports: channels joined with the noisy input (the image to enlarge), its
noise level, and a vector added to the time (what `zoo.dalle2` makes of a CLIP embedding). Without attention and text it
is DALL-E 2's upsampler; with twice the output channels, the second half is a learned variance. With `patch`, it works
on squares of pixels folded into channels (arXiv 2301.11093).

Published networks of this kind are DeepFloyd IF and Karlo. Outputs agree with theirs, with two differences that their
pipelines never meet: where a mask is given, pooling leaves masked tokens out (theirs pools over all); and a text may
have as many tokens as the feature map has pixels (theirs then fails to widen the mask).
"""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from zoo.diffusion.inputs import check_inputs
from zoo.interface import Conditioning
from zoo.nn.activation import ACTIVATIONS, Activation
from zoo.nn.embeddings import VectorEmbedding, sinusoidal
from zoo.nn.resnet import Resample, ResidualBlock
from zoo.nn.text import TextAttention, TextNorm, TextPooling

EPS = 1e-5  # of every norm


class AdmUNetConfig(BaseModel):
    """The shape of an ADM U-Net; the defaults are of a base at 64x64, without text. "Per level" runs finest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 3  # of the noisy input and the concatenated channels together
    out_channels: int = 3  # twice those of the noisy input to learn a variance
    patch: int = Field(1, ge=1)  # side of the squares of pixels that the finest level sees as one
    channels: tuple[int, ...] = (320, 640, 960, 1280)  # per level; each further level halves the size
    blocks_per_level: int | tuple[int, ...] = 3  # residual blocks of a level going down; going up it has one more
    attention: tuple[bool, ...] = (False, True, True, True)  # per level; the middle does as the last level
    head_width: int = 64  # channels of one attention head
    context_width: int | None = None  # of the text tokens, if they are an input
    text_channels: int | None = None  # to which the tokens are projected for attention; None: as they are
    text_norm: TextNorm | None = None  # of the text in each attention: Imagen's "layer" or IF's "group"
    pool_heads: int | None = None  # of the attention that pools the tokens into a vector for the time, if it does
    vector: bool = False  # is a vector [batch, time_width] an input, added to the time?
    augmentation: bool = False  # is the noise level of the concatenated image an input?
    time_width: int | None = None  # of the time embedding; None: four times the finest level's channels
    scale_shift: bool = True  # the time scales and shifts the second norm; False: is added before it
    residual_scale: float = 1.0  # every residual block's output is multiplied by this
    activation: Activation = "silu"  # of the whole network
    dropout: float = 0.0  # in residual blocks
    groups: int = 32  # of every GroupNorm

    @model_validator(mode="after")
    def _fits(self) -> AdmUNetConfig:
        levels = len(self.channels)
        for name in ("blocks_per_level", "attention"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name}={value} has {len(value)} entries, but channels={self.channels} has {levels}")
        for channels, attends in zip(self.channels, self.attention, strict=True):
            if channels % self.groups:
                raise ValueError(f"channels={self.channels} must all be multiples of groups={self.groups}")
            if attends and channels % self.head_width:
                raise ValueError(f"channels={self.channels} do not divide into heads of head_width={self.head_width}")
        if self.context_width is None and (self.text_channels or self.text_norm or self.pool_heads):
            raise ValueError("text_channels, text_norm and pool_heads say what is done with text: set context_width")
        if not any(self.attention) and (self.text_channels or self.text_norm):
            raise ValueError("text_channels and text_norm prepare text for attention, but no level has attention")
        if self.context_width is not None and not any(self.attention) and self.pool_heads is None:
            raise ValueError("text reaches nothing: give a level attention, or set pool_heads")
        if self.text_norm == "group" and (self.attended_width or 0) % self.groups:
            raise ValueError(f"text of width {self.attended_width} must be a multiple of groups={self.groups}")
        if self.pool_heads is not None and (self.context_width or 0) % self.pool_heads:
            raise ValueError(f"context_width={self.context_width} does not divide into pool_heads={self.pool_heads}")
        return self

    @property
    def downsampling(self) -> int:
        """Height and width of the input must be multiples of this."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @property
    def embedding_width(self) -> int:
        """Width of the time embedding, and of `Conditioning.vector`."""
        return self.time_width or 4 * self.channels[0]

    @property
    def attended_width(self) -> int | None:
        """Width of the text as attention gets it; None without text."""
        return self.text_channels or self.context_width

    def blocks(self, level: int) -> int:
        """Residual blocks of a level going down."""
        return self.blocks_per_level[level] if isinstance(self.blocks_per_level, tuple) else self.blocks_per_level

    def residual(self, in_channels: int, out_channels: int, resample: Resample | None = None) -> ResidualBlock:
        """A residual block with this network's time port. Its last convolution starts at zero: it adds nothing."""
        block = ResidualBlock(
            in_channels,
            out_channels,
            groups=self.groups,
            eps=EPS,
            time_width=self.embedding_width,
            scale_shift=self.scale_shift,
            resample=resample,
            scale=self.residual_scale,
            dropout=self.dropout,
            activation=self.activation,
        )
        _zero(block.conv2)
        return block

    def attend(self, level: int) -> TextAttention:
        """A level's attention, of the feature map to itself and the text. Its last projection starts at zero too."""
        attention = TextAttention(
            self.channels[level],
            heads=self.channels[level] // self.head_width,
            head_width=self.head_width,
            context_width=self.attended_width,
            text_norm=self.text_norm,
            groups=self.groups,
            eps=EPS,
        )
        _zero(attention.to_out)
        return attention


class AdmUNet(nn.Module):
    """Noisy images [batch, channels, height, width] and times to the network's output [batch, out_channels, ..]."""

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.channels, len(config.channels) - 1
        time_width, context_width = config.embedding_width, config.context_width

        self.stem = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.time = VectorEmbedding(widths[0], time_width, config.activation)
        self.augmentation = VectorEmbedding(widths[0], time_width, config.activation) if config.augmentation else None
        self.pool = (
            TextPooling(context_width, time_width, heads=config.pool_heads)
            if context_width and config.pool_heads
            else None
        )
        self.text = nn.Linear(context_width, config.text_channels) if context_width and config.text_channels else None

        self.down = nn.ModuleList()
        channels, skips = widths[0], [widths[0]]  # skips: the widths of what `down` hands to `up`, in order
        for level, width in enumerate(widths):
            blocks = config.blocks(level)
            resample: Resample | None = "down" if level < last else None
            self.down.append(DownLevel(config, level, [channels] + [width] * (blocks - 1), resample))
            skips += [width] * (blocks if resample is None else blocks + 1)
            channels = width

        self.middle = Middle(config)

        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            width, blocks = widths[level], config.blocks(level) + 1
            inputs = [(channels if block == 0 else width) + skips.pop() for block in range(blocks)]
            self.up.append(UpLevel(config, level, inputs, "up" if level > 0 else None))
            channels = width

        self.norm = nn.GroupNorm(config.groups, widths[0], EPS)
        self.activation = ACTIVATIONS[config.activation]
        self.head = nn.Conv2d(widths[0], config.out_channels * config.patch**2, 3, padding=1)
        _zero(self.head)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """One evaluation, in the precision of the parameters; the output has the precision of `x`.

        Args:
            x: noisy images [batch, channels, height, width].
            t: times [batch] in [0, 1000), integer or fractional.
            conditioning: `tokens` [batch, length, context_width] and their `mask` (text that is masked out entirely is
                no text), `concat`, `vector` [batch, time_width] and `augmentation` in [0, 1]: those that this network
                was built for.

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
            vector=c.embedding_width if c.vector else None,
            augmentation=c.augmentation,
        )
        dtype = self.stem.weight.dtype
        h = x if conditioning.concat is None else torch.cat([x, conditioning.concat.to(x.dtype)], dim=1)
        time = self.activation(self._embed(t, conditioning, dtype))
        text = None if conditioning.tokens is None else conditioning.tokens.to(dtype)
        text = text if text is None or self.text is None else self.text(text)

        h = self.stem(F.pixel_unshuffle(h.to(dtype), c.patch))
        skips = [h]
        for level in self.down:
            h = level(h, skips, time, text, conditioning.mask)
        h = self.middle(h, time, text, conditioning.mask)
        for level in self.up:
            h = level(h, skips, time, text, conditioning.mask)
        return F.pixel_shuffle(self.head(self.activation(self.norm(h))), c.patch).to(x.dtype)

    def _embed(self, t: Tensor, conditioning: Conditioning, dtype: torch.dtype) -> Tensor:
        """The time, and what is joined with it, as one vector [batch, time_width]."""
        width = self.config.channels[0]
        time: Tensor = self.time(sinusoidal(t, width).to(dtype))
        if self.augmentation is not None and conditioning.augmentation is not None:
            time = time + self.augmentation(sinusoidal(1000 * conditioning.augmentation, width).to(dtype))
        if self.pool is not None and conditioning.tokens is not None:
            time = time + self.pool(conditioning.tokens.to(dtype), conditioning.mask)
        if conditioning.vector is not None:
            time = time + conditioning.vector.to(dtype)
        return time


class Level(nn.Module):
    """What one size is made of: residual blocks, their attention if it has any, the way to the next size."""

    def __init__(self, config: AdmUNetConfig, level: int, in_channels: list[int], resample: Resample | None) -> None:
        super().__init__()
        width = config.channels[level]
        self.blocks = nn.ModuleList(config.residual(channels, width) for channels in in_channels)
        self.attentions = nn.ModuleList(config.attend(level) for _ in in_channels if config.attention[level])
        self.resample = None if resample is None else config.residual(width, width, resample)


class DownLevel(Level):
    """Leaves everything it makes in `skips`."""

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        for block, attention in zip_longest(self.blocks, self.attentions):
            h = block(h, time)
            h = h if attention is None else attention(h, text, mask)
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h, time)
            skips.append(h)
        return h


class UpLevel(Level):
    """Takes one of `skips` into every residual block, the last made first."""

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        for block, attention in zip_longest(self.blocks, self.attentions):
            h = block(torch.cat([h, skips.pop()], dim=1), time)
            h = h if attention is None else attention(h, text, mask)
        return h if self.resample is None else self.resample(h, time)


class Middle(nn.Module):
    """The coarsest part: residual block, attention if the last level has it, residual block."""

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__()
        last = config.channels[-1]
        self.first = config.residual(last, last)
        self.attention = config.attend(-1) if config.attention[-1] else None
        self.second = config.residual(last, last)

    def forward(self, h: Tensor, time: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.first(h, time)
        h = h if self.attention is None else self.attention(h, text, mask)
        return self.second(h, time)


def _zero(layer: nn.Module) -> None:
    # As in ADM: a fresh network's branches add nothing, and it says 0.
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
