"""Adapters in files: `zoo lora`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.shared import MODEL, Prediction, Revision, Variant, app, load

if TYPE_CHECKING:
    from torch import nn

lora = typer.Typer(
    help="LoRA files: see what they hold, make one of two models.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(lora, name="lora")


@lora.command()
def report(
    file: Annotated[str, typer.Argument(help="A LoRA file, a PEFT folder or a hub id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name, folder or hub id.")] = MODEL,
    keys: Annotated[bool, typer.Option("--keys", help="Also list every key and the module that it adapts.")] = False,
    variant: Variant = None,
    revision: Revision = None,
    prediction: Prediction = None,
) -> None:
    """Tell what a LoRA file holds and whether it fits a model, key by key; the status is 1 unless all of it does.

    \b
    zoo lora report style.safetensors --model stable-diffusion-small
    """
    found = load(model, "cpu", variant=variant, revision=revision, prediction=prediction).report_lora(file)
    typer.echo(found)
    if keys:
        for match in found.matched:
            for key in match.keys:
                typer.echo(f"  {key} -> {match.part}: {match.module}")
    if not found.fits:
        raise typer.Exit(1)


@lora.command()
def extract(
    tuned: Annotated[str, typer.Argument(help="The model to come near to: a name, folder or hub id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model that the LoRA is for.")] = MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("lora.safetensors"),
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="More comes nearer, and is larger.")] = 32,
) -> None:
    """Make a LoRA of the difference between two models of one shape, such as one and what was fine-tuned from it.

    \b
    zoo lora extract runs/p7-dreambooth/final --model stable-diffusion-small --out p7.safetensors
    """
    import torch

    from zoo.adapt.formats import write
    from zoo.adapt.lora import LoRA

    before, after = load(model, "cpu").adaptable(), load(tuned, "cpu").adaptable()
    if before.keys() != after.keys():
        raise ValueError(f"{model} has the parts {', '.join(before)}, but {tuned} has {', '.join(after)}")
    networks = {part: (network.module, after[part].module) for part, network in before.items()}
    differ = {part: pair for part, pair in networks.items() if not _same(*pair)}
    if not differ:
        raise ValueError(f"{tuned} has the weights of {model}: there is nothing to extract")
    found = {part: LoRA.between(*pair, rank) for part, pair in differ.items()}
    write(out, found, dtype=torch.float16)
    for part, one in found.items():
        typer.echo(f"{part}: {len(one.layers)} layers, {sum(p.numel() for p in one.parameters()):,} numbers")
    typer.echo(out)


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())
