"""Asking a model for pictures and having each judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.evaluate.checker import Reading, Verdict, judge, read
from zoo.evaluate.tasks import Case


class Pictures(Protocol):
    """What a pipeline returns: `tensor` [batch, 3, height, width] in [0, 1]."""

    @property
    def tensor(self) -> Tensor: ...


class Pipe(Protocol):
    """What is scored: a `zoo.Pipeline`, or anything that is called like one."""

    def __call__(
        self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **settings: object
    ) -> Pictures: ...


@dataclass(frozen=True)
class Judged:
    """One case with its picture [3, height, width] in [0, 1], what the checker saw there, and its verdict."""

    case: Case
    verdict: Verdict
    picture: Tensor
    reading: Reading

    def image(self) -> Image.Image:
        pixels = (self.picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(np.ascontiguousarray(pixels))


def draw_and_judge(
    pipe: Pipe, asked: Sequence[Case], batch: int = 16, progress: bool = True, settings: dict[str, object] | None = None
) -> list[Judged]:
    """Each case's picture, judged, in the order of the cases.

    Raises:
        ValueError: the pipe returned something other than a picture for each prompt.
    """
    from tqdm.auto import tqdm

    judged = []
    with tqdm(total=len(asked), disable=not progress, unit="image", leave=False) as bar:
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            made = pipe([c.prompt for c in part], n=1, seed=[c.seed for c in part], progress=False, **(settings or {}))
            pictures = made.tensor.detach().float().cpu()
            if pictures.ndim != 4 or pictures.shape[:2] != (len(part), 3):
                raise ValueError(
                    f"the pipe returned pictures {list(pictures.shape)} for {len(part)} prompts; expected "
                    f"[{len(part)}, 3, height, width]"
                )
            for case, picture in zip(part, pictures, strict=True):
                reading = read(picture)
                judged.append(Judged(case, judge(reading, case.scene), picture, reading))
            bar.update(len(part))
    return judged
