"""What visitors ask for, drawn by every model that they chose. Plain functions: a browser is nowhere needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageChops

from zoo.app.models import Models, label
from zoo.call.abilities import Staged
from zoo.film import Film, record
from zoo.interface import Step
from zoo.pipeline import Pipeline
from zoo.result import Result
from zoo.text.tokenizer import Tokenizer

MOST = 8  # pictures of one model
ADAPTERS = 4  # that act at once: the page has a slider for each
LARGE = 512  # the least side of a picture that is painted on

Tell: TypeAlias = Callable[[float, str], None]
"""Is told the share of the work that is done, and what is being done."""


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for. None leaves a setting to each model, or to the adapters that are made for another."""

    models: Sequence[str]
    prompt: str = ""
    negative: str = ""
    n: int = 1
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    film: bool = False
    adapters: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # source and strength by name
    image: Image.Image | None = None
    mask: Image.Image | None = None  # white where the picture is made anew
    strength: float | None = None


@dataclass(frozen=True)
class Drawing:
    """What one model made of a wish. `films` is empty where nobody asked for any."""

    model: str
    result: Result
    films: Sequence[Film]
    seconds: float
    unknown: Sequence[str] = ()  # words that the model's vocabulary does not have


def draw(models: Models, wish: Wish, tell: Tell = lambda share, what: None) -> list[Drawing]:
    """The pictures of every model that was chosen, in order.

    Raises:
        ValueError: no model or too many pictures; or what a pipeline says is wrong.
    """
    if not wish.models:
        raise ValueError("choose at least one model")
    if not 1 <= wish.n <= MOST:
        raise ValueError(f"a page draws 1 to {MOST} pictures at a time for each model, not {wish.n}")
    drawings = []
    for number, name in enumerate(wish.models):
        start = number / len(wish.models)
        tell(start, f"loading {label(name)}")
        with models.load(name).drawing({given: source for given, (source, _) in wish.adapters.items()}) as pipe:
            part = _part_of(tell, start, 1 / len(wish.models))
            drawings.append(_drawn(pipe, label(name), wish, part))
    return drawings


def _drawn(pipe: Pipeline, name: str, wish: Wish, tell: Tell) -> Drawing:
    sampling = _sampling(pipe, wish)
    settings: dict[str, Any] = sampling | {
        "n": wish.n,
        "seed": wish.seed,
        "negative": wish.negative or None,
        "image": None if wish.image is None else own_pixels(wish.image, pipe.size),
        "mask": wish.mask,
        "strength": None if wish.image is None else wish.strength,
        "adapters": {given: strength for given, (_, strength) in wish.adapters.items()},
        "progress": False,
        "callback": _counting(pipe, name, wish, sampling.get("steps", pipe.defaults.steps), tell),
    }
    began = time.perf_counter()
    if wish.film:
        result, films = record(pipe, wish.prompt, **settings)
    else:
        result, films = pipe(wish.prompt, **settings), []
    return Drawing(name, result, films, time.perf_counter() - began, _unknown(pipe, [wish.prompt, wish.negative]))


def _sampling(pipe: Pipeline, wish: Wish) -> dict[str, Any]:
    """What is asked for, and else what the adapters that act are made for."""
    status, settings = pipe.adapters(), dict[str, Any]()
    for name, (_, strength) in wish.adapters.items():
        settings |= status[name].settings if strength else {}
    asked = {"sampler": wish.sampler or None, "steps": wish.steps, "guidance": wish.guidance}
    return settings | {setting: value for setting, value in asked.items() if value is not None}


def _unknown(pipe: Pipeline, texts: Sequence[str]) -> list[str]:
    tokenizer = getattr(pipe.text_encoder, "tokenizer", None)
    return [word for text in texts for word in tokenizer.strangers(text)] if isinstance(tokenizer, Tokenizer) else []


def _counting(pipe: Pipeline, name: str, wish: Wish, steps: int, tell: Tell) -> Callable[[str, Step], None]:
    stages = pipe.decoder.defaults.values() if isinstance(pipe.decoder, Staged) else ()
    each = steps + sum(stage.steps for stage in stages)
    total = each * (wish.n if wish.film else 1)  # films are of one picture at a time
    done = 0

    def count(stage: str, step: Step) -> None:
        nonlocal done
        done += 1
        tell(min(done / total, 1.0), f"{name}: {stage}, step {step.index + 1}")

    return count


def _part_of(tell: Tell, start: float, share: float) -> Tell:
    return lambda done, what: tell(start + share * done, what)


def save(drawings: Sequence[Drawing], folder: Path) -> list[list[Path]]:
    """Write what each model drew: PNGs that hold their settings, in order, films, and a sheet if there are several."""
    saved = []
    for drawing in drawings:
        *pictures, sheet = drawing.result.save(folder)
        films = [
            film.save(picture.with_suffix(".gif"))
            for picture, film in zip(pictures, drawing.films, strict=False)  # unless asked for, there are none
            if any(frame.clean is not None for frame in film.frames)
        ]
        saved.append([*pictures, *films, *([sheet] if len(pictures) > 1 else [])])
    return saved


def longest(drawings: Sequence[Drawing]) -> int:
    """The steps of the stage that has the most; 0 if nothing was filmed."""
    films = [film for drawing in drawings for film in drawing.films]
    return max((len(frames) for film in films for frames in film.stages.values()), default=0)


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture large enough to be painted on, its pixels as squares."""
    scale = -(-LARGE // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def own_pixels(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The pixels of a picture of (height, width) that `enlarged` made larger; any other picture as it is."""
    if size is None:
        return picture
    scale, rest = divmod(picture.width, size[1])
    if rest or scale < 2 or picture.height != scale * size[0]:
        return picture
    small = picture.reduce(scale)
    again = small.resize(picture.size, Image.Resampling.NEAREST)
    return small if ImageChops.difference(again, picture).getbbox() is None else picture


def painted(layers: Sequence[Image.Image | None], size: tuple[int, int]) -> Image.Image:
    """What was painted on a picture of (width, height), white on black.

    Raises:
        ValueError: nothing was.
    """
    mask = Image.new("L", size)
    for layer in layers:
        if layer is not None:
            alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.NEAREST)
            mask = ImageChops.lighter(mask, alpha.point(lambda value: 255 if value > 127 else 0))
    if mask.getbbox() is None:
        raise ValueError("nothing is painted: paint over the part of the picture that is to be made anew")
    return mask
