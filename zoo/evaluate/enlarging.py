"""How well the stages of a cascade enlarge pictures whose large version is known: true scenes, made small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.evaluate.checker import judge
from zoo.evaluate.distances import psnr
from zoo.evaluate.fresh_scenes import fresh

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of noise-conditioning augmentation, in a sweep

Enlarge = Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]
"""Small pictures [batch, 3, h, w] in [0, 1], their prompts and seeds, to large ones in [0, 1]."""


class Enlarging(TypedDict):
    """What `measure` finds: shares of pictures, dB, and a mean difference in 1/255."""

    ok: float  # enlarged pictures that the checker finds to be their scene
    psnr: float  # dB against the true large picture
    colour_error: float  # |enlarged and made small again - what was enlarged|, mean over pixels and channels, in 1/255
    scenes: int


@torch.no_grad()
def measure(
    enlarge: Enlarge, factor: int, *, n: int = 128, size: int = 64, seed: int = 2_000_000, batch: int = 32
) -> Enlarging:
    """Enlarge `n` fresh scenes, a third of them with held-out combinations of the dev half, and compare.

    They are drawn at `size` pixels and made smaller by `factor`; every other prompt is Chinese.
    """
    right: list[bool] = []
    ratios, shifts = [], []
    for part in fresh(n, seed, size=size).split(batch):
        small = F.avg_pool2d(part.pictures, factor)
        large = enlarge(small, part.prompts, part.seeds).float().cpu()
        right += [judge(picture, scene.describe()).ok for picture, scene in zip(large, part.scenes, strict=True)]
        ratios.append(psnr(large, part.pictures))
        shifts.append((F.avg_pool2d(large, factor) - small).abs().flatten(1).mean(1) * 255)
    return Enlarging(
        ok=sum(right) / n, psnr=float(torch.cat(ratios).mean()), colour_error=float(torch.cat(shifts).mean()), scenes=n
    )
