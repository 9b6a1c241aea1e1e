"""Pictures changed by their meaning, which DALL-E 2 has apart from their noise: `zoo edit`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from zoo import registry
from zoo.cli.shared import Dtype, app, from_json, load, picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from zoo.dalle2.decoder import UnclipDecoder
    from zoo.pipeline import Pipeline
    from zoo.result import Result

STRENGTHS = (0.15, 0.25, 0.35, 0.5)

edit = typer.Typer(
    help="Change pictures by their meaning, with models of the DALL-E 2 family.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(edit, name="edit")

Picture = Annotated[Path, typer.Argument(help="A picture.", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A DALL-E 2; the first at hand unless given.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the decoder's own small pictures.")]
Stages = Annotated[str | None, typer.Option(help="Settings of the decoder and its upsamplers, as JSON by their names.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNGs and the strip.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]

OUT = Path("outputs")


@edit.command()
def variations(
    image: Picture,
    n: Annotated[int, typer.Option("-n", help="Images.")] = 4,
    seed: Seed = 0,
    eta: Annotated[float | None, typer.Option(help="Begin with its own noise; 0 gives it back, 1 hardly.")] = None,
    model: Model = None,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = OUT,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Draw other pictures that mean what a picture does.

    \b
    zoo edit variations butterfly.png -n 4
    zoo edit variations butterfly.png --eta 0.3
    """
    given = _opened([image])
    pipe = _load(model, device, dtype)
    from zoo.dalle2 import edit as edits

    made = edits.variations(pipe, given[0], n, seed=seed, eta=eta, stages=_chain(stages, steps))
    _write(pipe, made, given, "variations", [f"seed {one}" for one in made.seeds], out)


@edit.command()
def interpolate(
    first: Picture,
    last: Picture,
    n: Annotated[int, typer.Option("-n", help="Images, both ends included.")] = 7,
    seed: Seed = 0,
    inverted: Annotated[
        bool, typer.Option("--inverted", help="Also go from noise to noise: the ends come back.")
    ] = False,
    model: Model = None,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = OUT,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Draw what lies between the meanings of two pictures.

    \b
    zoo edit interpolate butterfly.png star.png -n 7
    """
    given = _opened([first, last])
    pipe = _load(model, device, dtype)
    from zoo.dalle2 import edit as edits

    made = edits.interpolate(pipe, given[0], given[1], n, seed=seed, inverted=inverted, stages=_chain(stages, steps))
    _write(pipe, made, given, "interpolation", made.prompts, out)


@edit.command()
def diff(
    image: Picture,
    from_prompt: Annotated[str, typer.Argument(metavar="FROM", help="What it shows.", show_default=False)],
    to_prompt: Annotated[str, typer.Argument(metavar="TO", help="What it shall show.", show_default=False)],
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Share of the way, 0 to 1; may be repeated.", show_default=", ".join(map(str, STRENGTHS))),
    ] = None,
    seed: Seed = 0,
    model: Model = None,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = OUT,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Change a picture as one description changes to another.

    \b
    zoo edit diff star.png "a red star" "a blue star"
    zoo edit diff star.png "a red star" "a blue star" --strength 0.3
    """
    given = _opened([image])
    pipe = _load(model, device, dtype)
    from zoo.dalle2 import edit as edits

    ways = strength or list(STRENGTHS)
    made = edits.text_diff(pipe, given[0], from_prompt, to_prompt, ways, seed=seed, stages=_chain(stages, steps))
    _write(pipe, made, given, f"{from_prompt} -> {to_prompt}", [f"{way:g}" for way in ways], out)


@edit.command()
def invert(
    image: Picture,
    refinements: Annotated[int | None, typer.Option(help="More find the noise better, in more time.")] = None,
    seed: Seed = 0,
    model: Model = None,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = OUT,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Take a picture apart into meaning and noise, draw it again of them, and tell how far off it is.

    \b
    zoo edit invert butterfly.png
    zoo edit invert butterfly.png --steps 100 --refinements 5
    """
    given = _opened([image])
    pipe = _load(model, device, dtype)
    from zoo.dalle2 import edit as edits

    chain = _chain(stages, steps)
    more = {} if refinements is None else {"refinements": refinements}
    start = edits.invert(pipe, given[0], stages=chain, **more)
    made = edits.regenerate(pipe, start, seed=seed, stages=chain)
    off = 255 * (made.tensor - _seen(pipe, given[0])).abs()
    _write(pipe, made, given, "inversion", ["again"], out)
    typer.echo(f"off by {float(off.mean()):.3g} of 255 on average, by {float(off.max()):.3g} at most", err=True)


def _load(model: str | None, device: str, dtype: str | None) -> Pipeline:
    """A model that can edit, or the first at hand; if one cannot, it is told before a published one is fetched and any
    is loaded."""
    held, able = registry.models(), []
    for name, folder in held.items():
        with suppress(ValueError):  # a damaged one, which loading it explains
            able += [name] if registry.can_edit(folder) else []
    if model is None and not able:
        raise ValueError("no model at hand can edit pictures: give a DALL-E 2 by --model")
    chosen = model or able[0]
    published = chosen in registry.PUBLISHED and chosen not in held
    if published or not registry.can_edit(registry.find(chosen)):
        raise ValueError(
            f"{chosen} cannot edit pictures: that takes a DALL-E 2 together with the CLIP that its decoder was trained "
            f"with; models at hand that can: {', '.join(able) or 'none'}"
        )
    return load(chosen, device, dtype=dtype)


def _seen(pipe: Pipeline, given: Image.Image) -> Tensor:
    """A picture as the model is shown it, [1, 3, height, width] in [0, 1]."""
    from zoo.arguments import as_images

    return as_images(given, cast("UnclipDecoder", pipe.decoder).size, 1, 1)


def _chain(stages: str | None, steps: int | None) -> dict[str, Any]:
    """What --stages and --steps say."""
    chain = {} if stages is None else from_json(stages, "--stages")
    if not isinstance(chain, dict) or not all(isinstance(said, dict) for said in chain.values()):
        raise ValueError(
            f'--stages are settings by the stages\' names, such as {{"decoder": {{"steps": 20}}}}, not {stages}'
        )
    if steps is not None:
        chain["decoder"] = chain.get("decoder", {}) | {"steps": steps}
    return chain


def _opened(paths: Sequence[Path]) -> list[Image.Image]:
    return [found for path in paths if (found := picture(path)) is not None]


def _write(
    pipe: Pipeline, made: Result, given: Sequence[Image.Image], title: str, labels: Sequence[str], folder: Path
) -> None:
    """Save what was made, and a strip of it beside or between the pictures that it was made of."""
    from zoo.result import as_pictures
    from zoo.sheet import grid_sheet

    first, *last = [("given", as_pictures(_seen(pipe, one))[0]) for one in given]
    names, pictures = zip(first, *zip(labels, made.images, strict=True), *last, strict=True)
    strip = grid_sheet([title], names, [[[one] for one in pictures]])
    for path in made.save(folder, sheet=strip):
        typer.echo(path)
