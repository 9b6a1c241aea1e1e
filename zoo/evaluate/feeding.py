"""What a decoder of CLIP embeddings needs to be told: the same scenes asked for in several ways.

As in figure 8 of DALL-E 2's paper (arXiv 2204.06125), which shows what a decoder makes of a caption alone, of the text
embedding in place of an image embedding, and of what a prior makes; judged here by the checker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.evaluate.checker import judge
from zoo.evaluate.fresh_scenes import Drawn, fresh
from zoo.evaluate.intervals import of_share

Way: TypeAlias = Callable[[Drawn], Tensor]
"""Fresh scenes to a picture of each, [scenes, 3, height, width] in [0, 1]."""


class Fed(TypedDict):
    """The share of pictures that are their scene, and its 95 % interval."""

    ok: float
    interval: list[float]


@torch.no_grad()
def measure(ways: Mapping[str, Way], *, n: int = 200, seed: int = 3_000_000, batch: int = 16) -> dict[str, Fed]:
    """How often each way shows everything that the captions of `n` fresh scenes say; the scenes and seeds are the same.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 scene, not {n}")
    asked, found = fresh(n, seed), dict[str, Fed]()
    for name, draw in ways.items():
        right = 0
        for part in asked.split(batch):
            made = draw(part).float().cpu()
            right += sum(judge(one, scene.describe()).ok for one, scene in zip(made, part.scenes, strict=True))
        found[name] = Fed(ok=round(right / n, 4), interval=[round(end, 4) for end in of_share(right, n)])
    return found


def diversity(embeddings: Tensor) -> float:
    """How unlike the pictures of one prompt are: the mean of 1 - cosine over all pairs of them, in [0, 2].

    embeddings: of the pictures, by a CLIP, [prompts, pictures, width].

    Raises:
        ValueError: fewer than 2 pictures of a prompt.
    """
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        raise ValueError(f"embeddings have shape {list(embeddings.shape)}; expected [prompts, at least 2, width]")
    units = F.normalize(embeddings.double(), dim=-1)
    pictures = units.shape[1]
    cosines = units @ units.mT
    others = cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)
    return float(1 - (others / (pictures * (pictures - 1))).mean())
