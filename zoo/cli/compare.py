"""Several models side by side: `zoo compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import typer.core

from zoo import registry
from zoo.cli.shared import Dtype, Prediction, Revision, Variant, app, lines, reading, said_of


class Lists(typer.core.TyperCommand):
    """A command whose option --models takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        open_ = False
        for word in args:
            if word.startswith("-"):
                open_ = word == "--models"
                spread += [] if open_ else [word]
            else:
                spread += ["--models", word] if open_ else [word]
        return super().parse_args(ctx, spread)


@app.command(cls=Lists)
def compare(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, before --models.", show_default=False)] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", metavar="MODEL ...", help="MODEL[PART=CHOICE,...]+ADAPTER:STRENGTH@SAMPLER:STEPS."),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompts", help="A file of more prompts, one a line.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for grid, tables and report.")] = Path("comparison"),
    n: Annotated[int, typer.Option("-n", help="Images of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of a prompt's first image; the next has seed + 1.")] = 0,
    equal: Annotated[str | None, typer.Option(help="steps or time: give all the first model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of all that do not say their own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="As for zoo generate, of all.")] = None,
    negative: Annotated[str | None, typer.Option(help="As for zoo generate, of all.")] = None,
    scored: Annotated[int, typer.Option(help="Pictures for distance, precision and recall; 2000 for FD-CLIP.")] = 0,
    alignment: Annotated[int, typer.Option(help="Scenes a task for alignment, as in zoo evaluate.")] = 0,
    language: Annotated[str, typer.Option(help="Of the captions of --scored: en or zh.")] = "en",
    inception: Annotated[Path | None, typer.Option(help="A file of Inception's weights: FID too.")] = None,
    repeats: Annotated[int, typer.Option(help="How often an image is timed.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Dtype = None,
    variant: Variant = None,
    revision: Revision = None,
    prediction: Prediction = None,
) -> None:
    """Draw the same prompts and seeds by several models, side by side: pictures, scores, seconds, memory.

    A model is a name, folder, file or hub id, and may say another part, adapters, a sampler and steps. --out gets a
    grid (PNG), tables (CSV, Markdown) and a report (HTML) that needs no other file.

    \b
    zoo compare "a red star" "two pink fish" --models stable-diffusion-small stable-diffusion-small@ddim:10 --out side
    zoo compare "a cat" --models stable-diffusion-small@dpmpp_2m stable-diffusion-small@euler --equal time
    zoo compare --prompts mine.txt --models stable-diffusion-small stable-diffusion-small+style.safetensors:0.8
    zoo compare "a cat" --models small "small[decoder=other/decoder]" --scored 500 --alignment 10
    """
    said = [*(prompts or []), *(lines(prompt_file) if prompt_file is not None else [])]
    if not said:
        raise ValueError('no prompts to compare by: zoo compare "a red star" --models A B, or --prompts FILE')
    if not models:
        raise ValueError("no models to compare: add --models A B ...")
    for model in models:
        _known(model)
    how = reading(dtype, variant, revision, prediction)
    from zoo.comparison.run import compare as run

    asked: dict[str, Any] = {"steps": steps, "guidance": guidance, "negative": negative}
    found = run(
        models,
        said,
        n=n,
        seed=seed,
        equal=cast(Any, equal),  # checked there
        scored=scored,
        alignment=alignment,
        language=cast(Any, language),
        inception=inception,
        repeats=repeats,
        device=device,
        reading=how,
        progress=sys.stderr.isatty(),
        **said_of(asked),
    )
    paths = found.save(out)  # before anything is printed, which may fail where it goes to a file or a pipe
    typer.echo(found, nl=False)
    for path in paths:
        typer.echo(path)


def _known(said: str) -> None:
    """A wrong name among models to compare is told before torch is imported; nothing is fetched for it."""
    from zoo.comparison.spec import parse

    model = parse(said).model
    if not registry.is_fetched(model):
        registry.find(model)
