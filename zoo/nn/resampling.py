"""Halving and doubling of feature maps, as in latent diffusion (arXiv 2112.10752)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["symmetric", "end"]


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution: [batch, channels, 2h, 2w] to [batch, channels, h, w].

    `padding` "symmetric" adds one pixel on every side (U-Nets); "end" adds one at the bottom and the right only (the
    autoencoders, which inherited it from TensorFlow's convention).
    """

    def __init__(self, channels: int, padding: Padding = "symmetric") -> None:
        super().__init__()
        self.pad_end = padding == "end"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.pad_end else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution: [batch, channels, h, w] to [.., 2h, 2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
