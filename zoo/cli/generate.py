"""Pictures of prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo import registry
from zoo.cli.shared import (
    MODEL,
    Dtype,
    Prediction,
    Revision,
    Variant,
    app,
    from_json,
    load,
    picture,
    said_of,
)

if TYPE_CHECKING:
    from zoo.result import Result


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help='Prompts; "" draws without one.', show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name, folder or hub id.")] = MODEL,
    n: Annotated[int, typer.Option("-n", help="Images per prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of a prompt's first image; the next has seed + 1.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; fewer is faster.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, heun, dpmpp_2m, unipc ...")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 is off.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Where the sampler stops: trailing, karras, trailing*2 ...")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of the ddim sampler, 0 to 1.")] = None,
    rescale: Annotated[float | None, typer.Option(help="Guidance rescaling, 0 to 1.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep clean estimates in range: below 1 by that quantile, 1 by clipping.")
    ] = None,
    interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Noise levels (sigma/alpha) between which guidance acts."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="With --image: make anew where this picture is white.")] = None,
    strength: Annotated[float | None, typer.Option(help="With --image: how much is made anew, 0 to 1.")] = None,
    layout: Annotated[Path | None, typer.Option(help="A painted map of class numbers, if the model takes one.")] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            *("--adapter", "--lora"),
            metavar="FILE[:STRENGTH]",
            help="A LoRA, a prefix or a learned word: file, folder or hub id; may be repeated.",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option("--rerank", metavar="K", help="Draw K for each image; CLIP chooses the best.")
    ] = 1,
    augmentation: Annotated[
        float | None, typer.Option(help="Noise before enlarging, 0 to 1, if the model does.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="Settings of the decoder's stages, as JSON by their names.")
    ] = None,
    film: Annotated[bool, typer.Option("--film", help="Beside each PNG, a GIF of how it developed.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNGs and the contact sheet.")] = Path(
        "outputs"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Dtype = None,
    variant: Variant = None,
    revision: Revision = None,
    prediction: Prediction = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw pictures of prompts, as PNGs that remember prompt, model, seed and settings, and a contact sheet.

    The model's own steps, sampler, guidance and size are taken where none are given.

    \b
    zoo generate "a large pink butterfly, cartoon" --out pictures
    zoo generate "a red star above a blue car" -n 4 --seed 0 --steps 20 --sampler dpmpp_2m --guidance 4
    zoo generate "a cat" "粉色的蝴蝶,小精靈,卡通" --negative "night background"
    zoo generate "a cat" --adapter style.safetensors:0.8 --adapter word.safetensors
    zoo generate "a cat" --adapter four-steps --steps 4 --sampler ddim --spacing "trailing*2" --guidance 1
    zoo generate "a red star" -n 2 --rerank 8
    zoo generate "a red star" -n 1 --film
    """
    if candidates < 1:
        raise ValueError(f"--rerank draws K candidates for each image: at least 1, not {candidates}")
    if candidates > 1 and "" in prompts:
        raise ValueError("--rerank chooses by the prompt, but one of these is empty")
    best = _reranker(prompts, n, device) if candidates > 1 else None
    pipeline = load(model, device, dtype=dtype, variant=variant, revision=revision, prediction=prediction)
    from zoo.adapt.files import load_all, split

    asked: dict[str, Any] = {
        "n": n * candidates,
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "spacing": spacing,
        "guidance": guidance,
        "negative": negative,
        "height": height,
        "width": width,
        "eta": eta,
        "rescale": rescale,
        "threshold": threshold,
        "interval": interval,
        "image": picture(image),
        "mask": picture(mask),
        "strength": strength,
        "layout": picture(layout),
        "augmentation": augmentation,
        "stages": None if stages is None else from_json(stages, "--stages"),
        "adapters": load_all(pipeline, map(split, adapters or [])) or None,
        "progress": not quiet and sys.stderr.isatty(),
    }
    settings = said_of(asked)
    if film:
        from zoo.film import record

        result, films = record(pipeline, prompts, **settings)
        for one in films:
            one.check()
        filmed = dict(zip(zip(result.prompts, result.seeds, strict=True), films, strict=True))
    else:
        result, filmed = pipeline(prompts, **settings), {}
    if best is not None:
        result = best(result)
    paths = result.save(out)
    if filmed:
        pictures = zip(paths, result.prompts, result.seeds, strict=False)  # the last path is the sheet's
        paths += [filmed[prompt, number].save(path.with_suffix(".gif")) for path, prompt, number in pictures]
    for path in paths:
        typer.echo(path)


def _reranker(prompts: Sequence[str], keep: int, device: str) -> Callable[[Result], Result]:
    """What keeps the best of a result; made before anything is drawn, as it may lack its CLIP or not read a prompt."""
    folder = registry.clip()
    from zoo.clip import Clip
    from zoo.evaluate.rerank import rerank
    from zoo.pipeline import device_of

    clip = Clip.load(folder).to(device_of(device))
    clip.embed_texts(prompts)
    return lambda result: rerank(result, clip, keep=keep)
