"""The residual block of U-Nets and autoencoders: twice GroupNorm, nonlinearity, 3x3 convolution, beside a shortcut."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.activation import ACTIVATIONS, Activation

Resample = Literal["down", "up"]


class ResidualBlock(nn.Module):
    """[batch, in_channels, height, width] to [batch, out_channels, height, width], told the time if it has a port.

    With `time_width`, a vector [batch, time_width] is projected and added between the two convolutions, as in DDPM
    (arXiv 2006.11239), or with `scale_shift` scales and shifts the second norm's output, as in ADM (arXiv 2105.05233).
    The block expects the vector *after* its nonlinearity: a network applies that once, not once a block. `resample`
    halves (by means of 2x2 pixels) or doubles (by repeating pixels) height and width of both branches before the first
    convolution. The sum of the branches is multiplied by `scale`: 1/sqrt 2 keeps its variance.

    Raises:
        ValueError: `scale_shift` without a `time_width`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
        scale_shift: bool = False,
        resample: Resample | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if scale_shift and time_width is None:
            raise ValueError("scale_shift says how the time acts: give this residual block a time_width")
        self.scale_shift, self.resample, self.scale, self.dropout = scale_shift, resample, scale, dropout
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        projected = 2 * out_channels if scale_shift else out_channels
        self.time = None if time_width is None else nn.Linear(time_width, projected)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time` [batch, time_width], after its nonlinearity, where the block has a port for it.

        Raises:
            ValueError: the block has a time port and is not told the time.
        """
        h = self.conv1(self._resampled(self.activation(self.norm1(x))))
        if self.time is None:
            h = self.norm2(h)
        elif time is None:
            raise ValueError("this residual block was built with a time port: pass the time embedding")
        elif self.scale_shift:
            scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time(time)[:, :, None, None])
        h = self.conv2(F.dropout(self.activation(h), self.dropout, self.training))
        x = self._resampled(x)
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return h if self.scale == 1 else h * self.scale

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
