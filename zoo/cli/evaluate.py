"""Measuring one model: `zoo evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from zoo.atomic import write_image
from zoo.cli.shared import MODEL, Dtype, Prediction, Revision, Variant, app, load, said_of

if TYPE_CHECKING:
    from zoo.pipeline import Pipeline

PER_TASK, HELDOUT = 100, "test"


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")] = MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts: JSON lines of prompt, scene, task.")] = None,
    editing: Annotated[bool, typer.Option("--editing", help="Score img2img and inpainting instead.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Score painted maps, if the model takes them.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the checker itself; no model.")] = False,
    scenes: Annotated[int | None, typer.Option(help="With --calibrate: scenes in each condition (300).")] = None,
    per_task: Annotated[
        int | None, typer.Option(help="Scenes for each task and split.", show_default=str(PER_TASK))
    ] = None,
    heldout: Annotated[
        str | None, typer.Option(help="Half of the held-out combinations: dev, or test.", show_default=HELDOUT)
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the scenes and the pictures.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for zoo generate.")] = None,
    guidance: Annotated[float | None, typer.Option(help="As for zoo generate.")] = None,
    save: Annotated[Path | None, typer.Option(help="A folder for the report, pictures and a failure sheet.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Dtype = None,
    variant: Variant = None,
    revision: Revision = None,
    prediction: Prediction = None,
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
    asked: dict[str, Any] = {"steps": steps, "sampler": sampler, "guidance": guidance}
    reading = {"dtype": dtype, "variant": variant, "revision": revision, "prediction": prediction}
    drawn = {"per-task": per_task, "heldout": heldout}
    if calibrate:
        from zoo.evaluate import calibration

        asked |= {"prompts": prompts, **drawn, "save": save, "editing": editing, "maps": maps, **reading}
        _refuse("--calibrate", asked)
        record = calibration.calibrate(300 if scenes is None else scenes, seed)
        typer.echo(json.dumps(record) if as_json else calibration.table(record))
        return
    _refuse("evaluate without --calibrate", {"scenes": scenes})
    if editing or maps:
        _refuse("--editing and --maps", {"prompts": prompts, "heldout": heldout})
    if prompts is not None:
        _refuse("--prompts", drawn)
    per_task, heldout = PER_TASK if per_task is None else per_task, HELDOUT if heldout is None else heldout
    pipeline = load(model, device, **reading)
    from zoo.evaluate import run

    if editing or maps:
        how = {"n": per_task, "seed": seed, **said_of(asked)}
        _score_inputs(pipeline, {"editing": editing, "maps": maps}, as_json, save, how)
        return
    report = run.evaluate(
        cast(run.Pipe, pipeline),  # which takes more settings than a Pipe must
        per_task=per_task,
        seed=seed,
        heldout=cast(Literal["dev", "test"], heldout),  # checked there
        prompts=prompts,
        save=save,
        progress=sys.stderr.isatty(),
        **said_of(asked),
    )
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else run.table(report))
    if save is not None and (save / "failures.png").exists():
        typer.echo(f"the worst pictures and what is wrong with them: {save / 'failures.png'}", err=True)


def _refuse(what: str, given: dict[str, Any]) -> None:
    """Raises ValueError where an option was given that does nothing here."""
    if names := [f"--{name}" for name, value in given.items() if value is not None and value is not False]:
        raise ValueError(f"{what} does not heed {', '.join(names)}: leave it out")


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
                write_image(save / f"{name}.png", tensor_sheet(scored.sheet_rows(made)))
            if not as_json:
                typer.echo(scored.table(found[name]))
    if as_json:
        typer.echo(json.dumps(found))
