"""The one attention function of the zoo, and the two modules made of it.

Which kernel computes it is decided here, once, per device, dtype and need of gradients; parameters stay plain
`nn.Linear`, whatever kernel runs, so that adapters can name them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

CHUNK = 512  # queries whose scores one head holds at a time: these stay in a CPU core's cache
SMALL = 256 * 256  # scores of one head below which all heads and images go in one product

Beside: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Queries and what they saw, both [batch, heads, queries, width], to what they see with more to look at."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, upcast: bool = False) -> Tensor:
    """softmax(q k' / sqrt(width)) v, by the kernel that is fastest where it runs.

    That is the fused kernel, except in half precision on CPUs: there three plain operations are up to twice as fast
    (and their backward pass up to six times), in cache-sized pieces where the scores are large.

    Args:
        q: queries [batch, heads, queries, width].
        k: keys [batch, heads, keys, width].
        v: values [batch, heads, keys, width].
        mask: True (or nonzero) where a query may look, broadcastable to [batch, heads, queries, keys]; a query that
            may look nowhere gets the mean of all values.
        upcast: hold the scores in float32. Fused kernels always do; the plain operations do it when asked.
    """
    bias = None
    if mask is not None:
        # Half the lowest number rather than minus infinity: a fully masked row stays finite.
        lowest = torch.finfo(q.dtype).min / 2
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask.logical_not(), lowest)
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, bias)
    differentiate = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if differentiate or q.shape[2] * k.shape[2] <= SMALL:
        return _plain(q, k, v, bias, upcast)
    return _in_pieces(q, k, v, bias, upcast)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, upcast: bool) -> Tensor:
    """Attention in three separate operations, for any leading dimensions."""
    q = q * q.shape[-1] ** -0.5
    if upcast:
        with torch.autocast(q.device.type, enabled=False):
            scores = q.float() @ k.float().transpose(-1, -2)
    else:
        scores = q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, upcast: bool) -> Tensor:
    """`_plain` for one image, one head and `CHUNK` queries at a time."""
    batch, heads, queries, _ = q.shape
    bias = None if bias is None else bias.expand(batch, heads, queries, k.shape[2])
    out = torch.empty(batch, queries, heads, v.shape[-1], dtype=v.dtype).transpose(1, 2)
    for b in range(batch):
        for h in range(heads):
            for i in range(0, queries, CHUNK):
                rows = slice(i, i + CHUNK)
                piece = None if bias is None else bias[b, h, rows]
                out[b, h, rows] = _plain(q[b, h, rows], k[b, h], v[b, h], piece, upcast)
    return out


class Attention(nn.Module):
    """Multi-head attention of tokens [batch, n, width] to a context [batch, m, context_width], or to themselves."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        context_width: int | None = None,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.upcast = heads, upcast
        self.beside: list[Beside] = []  # adapters that have the queries look at more than the context
        inner, source = heads * head_width, width if context_width is None else context_width
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(source, inner, bias=bias)
        self.to_v = nn.Linear(source, inner, bias=bias)
        self.to_out = nn.Linear(inner, width)

    @property
    def sources(self) -> tuple[nn.Linear, nn.Linear]:
        """What makes keys and values of the context."""
        return self.to_k, self.to_v

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What `sources` make of tokens [batch, length, width]."""
        return self.to_k(context), self.to_v(context)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens like x [batch, n, width]; `mask` [batch, keys] is True for the keys that may be looked at."""
        source = x if context is None else context
        q, k, v = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        mask = None if mask is None else rearrange(mask, "b n -> b 1 1 n")
        seen = attend(q, k, v, mask, upcast=self.upcast)
        for look in self.beside:
            seen = look(q, seen)
        return self.to_out(rearrange(seen, "b h n d -> b n (h d)"))


class ImageAttention(nn.Module):
    """Self-attention of the pixels of a feature map [batch, channels, height, width], with GroupNorm and a residual."""

    def __init__(self, channels: int, *, heads: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.attention = Attention(channels, heads=heads, head_width=channels // heads, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=x.shape[2])
