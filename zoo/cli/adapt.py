"""Adapters in files: `zoo lora`."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.shared import MODEL, app, load

lora = typer.Typer(help="LoRA files: see what they hold.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lora, name="lora")


@lora.command()
def report(
    file: Annotated[str, typer.Argument(help="A LoRA file, a PEFT folder or a hub id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name, folder or hub id.")] = MODEL,
    keys: Annotated[bool, typer.Option("--keys", help="Also list every key and the module that it adapts.")] = False,
) -> None:
    """Tell what a LoRA file holds and whether it fits a model, key by key; the status is 1 unless all of it does.

    \b
    zoo lora report style.safetensors --model stable-diffusion-small
    """
    found = load(model, "cpu").report_lora(file)
    typer.echo(found)
    if keys:
        for match in found.matched:
            for key in match.keys:
                typer.echo(f"  {key} -> {match.part}: {match.module}")
    if not found.fits:
        raise typer.Exit(1)
