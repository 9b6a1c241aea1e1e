"""What only DALL-E 2's models can do: vary a picture, and go from one to another (`zoo.dalle2.edit`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image

from zoo import registry
from zoo.app.draw import MOST, Drawing
from zoo.app.models import Models, label
from zoo.dalle2 import edit
from zoo.pipeline import Pipeline
from zoo.result import Result


def able(models: Models) -> list[str]:
    """The models of a page that can: those whose folder holds the CLIP in whose embeddings edits are made."""
    held, found = registry.models(), []
    for name in models.names:
        with suppress(ValueError):  # of a damaged folder, which drawing with it will tell
            if registry.can_edit(held.get(name, Path(name))):
                found.append(name)
    return found


def why_not(models: Models) -> str:
    """What to tell where none can."""
    here = ", ".join(label(name) for name in models.names)
    return (
        "This needs a model that has a picture's meaning apart from its noise, as those of the DALL-E 2 family do. "
        f"None of the models of this page is one ({here}). Start the page with one that is, as in "
        "`zoo app --models NAME ...`; `zoo list` names those at hand."
    )


def vary(
    models: Models, name: str, image: Image.Image | None, n: int = 4, seed: int = 0, eta: float | None = None
) -> list[Drawing]:
    """Pictures that mean what `image` does; for `eta` see `zoo.dalle2.edit.variations`.

    Raises:
        ValueError: no picture, too many, or a model that cannot.
    """
    shown = _given(image)
    return _done(models, name, n, lambda pipe: edit.variations(pipe, shown, n, seed=seed, eta=eta))


def between(
    models: Models,
    name: str,
    first: Image.Image | None,
    last: Image.Image | None,
    n: int = 5,
    seed: int = 0,
    inverted: bool = False,
) -> list[Drawing]:
    """Pictures on the way from one to another; see `zoo.dalle2.edit.interpolate`.

    Raises:
        ValueError: a picture is missing, too many are asked for, or a model that cannot.
    """
    ends = _given(first), _given(last)
    return _done(models, name, n, lambda pipe: edit.interpolate(pipe, *ends, n, seed=seed, inverted=inverted))


def _done(models: Models, name: str, n: int, act: Callable[[Pipeline], Result]) -> list[Drawing]:
    if not 1 <= n <= MOST:
        raise ValueError(f"a page draws 1 to {MOST} pictures at a time, not {n}")
    began = time.perf_counter()
    with models.load(name).drawing({}) as pipe:
        result = act(pipe)
    return [Drawing(label(name), result, [], time.perf_counter() - began)]


def _given(image: Image.Image | None) -> Image.Image:
    if image is None:
        raise ValueError("give a picture first")
    return image.convert("RGB")
