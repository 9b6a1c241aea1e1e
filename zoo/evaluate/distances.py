"""How near pictures come to given ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zoo.data.scenes import random_scene
from zoo.evaluate.fresh_scenes import as_tensor


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image [batch, 3, height, width] in [0, 1]; identical ones have infinity.

    Raises ValueError where the shapes differ.
    """
    if images.shape != references.shape:
        raise ValueError(f"images are {list(images.shape)} but references {list(references.shape)}; they must match")
    error = (images.float().clamp(0, 1) - references.float().clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * error.log10()


@torch.no_grad()
def reconstruction_psnr(
    reconstruct: Callable[[Tensor], Tensor], n: int = 256, size: int = 64, seed: int = 1_000_000, batch: int = 32
) -> float:
    """Mean PSNR in dB of `reconstruct` over `n` freshly drawn scenes, a third of them with held-out combinations.

    `reconstruct` takes and returns images [batch, 3, size, size] in [0, 1]: an autoencoder there and back.
    """
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, split="dev" if i % 3 == 2 else "train") for i in range(n)]
    found = []
    for start in range(0, n, batch):
        images = as_tensor(scenes[start : start + batch], size)
        found.append(psnr(reconstruct(images).cpu(), images))
    return float(torch.cat(found).mean())
