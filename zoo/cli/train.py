"""Training: `zoo train`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.shared import app, fail


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/vae.toml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; cuda where there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Train one part from its recipe.

    \b
    zoo train recipes/vae.toml
    zoo train recipes/unet.toml --device cuda optimiser.lr=3e-4 minutes=40
    zoo train recipes/unet.toml --resume
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("training needs accelerate: pip install -e '.[train]' in a checkout")
    from zoo.train import TrainingError, run

    try:
        summary = run(recipe, overrides or [], device=device, resume=resume)
    except TrainingError as error:
        fail(error, 1)
    if summary is not None and not summary.finished:
        raise typer.Exit(130)
