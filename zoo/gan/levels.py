"""What generator and discriminator have in common: levels of one size each, some of which look at the text's tokens."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from zoo.interface import Conditioning
from zoo.nn.text import TextAttention, TextPooling

SLOPE = 0.2  # of leaky ReLUs below zero
EPS = 1e-5


class LevelsConfig(BaseModel):
    """Levels and how they read text. "Per level" runs finest first; each further level halves the size.

    Text comes as tokens, and a learned attention pools them into DF-GAN's sentence vector, there the last state of a
    recurrent encoder: so the text may come of any encoder, also of one without a vector of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[int, ...]
    attention: tuple[bool, ...]  # per level: does each place look at the tokens, too?
    side: int = Field(4, ge=1)  # height and width of the coarsest level
    patch: int = Field(2, ge=1)  # a place of the finest level is so many pixels squared (arXiv 1609.05158)
    context_width: int = 192  # of the tokens
    sentence_width: int = Field(256, ge=1)
    pool_heads: int = Field(6, ge=1)  # of the attention that makes a sentence vector of the tokens
    head_width: int = Field(32, ge=1)  # of the attention within levels
    groups: int = Field(16, ge=1)  # of the GroupNorm before it

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.attention) != len(self.channels) or not self.channels:
            raise ValueError(f"attention={self.attention} needs one entry for each of channels={self.channels}")
        if self.context_width % self.pool_heads:
            raise ValueError(f"tokens {self.context_width} wide do not divide into pool_heads={self.pool_heads}")
        for channels, attends in zip(self.channels, self.attention, strict=True):
            if attends and (channels % self.head_width or channels % self.groups):
                raise ValueError(
                    f"a level that attends has channels in multiples of head_width={self.head_width} and of "
                    f"groups={self.groups}, not {channels}"
                )
        return self

    @property
    def size(self) -> int:
        """Height and width of the pictures."""
        return int(self.patch * self.side * 2 ** (len(self.channels) - 1))

    def pooling(self) -> TextPooling:
        """Tokens to the sentence vector."""
        return TextPooling(self.context_width, self.sentence_width, self.pool_heads)

    def looking(self, level: int) -> TextAttention | None:
        """The attention of a level, if it has one."""
        if not self.attention[level]:
            return None
        return TextAttention(
            self.channels[level],
            heads=self.channels[level] // self.head_width,
            head_width=self.head_width,
            groups=self.groups,
            eps=EPS,
            context_width=self.context_width,
            self_attention=False,
            text_norm="layer",
        )

    def check(self, text: Conditioning, batch: int) -> Tensor:
        """The tokens of `text`, if they are what these levels read.

        Raises:
            ValueError: they are not there, or of another shape.
        """
        tokens, mask = text.tokens, text.mask
        if tokens is None or tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != self.context_width:
            found = None if tokens is None else list(tokens.shape)
            raise ValueError(f"tokens have shape {found}; needed is [{batch}, length, {self.context_width}]")
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ValueError(f"the mask has shape {list(mask.shape)}, the tokens {list(tokens.shape)}")
        return tokens
