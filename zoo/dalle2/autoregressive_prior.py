"""The autoregressive prior of DALL-E 2 (arXiv 2204.06125): a caption to a row of codes of a CLIP image embedding.

    prefix      caption tokens, CLIP text embedding, the quantised similarity of image and text
    sequence    the codes of `EmbeddingQuantiser`, the principal component of the greatest variance first
    blocks      causal attention and feed-forward
    head        LayerNorm, linear: the next code

In training the similarity is the true one; in sampling it is drawn from the top half of those seen in training, which
asks for images that show their text well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.dalle2.part import STAGE, PriorPart, PriorPartConfig
from zoo.dalle2.quantiser import EmbeddingQuantiser
from zoo.dalle2.transformer import Cache, CausalTransformer, SequenceConfig
from zoo.diffusion import draws
from zoo.diffusion.noise import INITIAL
from zoo.diffusion.ports import cast, choose, join
from zoo.interface import Conditioning, Init, NoiseSource, Observer, Sampling, Step


class AutoregressiveConfig(SequenceConfig):
    """The shape of an autoregressive prior; the defaults are DALL-E 2's latent decoder.

    Its context of 384 holds 319 codes and the similarity, which leaves 64 for the caption and its embedding.
    """

    embedding: int = Field(1024, ge=1)
    text_width: int = Field(2048, ge=1)
    length: int = Field(63, ge=1)
    width: int = Field(1664, ge=2, multiple_of=2)
    heads: int = Field(26, ge=1)
    layers: int = Field(24, ge=1)
    dimensions: int = Field(319, ge=1)  # principal components that are kept
    buckets: int = Field(1024, ge=2)  # of each
    levels: int = Field(32, ge=2)  # of the similarity

    @model_validator(mode="after")
    def _components_exist(self) -> AutoregressiveConfig:
        if self.dimensions > self.embedding:
            raise ValueError(f"an embedding of width {self.embedding} has no {self.dimensions} components")
        return self

    @property
    def prefix(self) -> int:
        """Tokens before the first code."""
        return self.length + 2


class AutoregressiveTransformer(nn.Module):
    """Codes so far [batch, n] to logits [batch, n + 1, buckets] of each next one."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.quantiser = EmbeddingQuantiser(config.embedding, config.dimensions, config.buckets, config.levels)
        self.tokens = nn.Linear(config.text_width, width)
        self.vector = nn.Linear(config.embedding, width)
        self.similarity = nn.Embedding(config.levels, width)
        self.codes = nn.Embedding(config.buckets, width)
        places = config.prefix + config.dimensions - 1
        self.positions = nn.Parameter(torch.randn(1, places, width) * width**-0.5)
        for table in (self.similarity, self.codes):  # as large as the positions, which say what a code means
            nn.init.normal_(table.weight, std=width**-0.5)
        self.blocks = CausalTransformer(config)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.buckets)

    def forward(self, codes: Tensor, level: Tensor, conditioning: Conditioning, cache: Cache | None = None) -> Tensor:
        """One evaluation; with a `cache`, only what it has not seen is computed and told of.

        Args:
            codes: [batch, n] of the first n < dimensions components, from 0 to buckets - 1.
            level: of the similarity [batch], from 0 to levels - 1.
            conditioning: `tokens` [batch, length, text_width], perhaps with a `mask`, and `vector`, the CLIP text
                embedding [batch, embedding].

        Raises:
            ValueError: if an input is missing, not asked for, or of the wrong shape.
        """
        config, dtype, batch = self.config, self.head.weight.dtype, len(codes)
        if codes.ndim != 2 or codes.shape[1] >= config.dimensions or level.shape != (batch,):
            raise ValueError(
                f"the codes have shape {list(codes.shape)} and the levels {list(level.shape)}; this prior needs "
                f"[batch, fewer than {config.dimensions}] and [batch]"
            )
        text, vector = config.check(conditioning, batch)
        seen = 0 if cache is None else cache.length
        if seen:
            h = self.codes(codes[:, seen - config.prefix :])
        else:
            prefix = [self.tokens(text.to(dtype)), self.vector(vector.to(dtype))[:, None]]
            h = torch.cat([*prefix, self.similarity(level)[:, None], self.codes(codes)], dim=1)
        h = h + self.positions[:, seen : seen + h.shape[1]]
        h = self.blocks(h, conditioning.mask, cache)
        return self.head(self.norm(h[:, max(config.prefix - 1 - seen, 0) :]))


class AutoregressivePriorConfig(PriorPartConfig):
    """Everything about an autoregressive prior but its weights."""

    network: AutoregressiveConfig
    temperature: float = Field(1.0, ge=0)  # of every code; 0 takes the likeliest
    top_p: float = Field(1.0, gt=0, le=1)  # the likeliest codes that together are at least as likely as this
    top: float = Field(0.5, gt=0, le=1)  # share of the similarities seen in training, from above, that is drawn from

    @model_validator(mode="after")
    def _fits(self) -> AutoregressivePriorConfig:
        self.fit(self.network)
        return self


class AutoregressivePrior(PriorPart):
    """Text features to CLIP image embeddings [batch, embedding], code by code.

    Each image's Gaussian stream is turned into uniform numbers by the normal distribution function, one for the
    similarity and one for each code, which the inverse of the distribution at hand turns into a choice. An image thus
    depends on its own seed alone, but for rounding: a number on the edge of two buckets may fall either way.
    """

    config_type = AutoregressivePriorConfig
    network_type = AutoregressiveTransformer
    config: AutoregressivePriorConfig
    network: AutoregressiveTransformer

    @property
    def own_steps(self) -> int:
        """One step a code, whatever a call says."""
        return self.config.network.dimensions

    def shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        return (1 + self.config.network.dimensions,)

    def draw(
        self,
        text: Conditioning,
        null: Conditioning,
        noise: NoiseSource,
        sampling: Sampling,
        *,
        init: Init | None,
        observe: Observer | None,
    ) -> Tensor:
        """Of `sampling` only the guidance is looked at: it acts on logits. A `Step` is one code; its time counts the
        codes that are missing, which its embedding holds at their mean."""
        if init is not None:
            raise ValueError("an autoregressive prior starts from nothing: leave out image=")
        assert text.tokens is not None  # checked
        config, rows, weight = self.config, len(text.tokens), self.network.head.weight
        chances = torch.special.ndtr(noise.draw(STAGE, INITIAL, (rows, *self.shape())).double())
        level = high_level(chances[:, 0], self.config.network.levels, config.top).to(weight.device)
        branches = 1 if sampling.guidance == 1 else 2
        asked = cast(text if branches == 1 else join(text, null), weight.device, weight.dtype)
        codes, cache = torch.zeros(rows, 0, dtype=torch.long, device=weight.device), Cache()
        for index in range(self.config.network.dimensions):
            logits = self.network(codes.repeat(branches, 1), level.repeat(branches), asked, cache)[:, -1].float()
            if branches == 2:
                given, away = logits.chunk(2)
                logits = away + sampling.guidance * (given - away)
            code = choice(logits.cpu(), chances[:, index + 1], config.temperature, config.top_p)
            codes = torch.cat([codes, code.to(codes.device)[:, None]], dim=1)
            if observe is not None:
                so_far = self.network.quantiser.decode(codes)
                if observe(STAGE, Step(index, float(self.config.network.dimensions - index), so_far, so_far)):
                    break
        return self.network.quantiser.decode(codes)


def high_level(chances: Tensor, levels: int, top: float) -> Tensor:
    """Levels of the similarity out of uniform numbers [batch]: all of the highest share `top` are equally likely."""
    return ((1 - top + top * chances) * levels).long().clamp(max=levels - 1)


def choice(logits: Tensor, chances: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Codes [batch] out of logits [batch, buckets] and uniform numbers [batch], by inversion in float64.

    With `top_p` below 1 only the likeliest codes that together are at least so likely are chosen from
    (arXiv 1904.09751).
    """
    if temperature == 0:
        return logits.argmax(-1)
    likely = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        falling, order = likely.sort(dim=-1, descending=True)
        left_out = falling.cumsum(-1) - falling >= top_p
        likely = likely.masked_fill(left_out.gather(-1, order.argsort(-1)), 0.0)
    below = likely.cumsum(-1)
    chosen = torch.searchsorted(below, chances.double()[:, None] * below[:, -1:], right=True)
    return chosen.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def loss(
    network: AutoregressiveTransformer,
    embeddings: Tensor,
    text: Conditioning,
    *,
    null: Conditioning | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean cross-entropy of the codes of image embeddings [batch, embedding], a scalar in float32 (in nats a code).

    null, dropout: the share of texts replaced by `null`; the similarity is always that with the true text.
    generator: fixes the dropout; the same on every device if it is a CPU generator.
    """
    assert text.vector is not None  # the network needs it
    codes = network.quantiser.encode(embeddings)
    level = network.quantiser.level(embeddings, text.vector)
    if null is not None and dropout > 0:
        drop = draws.rand((len(embeddings),), generator, embeddings.device) < dropout
        text = choose(drop, null, text)
    logits = network(codes[:, :-1], level, text)
    return F.cross_entropy(rearrange(logits, "b d k -> (b d) k").float(), rearrange(codes, "b d -> (b d)"))
