"""Numbers as vectors: the sinusoidal embedding of time and the small network behind it (arXiv 2006.11239)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.nn.activation import ACTIVATIONS, Activation


def sinusoidal(t: Tensor, width: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0) -> Tensor:
    """Times [batch], integer or fractional, as waves of `width` / 2 frequencies: [batch, width], float32.

    The frequencies fall from 1 to about 1/10000; `freq_shift` 1 makes the last one exactly that, as the first DDPM code
    did. `flip_sin_to_cos` puts the cosines first, as latent diffusion does. `width` must be even.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


class VectorEmbedding(nn.Module):
    """A vector [batch, in_width] through two linear layers with a nonlinearity between them: [batch, out_width]."""

    def __init__(self, in_width: int, out_width: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.first = nn.Linear(in_width, out_width)
        self.second = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))
