"""Scenes that nothing was trained on, with their pictures and captions, for measures that begin with a true picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.data.captions import caption
from zoo.data.draw import render
from zoo.data.scenes import Scene, random_scene
from zoo.evaluate.tasks import LANGUAGES

SIZE = 64  # pixels a side


@dataclass(frozen=True)
class Drawn:
    """Scenes, their pictures [scenes, 3, size, size] in [0, 1], captions that say everything, and a seed for each."""

    scenes: Sequence[Scene]
    pictures: Tensor
    prompts: Sequence[str]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.scenes)

    def split(self, size: int) -> Iterator[Drawn]:
        """The same, at most `size` at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield Drawn(self.scenes[rows], self.pictures[rows], self.prompts[rows], self.seeds[rows])


def fresh(n: int, seed: int, *, kind: str | None = None, size: int = SIZE) -> Drawn:
    """`n` scenes, a third of them with held-out combinations of the dev half; every other caption is Chinese.

    kind: single, relation or count; None is all of them. size: pixels a side.
    """
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, split="dev" if i % 3 == 2 else "train", kind=kind) for i in range(n)]
    prompts = [
        caption(scene, LANGUAGES[i % 2], np.random.default_rng([seed, i]), full=True) for i, scene in enumerate(scenes)
    ]
    return Drawn(scenes, as_tensor(scenes, size), prompts, [seed + i for i in range(n)])


def as_tensor(scenes: Sequence[Scene], size: int = SIZE) -> Tensor:
    """Scenes drawn, [scenes, 3, size, size] in [0, 1]."""
    drawn = np.stack([render(scene, size) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
