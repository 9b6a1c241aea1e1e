"""What the page's buttons call: from the values of its fields to what its outputs show."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from zoo import tensors
from zoo.adapt import files
from zoo.app import draw, edit, view
from zoo.app.draw import Drawing, Tell, Wish
from zoo.app.models import Models

Number = TypeVar("Number", int, float)
PROGRESS = gr.Progress()
Shown: TypeAlias = tuple[Any, ...]
"""For the page's outputs: drawings, pictures, files, and to watch them develop the group, two sliders and pictures."""


class Handlers:
    """One method for each button. Their names and parameters are also those of the page's API."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def draw(
        self,
        models: list[str],
        prompt: str,
        negative: str = "",
        pictures: int = 1,
        seed: int = 0,
        sampler: str = "",
        steps: str = "",
        guidance: str = "",
        film: bool = True,
        adapters: Sequence[str] = (),
        strength_1: float = 1.0,
        strength_2: float = 1.0,
        strength_3: float = 1.0,
        strength_4: float = 1.0,
        progress: gr.Progress = PROGRESS,
    ) -> Iterator[Shown]:
        """Pictures of a prompt by every chosen model."""
        strengths = (strength_1, strength_2, strength_3, strength_4)
        said = (models, prompt, negative, pictures, seed, sampler, steps, guidance, film, adapters, *strengths)
        yield from self._shown(lambda tell: draw.draw(self.models, self._wish(said), tell), progress)

    def redraw(
        self, image: Image.Image | None, strength: float, *said: Any, progress: gr.Progress = PROGRESS
    ) -> Iterator[Shown]:
        """Pictures that start from another; `said` is what `draw` takes."""

        def act(tell: Tell) -> list[Drawing]:
            if image is None:
                raise ValueError("give a picture to start from")
            return draw.draw(self.models, self._wish(said, image=image, strength=strength), tell)

        yield from self._shown(act, progress)

    def inpaint(
        self, painting: dict[str, Any] | None, strength: float, *said: Any, progress: gr.Progress = PROGRESS
    ) -> Iterator[Shown]:
        """A picture made anew where it is painted over; `said` is what `draw` takes."""

        def act(tell: Tell) -> list[Drawing]:
            image = None if painting is None else painting["background"]
            if painting is None or image is None:
                raise ValueError("give a picture, then paint over what is to be made anew")
            mask = draw.painted(painting["layers"], image.size)
            return draw.draw(
                self.models, self._wish(said, image=image.convert("RGB"), mask=mask, strength=strength), tell
            )

        yield from self._shown(act, progress)

    def vary(
        self, model: str, image: Image.Image | None, pictures: int = 4, seed: int = 0, progress: gr.Progress = PROGRESS
    ) -> Iterator[Shown]:
        """Pictures that mean what another does."""
        yield from self._shown(lambda tell: edit.vary(self.models, model, image, _count(pictures), seed), progress)

    def interpolate(
        self,
        model: str,
        first: Image.Image | None,
        last: Image.Image | None,
        pictures: int = 5,
        seed: int = 0,
        inverted: bool = False,
        progress: gr.Progress = PROGRESS,
    ) -> Iterator[Shown]:
        """Pictures on the way from one to another."""
        yield from self._shown(
            lambda tell: edit.between(self.models, model, first, last, _count(pictures), seed, inverted), progress
        )

    def develop(self, drawings: Sequence[Drawing], step: int, picture: int) -> str:
        """What all stages had after a step."""
        return view.development(drawings, int(step), int(picture))

    def first(self, drawings: Sequence[Drawing]) -> Image.Image:
        """The first picture drawn, large enough to be painted on."""
        with _told():
            if not drawings:
                raise ValueError("nothing is drawn yet: draw a picture, or upload one")
            return draw.enlarged(drawings[0].result.images[0])

    def bring(self, file: str, offered: list[tuple[str, str]], chosen: list[str]) -> tuple[Any, list[tuple[str, str]]]:
        """A file that a visitor brings, among the adapters that may be chosen, and chosen."""
        with _told():
            self._adapter(file)
            _few([*chosen, file])
        offered = [*(pair for pair in offered if pair[1] != file), (Path(file).stem, file)]
        return gr.update(choices=offered, value=[*chosen, file]), offered

    def strengths(self, chosen: list[str], before: list[str], *said: float) -> list[Any]:
        """What was chosen, and a slider for each of it: an adapter keeps its strength, a new one begins at 1."""
        chosen = chosen[: draw.ADAPTERS]
        kept = dict(zip(before, said, strict=False))  # there are sliders to spare
        sliders = [
            gr.update(visible=True, label=f"Strength of {Path(source).stem}", value=kept.get(source, 1))
            for source in chosen
        ]
        return [chosen, *sliders, *[gr.update(visible=False)] * (draw.ADAPTERS - len(chosen))]

    def _wish(self, said: Sequence[Any], **more: Any) -> Wish:
        models, prompt, negative, count, seed, sampler, steps, guidance, film, sources, *strengths = said
        adapters = {
            self._adapter(source): (source, strength)
            for source, strength in zip(_few(sources or ()), strengths, strict=False)  # there are sliders to spare
        }
        return Wish(
            models=models or (),
            prompt=prompt or "",
            negative=negative or "",
            n=_count(count),
            seed=seed,
            sampler=sampler or None,
            steps=_number(steps, int, "steps are a whole number"),
            guidance=_number(guidance, float, "guidance is a number"),
            film=film,
            adapters=adapters,
            **more,
        )

    def _adapter(self, source: str) -> str:
        """What an adapter is called: by its contents too if a visitor brought it, for others may bring one so named."""
        for name, offered in self.models.adapters.items():
            if offered == source:
                return name
        path = Path(source).resolve()
        if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
            known = ", ".join(self.models.adapters) or "none"
            raise ValueError(f"this page has no adapter {source!r}; there are: {known}, and those that you bring")
        if files.kind(path) == "word":
            raise ValueError(f"{path.name} is a word: it would change what every visitor's prompts mean")
        return f"{path.stem}-{tensors.sha256(path)[:6]}"

    def _shown(self, act: Callable[[Tell], list[Drawing]], progress: gr.Progress) -> Iterator[Shown]:
        with TemporaryDirectory(prefix="zoo-") as folder:  # gradio has its own copies once they are shown
            with _told():
                drawings = act(lambda share, what: progress(share, desc=what))
                saved = draw.save(drawings, Path(folder))
            steps, most = draw.longest(drawings), max(len(drawing.result) for drawing in drawings)
            yield (
                drawings,
                view.pictures(drawings, saved),
                gr.update(visible=True, value=[str(path) for paths in saved for path in paths]),
                gr.update(visible=steps > 0),
                gr.update(maximum=max(steps, 2), value=max(steps, 1)),
                gr.update(maximum=max(most, 2), value=1, visible=most > 1),
                view.development(drawings, steps, 1) if steps else "",
            )


def _few(sources: Sequence[str]) -> Sequence[str]:
    """The adapters chosen, unless there are more than sliders for their strengths."""
    if len(sources) > draw.ADAPTERS:
        raise ValueError(f"{len(sources)} adapters are chosen, but at most {draw.ADAPTERS} act at once: take some away")
    return sources


def _count(pictures: float | None) -> int:
    """What the field of how many pictures says; its number is a whole one."""
    if pictures is None:
        raise ValueError("the field Pictures is empty: say how many are to be drawn")
    return int(pictures)


def _number(text: str, kind: type[Number], what: str) -> Number | None:
    """What a field says; None if it is empty."""
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        raise ValueError(f"{what}, not {text!r}; leave the field empty for the model's own") from None


@contextmanager
def _told() -> Iterator[None]:
    """What the library says is wrong, as a message in the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = html.escape(str(error), quote=False)
        raise gr.Error(text, duration=None, print_exception=False) from error
    except torch.OutOfMemoryError as error:
        text = "there is not enough memory for these pictures: ask for fewer, or smaller ones"
        raise gr.Error(text, duration=None, print_exception=False) from error
