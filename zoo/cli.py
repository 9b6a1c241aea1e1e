"""The command `zoo`. Heavy libraries are imported inside the commands, after what can be checked without them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO, cast

import typer
import typer.core

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

lora = typer.Typer(help="LoRA files: see what they hold.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lora, name="lora")


@app.command("list")
def list_(pattern: Annotated[str, typer.Argument(help='A wildcard, such as "*small*".')] = "*") -> None:
    """List the models at hand, then the published ones that can be fetched, with a line on each.

    \b
    zoo list
    zoo list "*small*"
    """
    for name in [*registry.list_models(pattern), *registry.list_published(pattern)]:
        typer.echo(f"{name}\t{registry.describe(name)}")


@app.command()
def card(model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")]) -> None:
    """Print a model's card: what it is, how to use it, how it was trained, what it scores.

    \b
    zoo card stable-diffusion-small
    """
    typer.echo(registry.card(model), nl=False)


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
    eta: Annotated[float | None, typer.Option(help="Noise of the ddim sampler, 0 to 1.")] = None,
    rescale: Annotated[float | None, typer.Option(help="Guidance rescaling, 0 to 1.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="With --image: make anew where this picture is white.")] = None,
    strength: Annotated[float | None, typer.Option(help="With --image: how much is made anew, 0 to 1.")] = None,
    layout: Annotated[Path | None, typer.Option(help="A painted map of class numbers, if the model takes one.")] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE[:STRENGTH]", help="A LoRA: file, folder or hub id; may be repeated."),
    ] = None,
    augmentation: Annotated[
        float | None, typer.Option(help="Noise before enlarging, 0 to 1, if the model does.")
    ] = None,
    stages: Annotated[str | None, typer.Option(help="Settings of enlarging stages, as JSON by their names.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNGs and the contact sheet.")] = Path(
        "outputs"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw pictures of prompts, as PNGs that remember prompt, model, seed and settings, and a contact sheet.

    The model's own steps, sampler, guidance and size are taken where none are given.

    \b
    zoo generate "a large pink butterfly, cartoon" --out pictures
    zoo generate "a red star above a blue car" -n 4 --seed 0 --steps 20 --sampler dpmpp_2m --guidance 4
    zoo generate "a cat" "粉色的蝴蝶,小精靈,卡通" --negative "night background"
    zoo generate "a cat" --lora style.safetensors:0.8
    """
    pipeline = _load(model, device)
    adapters = _adapt(pipeline, loras or [])
    result = pipeline(
        prompts,
        n=n,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        negative=negative,
        height=height,
        width=width,
        eta=eta,
        rescale=rescale,
        image=_picture(image),
        mask=_picture(mask),
        strength=strength,
        layout=_picture(layout),
        augmentation=augmentation,
        stages=None if stages is None else _json(stages, "--stages"),
        adapters=adapters,
        progress=not quiet and sys.stderr.isatty(),
    )
    for path in result.save(out):
        typer.echo(path)


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
    found = _load(model, "cpu").report_lora(file)
    typer.echo(found)
    if keys:
        for match in found.matched:
            for key in match.keys:
                typer.echo(f"  {key} -> {match.part}: {match.module}")
    if not found.fits:
        raise typer.Exit(1)


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
    from zoo.train import TrainingError, run

    try:
        summary = run(recipe, overrides or [], device=device, resume=resume)
    except TrainingError as error:
        _fail(error, 1)
    if summary is not None and not summary.finished:
        raise typer.Exit(130)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")] = MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts: JSON lines of prompt, scene, task.")] = None,
    editing: Annotated[bool, typer.Option("--editing", help="Score img2img and inpainting instead.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Score painted maps, if the model takes them.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the checker itself; no model.")] = False,
    scenes: Annotated[int, typer.Option(help="With --calibrate: scenes in each condition.")] = 300,
    per_task: Annotated[int, typer.Option(help="Scenes for each task and split.")] = 100,
    heldout: Annotated[str, typer.Option(help="Half of the held-out combinations: dev, or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Fixes the scenes and the pictures.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for zoo generate.")] = None,
    guidance: Annotated[float | None, typer.Option(help="As for zoo generate.")] = None,
    save: Annotated[Path | None, typer.Option(help="A folder for the report, pictures and a failure sheet.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Measure how often a model's pictures say what their prompts say, by task, language and split.

    Each share has its 95 % interval; below them stands what was most often taken for what. --save also keeps
    report.json (what --json prints), verdicts.jsonl, every picture, and the worst with what is wrong in failures.png.

    \b
    zoo evaluate stable-diffusion-small
    zoo evaluate stable-diffusion-small --json --per-task 20 --heldout dev
    zoo evaluate stable-diffusion-small --prompts mine.jsonl --save judged
    zoo evaluate stable-diffusion-small --editing --per-task 24
    zoo evaluate --calibrate
    """
    if calibrate:
        from zoo.evaluate import calibration

        record = calibration.calibrate(scenes, seed)
        typer.echo(json.dumps(record) if as_json else calibration.table(record))
        return
    pipeline = _load(model, device)
    from zoo.evaluate import run

    asked: dict[str, Any] = {"steps": steps, "sampler": sampler, "guidance": guidance}
    if editing or maps:
        how = {name: value for name, value in asked.items() if value is not None}
        _score_inputs(pipeline, {"editing": editing, "maps": maps}, as_json, save, {"n": per_task, "seed": seed, **how})
        return
    report = run.evaluate(
        cast(run.Pipe, pipeline),  # which takes more settings than a Pipe must
        per_task=per_task,
        seed=seed,
        heldout=cast(Literal["dev", "test"], heldout),  # checked there
        prompts=prompts,
        save=save,
        progress=sys.stderr.isatty(),
        **{name: value for name, value in asked.items() if value is not None},
    )
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else run.table(report))
    if save is not None and (save / "failures.png").exists():
        typer.echo(f"the worst pictures and what is wrong with them: {save / 'failures.png'}", err=True)


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
    said = [*(prompts or []), *(_lines(prompt_file) if prompt_file is not None else [])]
    if not said:
        raise ValueError('no prompts to compare by: zoo compare "a red star" --models A B, or --prompts FILE')
    if not models:
        raise ValueError("no models to compare: add --models A B ...")
    for model in models:
        _known(model)
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
        progress=sys.stderr.isatty(),
        **{name: value for name, value in asked.items() if value is not None},
    )
    typer.echo(found, nl=False)
    for path in found.save(out):
        typer.echo(path)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="The folder, or for a single file the .safetensors, to write.")],
    to: Annotated[str, typer.Option("--to", help="diffusers, or single-file (U-Net and VAE).")] = "diffusers",
    half: Annotated[bool, typer.Option("--half", help="Store float16.")] = False,
    push: Annotated[str | None, typer.Option("--push", help="Then upload the folder to this hub id.")] = None,
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
    pipeline = _load(model, "cpu")
    import torch

    from zoo import export as exports

    write = exports.to_diffusers if to == "diffusers" else exports.to_single_file
    typer.echo(write(pipeline, target, torch.float16 if half else None))
    if push is not None:
        typer.echo(exports.push_to_hub(target, push))


def main() -> None:
    """The command line; bad input ends in one line on stderr and status 2."""
    warnings.showwarning = _note
    try:
        app(prog_name="zoo")
    except (ValueError, OSError) as error:
        _fail(error, 2)


def _score_inputs(
    pipeline: Pipeline, wanted: dict[str, bool], as_json: bool, save: Path | None, settings: dict[str, Any]
) -> None:
    """Scores of what pictures and maps given to a model come to, and with `save` a sheet of each."""
    from zoo.evaluate import editing, maps
    from zoo.sheet import tensor_sheet

    found: dict[str, Any] = {}
    for name, scored in (("editing", editing), ("maps", maps)):
        if wanted[name]:
            found[name], made = scored.evaluate(cast(Any, pipeline), **settings, progress=sys.stderr.isatty())
            if save is not None:
                save.mkdir(parents=True, exist_ok=True)
                tensor_sheet(scored.sheet_rows(made)).save(save / f"{name}.png")
            if not as_json:
                typer.echo(scored.table(found[name]))
    if as_json:
        typer.echo(json.dumps(found))


def _load(model: str, device: str) -> Pipeline:
    folder = registry.find(model)  # a wrong name is told before torch is imported
    from zoo.loading import load

    return load(folder, device=device)


def _adapt(pipeline: Pipeline, loras: list[str]) -> dict[str, float]:
    """Load the LoRAs of `--lora`; their names and strengths."""
    chosen: dict[str, float] = {}
    for said in loras:
        source, _, number = said.rpartition(":")
        try:
            strength = float(number) if source else 1.0
        except ValueError:  # the colon is the path's own
            source, strength = said, 1.0
        source = source or said
        name = Path(source).stem
        name = name if name not in chosen else f"{name}-{len(chosen) + 1}"
        pipeline.load_lora(source, name=name)
        chosen[name] = strength
    return chosen


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        example = '{"super-resolution": {"steps": 4}}'
        raise ValueError(f"{option} is not JSON ({error}); it reads like {example}") from error


def _lines(path: Path) -> list[str]:
    """The prompts in a file: its lines, but for empty ones."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of prompts: {error}") from error


def _known(said: str) -> None:
    """A wrong name among models to compare is told before torch is imported."""
    from zoo.comparison.spec import parse

    registry.find(parse(said).model)


def _picture(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        return ImageOps.exif_transpose(Image.open(path))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read") from error


def _fail(error: Exception, status: int) -> NoReturn:
    typer.echo(f"zoo: {error}", err=True)
    raise SystemExit(status)


def _note(
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
