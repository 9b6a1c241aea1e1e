"""How DALL-E 2's decoder is told the CLIP image embedding (arXiv 2204.06125, section 2.1), as Karlo does it."""

from __future__ import annotations

import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from zoo.interface import Conditioning


class ImageProjectionConfig(BaseModel):
    """Widths of what goes in and comes out; the defaults are Karlo's (7.9M parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_width: int = 768  # of the CLIP embeddings of image and text
    context_width: int | None = 768  # of the text tokens; None: no text is read, the image embedding says it all
    time_width: int = 1280  # of the U-Net's time embedding (`AdmUNetConfig.embedding_width`)
    text_channels: int = 1536  # of the tokens that the U-Net attends to (its `context_width`)
    tokens: int = 4  # that are made of the image embedding


class ImageProjection(nn.Module):
    """CLIP embeddings of image and text, and the text's tokens, as the conditioning of a decoder U-Net.

    The image embedding is projected twice: to a vector that is added to the time, and to a few tokens that stand before
    the text's, or alone if no text is read. The text's embedding is added to the time too. `null` stands for an image
    embedding that is left out, in training (10 % of the time in the paper) and in the unconditional branch of guidance.
    """

    def __init__(self, config: ImageProjectionConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.null = nn.Parameter(torch.zeros(c.embedding_width))
        self.image_time = nn.Linear(c.embedding_width, c.time_width)
        self.image_tokens = nn.Linear(c.embedding_width, c.tokens * c.text_channels)
        self.text_time = self.text_tokens = self.text_norm = None
        if c.context_width is not None:
            self.text_time = nn.Linear(c.embedding_width, c.time_width)
            self.text_tokens = nn.Linear(c.context_width, c.text_channels)
            self.text_norm = nn.LayerNorm(c.text_channels)

    def forward(
        self,
        image: Tensor,
        pooled: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        drop: Tensor | None = None,
    ) -> Conditioning:
        """The ports `tokens`, `mask` (where one is given) and `vector`.

        Args:
            image: CLIP image embeddings [batch, embedding_width].
            pooled: CLIP text embeddings [batch, embedding_width]; this and the rest of the text only if text is read.
            tokens: the text tower's tokens [batch, length, context_width].
            mask: [batch, length], True = attend. The image's own tokens are always attended to.
            drop: [batch], True where `null` stands in for the image embedding.

        Raises:
            ValueError: if an input has the wrong shape, is missing, or is text that is not read.
        """
        c, batch = self.config, image.shape[0]
        self._check("image", image, (batch, c.embedding_width))
        if drop is not None:
            self._check("drop", drop, (batch,))
            image = torch.where(drop[:, None], self.null.to(image.dtype), image)
        of_image = rearrange(self.image_tokens(image), "b (c n) -> b n c", n=c.tokens)
        if self.text_time is None or self.text_tokens is None or self.text_norm is None:
            if pooled is not None or tokens is not None or mask is not None:
                raise ValueError(
                    "this projection reads no text (context_width=None): leave out pooled, tokens and mask"
                )
            return Conditioning(tokens=of_image, vector=self.image_time(image))
        if pooled is None or tokens is None:
            raise ValueError("this projection reads text: it needs both the CLIP text embedding and the tokens")
        self._check("pooled", pooled, (batch, c.embedding_width))
        self._check("tokens", tokens, (batch, tokens.shape[1] if tokens.ndim == 3 else 1, c.context_width))
        if mask is not None:
            self._check("mask", mask, tuple(tokens.shape[:2]))
            mask = torch.cat([mask.new_ones(batch, c.tokens, dtype=torch.bool), mask.bool()], dim=1)
        of_text = self.text_norm(self.text_tokens(tokens))
        return Conditioning(
            tokens=torch.cat([of_image, of_text], dim=1),
            mask=mask,
            vector=self.image_time(image) + self.text_time(pooled),
        )

    @staticmethod
    def _check(name: str, given: Tensor, needed: tuple[int | None, ...]) -> None:
        if tuple(given.shape) != needed:
            raise ValueError(f"{name} has shape {list(given.shape)}; this projection needs {list(needed)}")
