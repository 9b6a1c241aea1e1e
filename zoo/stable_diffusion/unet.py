"""The U-Net of latent diffusion, which looks at the text by cross-attention (arXiv 2112.10752).

    stem        3x3 convolution
    down        per level: residual blocks, each followed by a transformer where the level has attention; downsample
    middle      residual block, transformer, residual block
    up          per level, coarsest first: one residual block more, each after joining a skip of `down`; upsample
    head        GroupNorm, SiLU, 3x3 convolution

The time becomes one vector, computed once and added in every residual block; the text is attended to in every
transformer. Other inputs come by more ports: channels joined with the noisy input (inpainting, depth, upscaling), and
a vector, a noise level, or the guidance scale of a distilled network (arXiv 2310.04378), all joined with the time.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from zoo.diffusion.inputs import check_inputs
from zoo.interface import Conditioning
from zoo.nn.embeddings import VectorEmbedding, sinusoidal
from zoo.nn.resampling import Downsample, Upsample
from zoo.nn.resnet import ResidualBlock
from zoo.nn.transformer import SpatialTransformer


class UNetConfig(BaseModel):
    """The shape of a U-Net; the defaults are Stable Diffusion 1's (860M parameters). "Per level" runs finest first.

    Where a number or one number per level is allowed, a single one holds for all levels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 4  # of the noisy input and the concatenated channels together
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # per level; each further level halves the size
    blocks_per_level: int | tuple[int, ...] = 2  # residual blocks of a level going down; going up it has one more
    attention: tuple[bool, ...] = (True, True, True, False)  # per level: has it transformers?
    depth: int | tuple[int, ...] = 1  # blocks of a level's transformers; the middle takes the last level's
    heads: int | tuple[int, ...] = 8  # attention heads per level, unless head_width is given
    head_width: int | None = None  # channels of one head
    context_width: int = 768  # of the text tokens
    linear_projection: bool = False  # around the transformers: linear layers, or 1x1 convolutions
    only_cross_attention: bool | tuple[bool, ...] = False  # per level: both attentions look at the text
    upcast_attention: bool = False  # attention scores in float32 also when computing in half precision
    vector_width: int | None = None  # of the vector joined with the time, if there is one
    augmentation_levels: int | None = None  # learned vectors for that many levels of `Conditioning.augmentation`
    guidance_width: int | None = None  # of the waves of `Conditioning.guidance`, if it is an input
    groups: int = 32  # of every GroupNorm
    eps: float = 1e-5  # of every GroupNorm outside the transformers
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        levels = len(self.channels)
        for name in ("blocks_per_level", "attention", "depth", "heads", "only_cross_attention"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name}={value} has {len(value)} entries, but channels={self.channels} has {levels}")
        for level, channels in enumerate(self.channels):
            if channels % self.groups:
                raise ValueError(f"channels={self.channels} must all be multiples of groups={self.groups}")
            attends = self.attention[level] or level == levels - 1  # the middle works at the last level's width
            if attends and channels % (self.head_width or self.at(self.heads, level)):
                raise ValueError(
                    f"the {channels} channels of level {level} do not divide into heads: "
                    f"heads={self.heads}, head_width={self.head_width}"
                )
        return self

    @staticmethod
    def at(per_level: int | tuple[int, ...], level: int) -> int:
        """The entry of an option for a level."""
        return per_level[level] if isinstance(per_level, tuple) else per_level

    @property
    def downsampling(self) -> int:
        """Height and width of the input must be multiples of this."""
        return int(2 ** (len(self.channels) - 1))

    def residual(self, in_channels: int, out_channels: int) -> ResidualBlock:
        """A residual block with this U-Net's norms and time port."""
        time_width = 4 * self.channels[0]
        return ResidualBlock(in_channels, out_channels, groups=self.groups, eps=self.eps, time_width=time_width)

    def transformer(self, level: int, *, only_cross: bool) -> SpatialTransformer:
        """A transformer of a level's width, heads and depth."""
        channels = self.channels[level]
        return SpatialTransformer(
            channels,
            heads=channels // self.head_width if self.head_width else self.at(self.heads, level),
            depth=self.at(self.depth, level),
            context_width=self.context_width,
            groups=self.groups,
            linear_projection=self.linear_projection,
            only_cross=only_cross,
            upcast=self.upcast_attention,
        )


class UNet(nn.Module):
    """Noisy latents [batch, channels, height, width] and times to the network's output [batch, out_channels, ..]."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.channels, len(config.channels) - 1
        time_width = 4 * widths[0]

        self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time = VectorEmbedding(widths[0], time_width)
        self.guidance = None if config.guidance_width is None else GuidanceEmbedding(config.guidance_width, widths[0])
        self.vector = None if config.vector_width is None else VectorEmbedding(config.vector_width, time_width)
        self.augmentation = (
            None if config.augmentation_levels is None else nn.Embedding(config.augmentation_levels, time_width)
        )

        self.down = nn.ModuleList()
        channels, skips = widths[0], [widths[0]]  # skips: the widths of what `down` hands to `up`, in order
        for level, width in enumerate(widths):
            blocks = config.at(config.blocks_per_level, level)
            resample = Downsample(width) if level < last else None
            self.down.append(DownLevel(config, level, [channels] + [width] * (blocks - 1), resample))
            skips += [width] * (blocks if resample is None else blocks + 1)
            channels = width

        self.middle = Middle(config)

        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            width, blocks = widths[level], config.at(config.blocks_per_level, level) + 1
            inputs = [(channels if block == 0 else width) + skips.pop() for block in range(blocks)]
            self.up.append(UpLevel(config, level, inputs, Upsample(width) if level > 0 else None))
            channels = width

        self.norm = nn.GroupNorm(config.groups, widths[0], config.eps)
        self.head = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """One evaluation, in the precision of the parameters; the output has the precision of `x`.

        Args:
            x: noisy latents [batch, channels, height, width].
            t: times [batch] in [0, 1000), integer or fractional.
            conditioning: `tokens` always; `concat`, `vector`, `augmentation` and `guidance` if this network was built
                for them.

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
            vector=c.vector_width,
            augmentation=self.augmentation is not None,
            guidance=self.guidance is not None,
        )
        dtype = self.stem.weight.dtype
        assert conditioning.tokens is not None  # checked
        text, mask = conditioning.tokens.to(dtype), conditioning.mask
        h = x if conditioning.concat is None else torch.cat([x, conditioning.concat.to(x.dtype)], dim=1)

        time = silu(self._embed(t, conditioning, dtype))
        h = self.stem(h.to(dtype))
        skips = [h]
        for level in self.down:
            h = level(h, skips, time, text, mask)
        h = self.middle(h, time, text, mask)
        for level in self.up:
            h = level(h, skips, time, text, mask)
        return self.head(silu(self.norm(h))).to(x.dtype)

    def _embed(self, t: Tensor, conditioning: Conditioning, dtype: torch.dtype) -> Tensor:
        """The time, and what is joined with it, as one vector [batch, time_width]."""
        c = self.config
        waves = sinusoidal(t, c.channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift)
        if self.guidance is not None and conditioning.guidance is not None:
            waves = waves + self.guidance(conditioning.guidance)
        time: Tensor = self.time(waves.to(dtype))
        if self.vector is not None and conditioning.vector is not None:
            time = time + self.vector(conditioning.vector.to(dtype))
        if self.augmentation is not None and conditioning.augmentation is not None:
            levels = self.augmentation.num_embeddings
            time = time + self.augmentation((conditioning.augmentation * levels).round().long().clamp(0, levels - 1))
        return time


class GuidanceEmbedding(nn.Module):
    """Guidance scales [batch], 1 being off, as what is added to the waves of the time: [batch, out_width].

    Fourier features of guidance - 1, the paper's w, through one matrix (arXiv 2310.04378, section 4.3). It begins at
    zero: a network that was trained without this port gives what it gave, whatever the guidance.
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width, out_width, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, guidance: Tensor) -> Tensor:
        waves = sinusoidal(1000 * (guidance - 1), self.width, flip_sin_to_cos=False, freq_shift=1.0)
        return self.project(waves.to(self.project.weight.dtype))


class Level(nn.Module):
    """What one size is made of: residual blocks, their transformers if it has attention, the way to the next size."""

    def __init__(
        self, config: UNetConfig, level: int, in_channels: list[int], resample: Downsample | Upsample | None
    ) -> None:
        super().__init__()
        only_cross = config.only_cross_attention
        only_cross = only_cross[level] if isinstance(only_cross, tuple) else only_cross
        self.blocks = nn.ModuleList(config.residual(channels, config.channels[level]) for channels in in_channels)
        self.transformers = nn.ModuleList(
            config.transformer(level, only_cross=only_cross) for _ in in_channels if config.attention[level]
        )
        self.resample = resample


class DownLevel(Level):
    """Leaves everything it makes in `skips`."""

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        for block, transformer in zip_longest(self.blocks, self.transformers):
            h = block(h, time)
            h = h if transformer is None else transformer(h, text, mask)
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h)
            skips.append(h)
        return h


class UpLevel(Level):
    """Takes one of `skips` into every residual block, the last made first."""

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        for block, transformer in zip_longest(self.blocks, self.transformers):
            h = block(torch.cat([h, skips.pop()], dim=1), time)
            h = h if transformer is None else transformer(h, text, mask)
        return h if self.resample is None else self.resample(h)


class Middle(nn.Module):
    """The coarsest part: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        last = config.channels[-1]
        self.first = config.residual(last, last)
        self.transformer = config.transformer(len(config.channels) - 1, only_cross=False)
        self.second = config.residual(last, last)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return self.second(self.transformer(self.first(x, time), text, mask), time)
