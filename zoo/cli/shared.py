"""What the commands share: the application they register with, loading, reading files, telling what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from zoo import registry

if TYPE_CHECKING:
    from PIL import Image

    from zoo.pipeline import Pipeline

MODEL = "stable-diffusion-small"

app = typer.Typer(
    help="Text-to-image models: list them, draw with them, train and measure them.",
    epilog='Begin with: zoo generate "a large pink butterfly, cartoon" --out pictures',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def load(model: str, device: str) -> Pipeline:
    """The pipeline of a name, folder or hub id."""
    # A wrong name is told before torch is imported; what is fetched, once the rest is seen to be right.
    place = model if registry.is_fetched(model) else registry.find(model)
    from zoo import loading

    return loading.load(place, device=device)


def picture(path: Path | None) -> Image.Image | None:
    """The picture in a file, upright."""
    if path is None:
        return None
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        return ImageOps.exif_transpose(Image.open(path))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read") from error


def fail(error: Exception, status: int) -> NoReturn:
    """One line on stderr, and the end."""
    typer.echo(f"zoo: {error}", err=True)
    raise SystemExit(status)


def note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings in one line without the source; those of libraries are no matter of a command line's user."""
    if category.__module__.startswith("zoo."):
        typer.echo(f"note: {message}", err=True)


def from_json(text: str, option: str) -> Any:
    """What the text given to an option says."""
    try:
        return json.loads(text)
    except ValueError as error:
        example = '{"super-resolution": {"steps": 4}}'
        raise ValueError(f"{option} is not JSON ({error}); it reads like {example}") from error


def lines(path: Path) -> list[str]:
    """The prompts in a file: its lines, but for empty ones."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of prompts: {error}") from error
