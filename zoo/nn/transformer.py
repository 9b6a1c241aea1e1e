"""The transformer of latent diffusion's U-Net: pixels attend to each other, then to the text (arXiv 2112.10752).

The paper's table lists self-attention, MLP, cross-attention; its code, and every published model, runs self-attention,
cross-attention, MLP, which is done here.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.nn.attention import Attention


class GatedFeedForward(nn.Module):
    """GEGLU (arXiv 2002.05202): half of a widened projection gates the other half; [.., width] to [.., width]."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * factor * width)
        self.out = nn.Linear(factor * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.widen(x).chunk(2, dim=-1)
        return self.out(hidden * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Attention, cross-attention and feed-forward, each after a LayerNorm and added to its input.

    Tokens [batch, n, width] and a context [batch, m, context_width]. With `only_cross`, the first attention looks at
    the context too, as in Stable Diffusion's upscaler, where self-attention would be too large.
    """

    def __init__(
        self, width: int, *, heads: int, context_width: int, only_cross: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        self.only_cross = only_cross
        head = width // heads
        source = context_width if only_cross else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, head_width=head, context_width=source, upcast=upcast)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(
            width, heads=heads, head_width=head, context_width=context_width, upcast=upcast
        )
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        first = self.attention(self.norm1(x), context, mask) if self.only_cross else self.attention(self.norm1(x))
        x = x + first
        x = x + self.cross_attention(self.norm2(x), context, mask)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map [batch, channels, height, width], added to it.

    The projections before and after the blocks are 1x1 convolutions, or linear layers (`linear_projection`): the same
    mathematics under two shapes of weight, so published models of both kinds load as they are.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        context_width: int,
        groups: int,
        linear_projection: bool = False,
        only_cross: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, context_width=context_width, only_cross=only_cross, upcast=upcast)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        if not self.linear_projection:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.linear_projection:
            h = self.proj_in(h)
        for block in self.blocks:
            h = block(h, context, mask)
        if self.linear_projection:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        if not self.linear_projection:
            h = self.proj_out(h)
        return x + h
