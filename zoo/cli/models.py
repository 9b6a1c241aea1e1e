"""Models: list them, read their cards, export them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo import registry
from zoo.cli.shared import Prediction, Revision, Variant, app, load


@app.command("list")
def list_(pattern: Annotated[str, typer.Argument(help='A wildcard, such as "*small*".')] = "*") -> None:
    """List the models at hand, then the published ones that can be fetched, with a line on each.

    \b
    zoo list
    zoo list "*small*"
    """
    for name in [*registry.list_models(pattern), *registry.list_published(pattern)]:
        try:
            said = registry.describe(name)
        except ValueError as error:  # of one model, which is no reason not to list the others
            said = f"cannot be read: {error}"
        typer.echo(f"{name}\t{said}")


@app.command()
def card(model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")]) -> None:
    """Print a model's card: what it is, how to use it, how it was trained, what it scores.

    \b
    zoo card stable-diffusion-small
    """
    typer.echo(registry.card(model), nl=False)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="The folder, or for a single file the .safetensors, to write.")],
    to: Annotated[str, typer.Option("--to", help="diffusers, or single-file (U-Net and VAE).")] = "diffusers",
    half: Annotated[bool, typer.Option("--half", help="Store float16.")] = False,
    push: Annotated[str | None, typer.Option("--push", help="Then upload the folder to this hub id.")] = None,
    variant: Variant = None,
    revision: Revision = None,
    prediction: Prediction = None,
) -> None:
    """Write a Stable Diffusion of the zoo for others to use.

    \b
    zoo export stable-diffusion-small exported --to diffusers
    zoo export stable-diffusion-small small.safetensors --to single-file
    """
    if to not in ("diffusers", "single-file"):
        raise ValueError(f"--to {to} is not known: it is diffusers or single-file")
    if push is not None and to != "diffusers":
        raise ValueError("--push uploads a folder: it goes with --to diffusers")
    pipeline = load(model, "cpu", variant=variant, revision=revision, prediction=prediction)
    import torch

    from zoo import export as exports

    write = exports.to_diffusers if to == "diffusers" else exports.to_single_file
    typer.echo(write(pipeline, target, torch.float16 if half else None))
    if push is not None:
        typer.echo(exports.push_to_hub(target, push))
