"""Inputs beside the text, as channels that join the noisy latent (the `concat` port)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def map_channels(layout: Tensor, classes: int, factor: int) -> Tensor:
    """A semantic map [batch, height, width] of class numbers as [batch, classes, height / factor, width / factor].

    Each channel is the share of a latent cell that its class covers (arXiv 2112.10752, section 4.3.2, brings maps to
    the latent's size by rescaling and a learned convolution; shares keep where in a cell the borders run, and the
    network's own first convolution does the rest). All channels zero says nothing about a cell.
    """
    channels = torch.stack([layout == number for number in range(classes)], 1)
    return F.avg_pool2d(channels.float(), factor)
