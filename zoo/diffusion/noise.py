"""Sources of noise: one stream per image, so that no image depends on the batch, order or thread it is made in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from zoo.interface import NoiseSource

INITIAL = -1  # the step at which a stage draws the noise it begins with


@dataclass(frozen=True)
class ImageNoise:
    """A stream of its own for each image: the same seed, stage, step and shape always give the same noise."""

    seeds: Sequence[int]

    def draw(self, stage: str, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [batch, ...] in float32 on the CPU.

        Raises:
            ValueError: the batch is not one image per seed.
        """
        if shape[0] != len(self.seeds):
            raise ValueError(f"noise for {shape[0]} images was asked for, but there are {len(self.seeds)} seeds")
        return torch.stack([_normal(f"{seed}/{stage}/{step}", shape[1:]) for seed in self.seeds])


def _normal(name: str, shape: Sequence[int]) -> Tensor:
    # A counter-based generator keyed by the whole name: no state to share between threads, and the streams of seeds
    # that lie close together are independent.
    key = int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "little")
    numbers = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(np.asarray(numbers))


@dataclass(frozen=True)
class GivenNoise:
    """Noise given by the user; what is not given is drawn from `then`.

    given: a tensor [batch, ...] that `stage` begins with (None: any stage), or a recorded stream
        {(stage, step): tensor}, step -1 being the initial noise.
    """

    given: Tensor | Mapping[tuple[str, int], Tensor]
    then: NoiseSource | None = None
    stage: str | None = None

    def draw(self, stage: str, step: int, shape: Sequence[int]) -> Tensor:
        """The given noise in float32 on the CPU, else that of `then`.

        Raises:
            ValueError: the given noise has another shape, or noise is needed that was not given.
        """
        if isinstance(self.given, Tensor):
            fits = step == INITIAL and self.stage in (None, stage)
            noise = self.given if fits else None
        else:
            noise = self.given.get((stage, step))
        if noise is None:
            if self.then is None:
                raise ValueError(f"no noise was given for step {step} of stage {stage!r}; pass then=ImageNoise(seeds)")
            return self.then.draw(stage, step, shape)
        if list(noise.shape) != list(shape):
            raise ValueError(f"the given noise has shape {list(noise.shape)}, but stage {stage!r} needs {list(shape)}")
        return noise.detach().to("cpu", torch.float32)
