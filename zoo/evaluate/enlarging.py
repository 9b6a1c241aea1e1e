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

FINE = 5  # pixels
FLAT = 4 / 255  # shading, and the sky at night, vary by as much
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of noise-conditioning augmentation, in a sweep

Enlarge = Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]
"""Small pictures [batch, 3, h, w] in [0, 1], their prompts and seeds, to large ones in [0, 1]."""


class Enlarging(TypedDict):
    """What `measure` finds: shares of pictures, dB, and differences in 1/255."""

    ok: float  # enlarged pictures that the checker finds to be their scene
    psnr: float  # dB against the true large picture
    colour_error: float  # |enlarged and made small again - what was enlarged|, mean over pixels and channels, in 1/255
    speckle: float  # what is finer than 5 pixels where the true picture is flat, root mean square in 1/255
    scenes: int


@torch.no_grad()
def measure(
    enlarge: Enlarge, factor: int, *, n: int = 128, size: int = 64, seed: int = 2_000_000, batch: int = 32
) -> Enlarging:
    """Enlarge `n` fresh scenes, a third of them with held-out combinations of the dev half, and compare.

    They are drawn at `size` pixels and made smaller by `factor`; every other prompt is Chinese.
    """
    right: list[bool] = []
    ratios, shifts, grains = [], [], []
    for part in fresh(n, seed, size=size).split(batch):
        small = F.avg_pool2d(part.pictures, factor)
        large = enlarge(small, part.prompts, part.seeds).float().cpu()
        right += [judge(picture, scene.describe()).ok for picture, scene in zip(large, part.scenes, strict=True)]
        ratios.append(psnr(large, part.pictures))
        shifts.append((F.avg_pool2d(large, factor) - small).abs().flatten(1).mean(1) * 255)
        grains.append(speckle(large, part.pictures) * 255)
    return Enlarging(
        ok=sum(right) / n,
        psnr=float(torch.cat(ratios).mean()),
        colour_error=float(torch.cat(shifts).mean()),
        speckle=float(torch.cat(grains).mean()),
        scenes=n,
    )


def speckle(pictures: Tensor, true: Tensor) -> Tensor:
    """The grain of each picture where its true one is flat, [batch]: the root mean square of what is finer than FINE.

    Both [batch, 3, height, width] in [0, 1]. Flat is where no channel varies by more than FLAT within FINE pixels each
    way; 0 where nothing is.
    """

    def over(values: Tensor, side: int) -> Tensor:
        return F.max_pool2d(values, side, stride=1, padding=side // 2)

    reach = 2 * FINE + 1  # an edge just outside would count as grain through the mean that is taken off
    flat = (over(true, reach) + over(-true, reach)).amax(1, keepdim=True) <= FLAT
    fine = pictures - F.avg_pool2d(pictures, FINE, stride=1, padding=FINE // 2, count_include_pad=False)
    count = (3 * flat.sum((1, 2, 3))).clamp(min=1)
    return ((fine.square() * flat).sum((1, 2, 3)) / count).sqrt()
