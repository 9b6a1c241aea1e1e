"""Text in the U-Nets of Imagen (arXiv 2205.11487): looked at by the pixels, and pooled into one vector."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.nn.attention import Beside, attend

TextNorm = Literal["layer", "group"]


class TextAttention(nn.Module):
    """Pixels [batch, channels, height, width] look at each other and at text, with a GroupNorm before and a residual.

    Text tokens [batch, length, context_width] and pixels are keys of one softmax: the paper appends the text to the
    keys and values of self-attention. Without `self_attention` only the text is looked at, without `context_width` only
    the pixels are. `text_norm` "layer" norms each token by itself; "group" (DeepFloyd IF's) takes its statistics over
    all tokens, masked ones too.

    Raises:
        ValueError: neither text nor pixels are to be looked at.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_width: int,
        groups: int,
        eps: float,
        context_width: int | None = None,
        self_attention: bool = True,
        text_norm: TextNorm | None = None,
    ) -> None:
        super().__init__()
        if context_width is None and not self_attention:
            raise ValueError("this attention would look at nothing: give a context_width or self_attention=True")
        self.heads, inner = heads, heads * head_width
        self.beside: list[Beside] = []  # adapters, as in `Attention`
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner) if self_attention else None
        self.to_v = nn.Linear(channels, inner) if self_attention else None
        self.text_norm: nn.Module | None = None
        self.text_k = self.text_v = None
        if context_width is not None:
            if text_norm is not None:
                layer = text_norm == "layer"
                self.text_norm = nn.LayerNorm(context_width, eps) if layer else nn.GroupNorm(groups, context_width, eps)
            self.text_k, self.text_v = nn.Linear(context_width, inner), nn.Linear(context_width, inner)
        self.to_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Pixels like x; `mask` [batch, length] is True for the tokens that may be seen; pixels always are.

        Raises:
            ValueError: no text for an attention that was built to look at it.
        """
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        keys: list[Tensor] = []
        values: list[Tensor] = []
        if self.text_k is not None and self.text_v is not None:
            if text is None:
                raise ValueError("this attention was built to look at text: pass tokens [batch, length, width]")
            k, v = self.keys_values(text)
            keys.append(k)
            values.append(v)
        else:
            mask = None
        if self.to_k is not None and self.to_v is not None:
            keys.append(self.to_k(pixels))
            values.append(self.to_v(pixels))
            mask = None if mask is None else F.pad(mask.bool(), (0, pixels.shape[1]), value=True)
        mask = None if mask is None else rearrange(mask, "b n -> b 1 1 n")
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.to_q(pixels), torch.cat(keys, dim=1), torch.cat(values, dim=1))
        )
        seen = attend(q, k, v, mask)
        for look in self.beside:
            seen = look(q, seen)
        out = self.to_out(rearrange(seen, "b h n d -> b n (h d)"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])

    @property
    def sources(self) -> tuple[nn.Linear, nn.Linear]:
        """What makes keys and values: of the text, or of the pixels where no text is read."""
        k, v = (self.to_k, self.to_v) if self.text_k is None else (self.text_k, self.text_v)
        assert k is not None  # one of the two pairs is there
        assert v is not None
        return k, v

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What `sources` make of tokens [batch, length, width], text being normed before."""
        to_k, to_v = self.sources
        given = context if self.text_k is None else self._normed(context)
        return to_k(given), to_v(given)

    def _normed(self, text: Tensor) -> Tensor:
        if isinstance(self.text_norm, nn.GroupNorm):
            return rearrange(self.text_norm(rearrange(text, "b n c -> b c n")), "b c n -> b n c")
        return text if self.text_norm is None else self.text_norm(text)


class TextPooling(nn.Module):
    """Tokens [batch, length, width] as one vector [batch, out_width]: their mean looks at them and at itself.

    The mean, moved by a learned vector, is the only query of one attention between two LayerNorms, as in DeepFloyd IF.
    """

    def __init__(self, width: int, out_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, out_width)
        self.norm_out = nn.LayerNorm(out_width)

    def forward(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [batch, length] is True for the tokens that count, in the mean and as keys."""
        text = self.norm_in(text)
        if mask is None:
            mean = text.mean(dim=1, keepdim=True)
        else:
            seen = mask.bool()[..., None]
            mean = (text * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)
            mask = rearrange(F.pad(mask.bool(), (1, 0), value=True), "b n -> b 1 1 n")
        tokens = torch.cat([mean + self.query, text], dim=1)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.to_q(tokens[:, :1]), self.to_k(tokens), self.to_v(tokens))
        )
        return self.norm_out(self.to_out(rearrange(attend(q, k, v, mask), "b h 1 d -> b (h d)")))
