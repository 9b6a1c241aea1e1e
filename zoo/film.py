"""Films: how pictures come to be, with the noisy state and the predicted clean picture of every step of every stage.

result, films = record(pipe, "a red star", n=2)
films[0].save("star.gif")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo.atomic import write_image
from zoo.call.abilities import Staged
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Observer, Representation, Step
from zoo.result import as_pictures
from zoo.sheet import CELL, GAP, INK, LINE, PAPER

if TYPE_CHECKING:
    from zoo.pipeline import Pipeline
    from zoo.result import Result

NOISY, CLEAN = "noisy state", "predicted clean picture"
LENGTH, SHORTEST, LONGEST, LAST = 2400, 60, 600, 1600  # milliseconds: of all frames, of one, and of the last


@dataclass(frozen=True)
class Frame:
    """A step of a stage: the state that it reached, and the clean picture that it foresaw and went towards.

    Both are None where a stage makes no picture, as a prior, which makes an embedding.
    """

    stage: str
    step: int  # the first is 1
    t: float  # the time that the step left
    noisy: Image.Image | None
    clean: Image.Image | None


@dataclass(frozen=True)
class Film:
    """The frames of one picture, in order; there are none of a model that draws without steps."""

    frames: tuple[Frame, ...]

    @property
    def stages(self) -> dict[str, tuple[Frame, ...]]:
        """The frames of each stage."""
        return {stage: tuple(frames) for stage, frames in groupby(self.frames, key=lambda frame: frame.stage)}

    @property
    def shown(self) -> tuple[tuple[Frame, str], ...]:
        """The frames that show a picture, each with what is written above it."""
        return tuple(
            (frame, f"{stage}, step {frame.step} of {len(frames)}")
            for stage, frames in self.stages.items()
            for frame in frames
            if frame.noisy is not None and frame.clean is not None
        )

    def check(self) -> None:
        """Look whether there is something to be seen, before other files are written.

        Raises:
            ValueError: there is not.
        """
        if not self.shown:
            raise ValueError("there is nothing to film: this model draws without steps that could be seen")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an animated GIF, the noisy state on the left; stages that make no picture are not in it.

        Raises:
            ValueError: there is nothing to be seen.
        """
        target = Path(path)
        self.check()
        shown = self.shown
        side = _enlarged([frame.clean for frame, _ in shown if frame.clean is not None])
        first, *others = [_panel(frame, title, side) for frame, title in shown]
        each = max(SHORTEST, min(LONGEST, LENGTH // len(shown))) // 10 * 10  # GIF counts in hundredths of a second
        duration = [*[each] * len(others), LAST]
        how = {"save_all": True, "append_images": others, "duration": duration, "loop": 0}
        write_image(target, first, durable=False, **how)
        return target


def record(
    pipe: Pipeline, prompts: str | Sequence[str], *, callback: Observer | None = None, **settings: Any
) -> tuple[Result, list[Film]]:
    """What `pipe(prompts, **settings)` draws, and a film of each picture; they are made one at a time.

    Of a picture that the pipeline's safety checker found unsafe the film is empty.

    Raises:
        ValueError: as in a call of the pipeline.
    """
    recorder = _Recorder(pipe)

    def observe(stage: str, step: Step) -> bool | None:
        recorder.take(stage, step)
        return None if callback is None else callback(stage, step)

    result = pipe(prompts, callback=observe, **{**settings, "batch": 1})
    films = [Film(tuple(frames)) for frames in recorder.reels] or [Film(())] * len(result)
    hidden = {i for i, unsafe in enumerate(result.unsafe) if unsafe}
    return result, [Film(()) if i in hidden else film for i, film in enumerate(films)]


class _Recorder:
    """Takes the steps of pictures that are made one after the other."""

    def __init__(self, pipe: Pipeline) -> None:
        self.reels: list[list[Frame]] = []
        self._pipe = pipe
        self._enlarging = set(pipe.decoder.defaults) if isinstance(pipe.decoder, Staged) else set()
        self._nothing = pipe.text_encoder.null(2)  # latents are decoded without text

    def take(self, stage: str, step: Step) -> None:
        if not self.reels or (step.index == 0 and stage == self.reels[-1][0].stage):
            self.reels.append([])
        noisy, clean = self._pictures(stage, torch.cat([step.x, step.x0]))
        self.reels[-1].append(Frame(stage, step.index + 1, step.t, noisy, clean))

    def _pictures(self, stage: str, data: Tensor) -> tuple[Image.Image | None, Image.Image | None]:
        """What these two states [2, ...] look like. Adapters act here as they do on the picture at the end."""
        made = self._pipe.generator.produces
        if stage in self._enlarging or made.kind == "pixels":
            images = (data + 1) / 2
        elif made.kind == "latent" and not self._enlarging:
            latents = Representation(data, made.kind, made.space)
            nothing = self._nothing
            images = self._pipe.decoder.decode(latents, nothing, nothing, ImageNoise([0, 0]))
        else:
            return None, None
        noisy, clean = as_pictures(images.float())
        return noisy, clean


def _enlarged(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """The size that all are shown at: a whole multiple of the largest's, so that pixels stay crisp."""
    largest = max(pictures, key=lambda picture: max(picture.size))
    scale = -(-CELL // max(largest.size))
    return largest.width * scale, largest.height * scale


def _panel(frame: Frame, title: str, size: tuple[int, int]) -> Image.Image:
    """A frame of the GIF: title, the two pictures side by side, what each of them is."""
    width, height = size
    panel = Image.new("RGB", (3 * GAP + 2 * width, 2 * GAP + 2 * LINE + height), PAPER)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for column, (picture, caption) in enumerate(((frame.noisy, NOISY), (frame.clean, CLEAN))):
        left = GAP + column * (width + GAP)
        if picture is not None:
            panel.paste(picture.resize(size, Image.Resampling.NEAREST), (left, GAP + LINE))
        draw.text((left, GAP + LINE + height + GAP // 2), caption, fill=INK, font=font)
    return panel
