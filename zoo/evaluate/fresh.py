"""A model's pictures against freshly drawn scenes, in the features of the zoo's CLIP.

The model draws captions of fresh scenes; what it makes is compared, as a set, with the drawings of other fresh scenes
of the same kind. Of `ENOUGH` pictures the distance is Fréchet's, FD-CLIP; of fewer it is the kernel distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.clip import Clip
from zoo.data.captions import Language, caption
from zoo.data.scenes import Scene, random_scene
from zoo.evaluate.fresh_scenes import as_tensor
from zoo.evaluate.metrics import frechet_distance, kernel_distance, precision_recall

ENOUGH = 2000  # pictures from which the Fréchet distance is taken
LEAST = 8  # pictures from which anything is
NEIGHBOUR = 3  # whose distance is the reach of a picture in precision and recall, as published
BATCH = 64


@dataclass(frozen=True)
class Closeness:
    """How near a set of pictures comes to fresh drawings: exactly one of the two distances is not None."""

    frechet: float | None
    kernel: float | None
    precision: float
    recall: float

    def figures(self, score: float) -> dict[str, float | None]:
        """By the names that comparisons and results know them by; score: the mean CLIP score with the captions."""
        return {
            "clip_score_scenes": score,
            "fd_clip": self.frechet,
            "kd_clip": self.kernel,
            "precision": self.precision,
            "recall": self.recall,
        }


@dataclass(frozen=True)
class Fresh:
    """What models are held against. prompts: what each draws, the i-th with the seed `seeds[i]`.

    features [n, width]: of the drawings to compare with. drawn: what comes of other drawings in place of a model's
    pictures, the best that can be expected of so many; drawn_score: their mean CLIP score with their captions.
    pictures [n, 3, height, width] in [0, 1]: the drawings themselves.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    features: Tensor
    pictures: Tensor
    drawn: Closeness
    drawn_score: float

    @property
    def expected(self) -> dict[str, float | None]:
        """The figures of drawings in place of a model's pictures."""
        return self.drawn.figures(self.drawn_score)


def fresh(clip: Clip, n: int, *, seed: int = 0, language: Language = "en") -> Fresh:
    """`n` prompts of seen combinations, and the drawings of `n` scenes that are not those of the prompts.

    Raises:
        ValueError: fewer than `LEAST`.
    """
    if n < LEAST:
        raise ValueError(f"a set of {n} pictures says nothing of how near it comes: at least {LEAST}, better {ENOUGH}")
    said, others = (_scenes(n, [seed, stream]) for stream in range(2))
    rng = np.random.default_rng([seed, 2])
    prompts = tuple(caption(scene, language, rng, full=True) for scene in said)
    asked, pictures = as_tensor(said, _size(clip)), as_tensor(others, _size(clip))
    truth = features(clip, pictures)
    score = float(torch.cat(scores(clip, asked, prompts)).mean())
    drawn = closeness(features(clip, asked), truth)
    return Fresh(prompts, tuple(range(seed, seed + n)), truth, pictures, drawn, score)


def measure(
    drawing: Callable[[list[str], list[int]], Tensor],
    clip: Clip,
    held: Fresh,
    *,
    batch: int = BATCH,
    kept: list[Tensor] | None = None,
) -> dict[str, float | None]:
    """The figures of what `drawing` makes of the prompts of `held`, with their seeds, `batch` at a time.

    kept: takes the pictures, for who wants more of them.
    """
    found, liked = [], []
    for start in range(0, len(held.prompts), batch):
        said, seeds = list(held.prompts[start : start + batch]), list(held.seeds[start : start + batch])
        made = drawing(said, seeds)
        found.append(features(clip, made))
        liked += scores(clip, made, said)
        if kept is not None:
            kept.append(made)
    return closeness(torch.cat(found), held.features).figures(float(torch.cat(liked).mean()))


def closeness(made: Tensor, true: Tensor) -> Closeness:
    """Of features [n, width] to those of fresh drawings [m, width].

    Raises:
        ValueError: see `zoo.evaluate.metrics.precision_recall`.
    """
    enough = min(len(made), len(true)) >= ENOUGH
    precision, recall = precision_recall(made, true, NEIGHBOUR)
    return Closeness(
        frechet=frechet_distance(made, true) if enough else None,
        kernel=None if enough else kernel_distance(made, true),
        precision=precision,
        recall=recall,
    )


def features(clip: Clip, images: Tensor) -> Tensor:
    """Image embeddings [batch, width] of images [batch, 3, height, width] in [0, 1], float64, on the CPU.

    CLIP's are unit vectors. They are scaled to a mean square of 1, for which the kernel of `kernel_distance` is made.
    """
    embedded = torch.cat([clip.embed_images(part.to(_device(clip))).cpu() for part in images.split(BATCH)]).double()
    return embedded * embedded.shape[1] ** 0.5


def scores(clip: Clip, images: Tensor, prompts: Sequence[str]) -> list[Tensor]:
    """The CLIP score of each image [batch, 3, height, width] in [0, 1] and its prompt, in parts (arXiv 2104.08718).

    Raises:
        ValueError: a prompt longer than CLIP's window.
    """
    starts = range(0, len(images), BATCH)
    parts = [(images[s : s + BATCH].to(_device(clip)), prompts[s : s + BATCH]) for s in starts]
    return [clip.score(pictures, said).cpu() for pictures, said in parts]


def _scenes(n: int, key: Sequence[int]) -> list[Scene]:
    rng = np.random.default_rng(list(key))
    return [random_scene(rng) for _ in range(n)]


def _size(clip: Clip) -> int:
    size: int = clip.model.config.vision_config.image_size
    return size


def _device(clip: Clip) -> torch.device:
    return clip.model.logit_scale.device
