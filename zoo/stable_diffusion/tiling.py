"""Big pictures through an autoencoder in parts: a few images at a time, and each in tiles that overlap.

Between tiles the decoder's attention and its norms see less than the whole, so tiling changes colours a little; the
overlap, blended linearly, hides the seams. A few images at a time change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.nn import part

OVERLAP = 0.25  # of a tile's side, shared with its neighbour
LEAST = 4  # latents of a tile's side: fewer overlap with nothing


def in_slices(make: Callable[[Tensor], Tensor], data: Tensor, most: int) -> Tensor:
    """`make` of as many samples [batch, channels, height, width] at once as hold `most` places, one at least."""
    together = max(1, most // (data.shape[-2] * data.shape[-1]))
    made = []
    for start in range(0, len(data), together):
        with part.of(start, start + together):
            made.append(make(data[start : start + together]))
    return torch.cat(made)


def in_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int, factor: int) -> Tensor:
    """`decode` of latents [batch, channels, h, w] to images [batch, ..., h * factor, w * factor], tile by tile.

    tile: a tile's side in latents. Each begins OVERLAP before its left and upper neighbours end, and fades in there.

    Raises:
        ValueError: a tile too small to overlap.
    """
    if tile < LEAST:
        raise ValueError(f"a tile has a side of at least {LEAST} latents, not {tile}")
    overlap = int(tile * OVERLAP)
    stride = tile - overlap
    fade, kept = overlap * factor, stride * factor
    rows: list[list[Tensor]] = []
    for top in range(0, latents.shape[-2], stride):
        columns = range(0, latents.shape[-1], stride)
        rows.append([decode(latents[..., top : top + tile, left : left + tile]) for left in columns])
    joined = []
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            if i > 0:
                image = _faded(rows[i - 1][j], image, fade, -2)
            if j > 0:
                image = _faded(row[j - 1], image, fade, -1)
            row[j] = image
        joined.append(torch.cat([image[..., :kept, :kept] for image in row], dim=-1))
    return torch.cat(joined, dim=-2)


def _faded(before: Tensor, image: Tensor, fade: int, dim: int) -> Tensor:
    """The image, with what it shares with the one before it along a dimension blended from that one to itself."""
    length = min(before.shape[dim], image.shape[dim], fade)
    share = torch.arange(length, device=image.device, dtype=image.dtype) / length
    share = share if dim == -1 else share[:, None]
    shared = torch.lerp(before.narrow(dim, before.shape[dim] - length, length), image.narrow(dim, 0, length), share)
    return torch.cat([shared, image.narrow(dim, length, image.shape[dim] - length)], dim=dim)
