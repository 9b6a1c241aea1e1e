"""The residual block of U-Nets and autoencoders: twice (GroupNorm, SiLU, 3x3 convolution), beside a shortcut."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """[batch, in_channels, height, width] to [batch, out_channels, height, width], told the time if it has a port.

    With `time_width`, a vector [batch, time_width] is projected and added between the two convolutions, as in DDPM
    (arXiv 2006.11239). The block expects the vector *after* its SiLU: a network applies that once, not once a block.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, time_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            if time is None:
                raise ValueError("this residual block was built with a time port: pass the time embedding")
            h = h + self.time(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))
