"""The causal Transformer that all priors of DALL-E 2 (arXiv 2204.06125) are made of.

Blocks of attention and a GELU feed-forward, each after a LayerNorm and added to its input. A token looks at itself and
what stands before it; with a `Cache`, what stood before need not be computed again. Every prior's sequence begins with
the encoded caption and its CLIP text embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from zoo.interface import Conditioning
from zoo.nn.attention import attend


class SequenceConfig(BaseModel):
    """What the priors' networks have in common; the defaults are Karlo's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: int = Field(768, ge=1)  # width of CLIP's embeddings, of images and of texts
    text_width: int = Field(768, ge=1)  # of the text tokens
    length: int = Field(77, ge=1)  # text tokens, padding included
    width: int = Field(2048, ge=2, multiple_of=2)
    heads: int = Field(32, ge=1)
    layers: int = Field(20, ge=1)
    expansion: int = Field(4, ge=1)  # of the feed-forward

    @model_validator(mode="after")
    def _heads_divide(self) -> SequenceConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} does not divide into heads={self.heads}")
        return self

    def check(self, conditioning: Conditioning, batch: int) -> tuple[Tensor, Tensor]:
        """The text tokens [batch, length, text_width] and the CLIP text embedding [batch, embedding].

        Raises:
            ValueError: one is missing or of another shape, or there is a port that priors do not have.
        """
        ports = {"tokens": (batch, self.length, self.text_width), "vector": (batch, self.embedding)}
        for name, shape in ports.items():
            port = getattr(conditioning, name)
            if port is None:
                raise ValueError(f"Conditioning.{name} is missing: this prior needs {list(shape)}")
            if tuple(port.shape) != shape:
                raise ValueError(f"Conditioning.{name} has shape {list(port.shape)}; this prior needs {list(shape)}")
        if conditioning.mask is not None and conditioning.mask.shape != (batch, self.length):
            raise ValueError(f"Conditioning.mask has shape {list(conditioning.mask.shape)}, not {[batch, self.length]}")
        for name in ("concat", "augmentation", "guidance"):
            if getattr(conditioning, name) is not None:
                raise ValueError(f"Conditioning.{name} is given, but priors have no such input: leave it out")
        assert conditioning.tokens is not None  # checked
        assert conditioning.vector is not None
        return conditioning.tokens, conditioning.vector


class Cache:
    """Keys and values of the tokens seen so far, one pair a block; made for one call and thrown away after it."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """How many tokens have been seen."""
        return self._blocks[0][0].shape[2] if self._blocks else 0

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block, the new ones [batch, heads, n, width] at the end."""
        if block in self._blocks:
            before = self._blocks[block]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        self._blocks[block] = k, v
        return k, v


class CausalBlock(nn.Module):
    """One block over tokens [batch, n, width]; its feed-forward is `expansion` times as wide."""

    def __init__(self, width: int, *, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, expansion)

    def forward(self, x: Tensor, seen: Tensor, cache: Cache | None = None, block: int = 0) -> Tensor:
        x = x + self.attention(self.norm1(x), seen, cache, block)
        return x + self.feed_forward(self.norm2(x))


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to themselves and to those of a cache."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor, cache: Cache | None, block: int) -> Tensor:
        """`seen` [batch or 1, 1, n, all tokens] is True where a token may look."""
        q, k, v = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (self.to_q(x), self.to_k(x), self.to_v(x))
        )
        if cache is not None:
            k, v = cache.extend(block, k, v)
        return self.to_out(rearrange(attend(q, k, v, seen), "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, expansion * width)
        self.second = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


class CausalTransformer(nn.ModuleList):
    """The blocks that a config says, one after the other."""

    def __init__(self, config: SequenceConfig) -> None:
        block = {"heads": config.heads, "expansion": config.expansion}
        super().__init__(CausalBlock(config.width, **block) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Tokens [batch, n, width], which continue those of `cache`, to the same shape.

        `mask` [batch, m] is False for those of the first m tokens, cached ones included, that nobody may look at.
        """
        before = 0 if cache is None else cache.length
        new = x.shape[1]
        seen = torch.ones(new, before + new, dtype=torch.bool, device=x.device).tril(before)[None, None]
        if mask is not None:
            everywhere = F.pad(mask.bool(), (0, before + new - mask.shape[1]), value=True)
            seen = seen & rearrange(everywhere, "b n -> b 1 1 n")
        for number, block in enumerate(self):
            x = block(x, seen, cache, number)
        return x
