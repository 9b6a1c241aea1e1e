"""What the commands share: the application they register with, loading, reading files, telling what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from zoo import registry

if TYPE_CHECKING:
    from PIL import Image

    from zoo.pipeline import Pipeline

MODEL = "stable-diffusion-small"
DTYPES, PREDICTIONS = ("float32", "float16", "bfloat16"), ("epsilon", "v")

# How a model is read, as `zoo.load` takes it.
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16 of its weights.")]
Variant = Annotated[str | None, typer.Option(help="Of a diffusers folder: the files to take, such as fp16.")]
Revision = Annotated[str | None, typer.Option(help="Of what the hub gives: a branch, tag or commit.")]
Prediction = Annotated[str | None, typer.Option(help="Of a single file that does not tell: epsilon or v.")]

app = typer.Typer(
    help="Text-to-image models: list them, draw with them, train and measure them.",
    epilog='Begin with: zoo generate "a large pink butterfly, cartoon" --out pictures',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def load(
    model: str,
    device: str,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    prediction: str | None = None,
) -> Pipeline:
    """The pipeline of a name, folder, file or hub id."""
    # A wrong name is told before torch is imported; what is fetched, once the rest is seen to be right.
    place = model if registry.is_fetched(model) else registry.find(model)
    how = reading(dtype, variant, revision, prediction)
    from zoo import loading

    return loading.load(place, device=device, **how)


def reading(dtype: str | None, variant: str | None, revision: str | None, prediction: str | None) -> dict[str, Any]:
    """What `zoo.load` is to be given by the options that were.

    Raises:
        ValueError: a type or a prediction that there is not.
    """
    for option, said, known in (("dtype", dtype, DTYPES), ("prediction", prediction, PREDICTIONS)):
        if said is not None and said not in known:
            raise ValueError(f"--{option} {said} is not known: it is one of {', '.join(known)}")
    how = said_of({"variant": variant, "revision": revision, "prediction": prediction})
    if dtype is not None:
        import torch

        how["dtype"] = getattr(torch, dtype)
    return how


def said_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given; the others are left out where these go, as None may mean "off" there."""
    return {name: value for name, value in options.items() if value is not None}


def picture(path: Path | None) -> Image.Image | None:
    """The picture in a file as it lies there: what draws by it turns it upright (`zoo.upright`)."""
    if path is None:
        return None
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # as PIL tells damage
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error


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
