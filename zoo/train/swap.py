"""Which text encoder: every generator learns the tokens of every encoder, each pair on the same budget.

    python -m zoo.train.swap       trains and scores what is missing, tells the models' configs and cards

A pair begins with the generator's trained weights, so that it knows how to draw, but for those that read text: they
begin at random, for its own encoder as well. What is found becomes results of the generators' models, which their cards
and docs/text-encoders.md show.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

from zoo import weights
from zoo.atomic import write_text
from zoo.config import PartConfig
from zoo.interface import Generator
from zoo.loading import load
from zoo.pipeline import Pipeline
from zoo.train import TrainingError, run
from zoo.train.command import mistakes_told
from zoo.train.loop import STORY
from zoo.train.measure import tell
from zoo.train.recipe import Table, read_toml, validate
from zoo.train.text_to_image import load_text

SCORES = "scores.json"


class Reader(Table):
    """A generator: how it is trained, the run that it begins with, which of its weights read text."""

    recipe: Path
    init: Path
    fresh: tuple[str, ...]
    kind: str  # of part, a name in `zoo.weights.CLASSES`
    model: Path  # the folder of the model whose decoder and sampling it gets, and whose config is told


class SwapRecipe(Table):
    """All pairs of generators and encoders, and the budget of each."""

    steps: int
    batch: int = 48
    scenes: int | None = None  # that are drawn for a pair; None: as many as the generator's recipe says
    threads: int = 0
    out: Path = Path("runs") / "text-encoders"
    per_task: int = 25
    heldout: Literal["dev", "test"] = "dev"
    encoders: Mapping[str, Path]  # the folders that training exported
    generators: Mapping[str, Reader]


def trained(recipe: SwapRecipe, generator: str, encoder: str) -> Path:
    """The folder of a pair's trained generator; it is trained, or its training continued, if it is not there.

    Raises:
        TrainingError: it is there, but of another budget; or its training was interrupted.
    """
    reader = recipe.generators[generator]
    out = recipe.out / f"{generator}-{encoder}".lower().replace(" ", "-")
    budget = {"steps": recipe.steps, "batch": recipe.batch}
    if (out / "final").is_dir():
        ran = json.loads((out / "final" / STORY).read_text("utf-8"))["recipe"]
        if spent := {key: ran[key] for key in budget if ran[key] != budget[key]}:
            raise TrainingError(f"{out} was trained on another budget ({spent}, not {budget}): remove it")
    else:
        changes = {**budget, "threads": recipe.threads, "out": out}
        changes |= {"init": reader.init, "text_encoder": recipe.encoders[encoder]}
        changes |= {} if recipe.scenes is None else {"data.scenes": recipe.scenes}
        changes |= {"optimiser.warmup": recipe.steps // 10}  # of a budget far below the recipe's own
        said = [*(f"{key}={value}" for key, value in changes.items()), f"fresh={json.dumps(reader.fresh)}"]
        begun = (out / "checkpoints").is_dir()
        done = run(reader.recipe, [*said, f"sample_every={recipe.steps}"], device="cpu", resume=begun)
        if not done.finished:
            raise TrainingError(f"the training of {out} was interrupted: run this again to go on")
    return out / "final"


def pipeline(recipe: SwapRecipe, generator: str, encoder: str, folder: Path) -> Pipeline:
    """A pair's generator and encoder with the decoder of the model that the generator belongs to."""
    reader = recipe.generators[generator]
    said, story = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", STORY))
    made = cast(Generator, weights.load_part(folder, PartConfig(kind=reader.kind, arguments=said)))
    text = load_text(recipe.encoders[encoder], story["recipe"]["length"], torch.device("cpu"))
    return load(str(reader.model), device="cpu", text_encoder=text, generator=made)


def scored(recipe: SwapRecipe, generator: str, encoder: str) -> dict[str, Any]:
    """A pair's scores, the images that it saw and the minutes that took: made once, kept beside what was trained."""
    from zoo.evaluate.run import Pipe, evaluate

    folder = trained(recipe, generator, encoder)
    kept = folder.parent / SCORES
    asked = {"per_task": recipe.per_task, "heldout": recipe.heldout}
    if kept.is_file() and (told := json.loads(kept.read_text("utf-8")))["asked"] == asked:
        return cast(dict[str, Any], told["found"])
    pipe = cast(Pipe, pipeline(recipe, generator, encoder, folder))
    scores = evaluate(pipe, per_task=recipe.per_task, heldout=recipe.heldout, calibration=0)
    story = json.loads((folder / STORY).read_text("utf-8"))
    found = {key: story[key] for key in ("images", "minutes")}
    found |= {key: scores[key] for key in ("overall", "clean", "tasks", "intervals")}
    write_text(kept, json.dumps({"asked": asked, "found": found}, indent=1) + "\n")
    return found


def measured(recipe: SwapRecipe) -> dict[str, dict[str, Any]]:
    """What each generator's model is told: how it learned to read each encoder."""
    how = {"per_task": recipe.per_task, "heldout": recipe.heldout}
    return {
        generator: {**how, "encoders": {encoder: scored(recipe, generator, encoder) for encoder in recipe.encoders}}
        for generator in recipe.generators
    }


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m zoo.train.swap", description=__doc__)
    found.add_argument("recipe", nargs="?", default="recipes/text-encoders.toml")
    return found


def main() -> None:
    """Train and score every pair, tell the models' configs, write their cards and the page."""
    given = parser().parse_args().recipe
    with mistakes_told():
        recipe = validate(SwapRecipe, read_toml(given))
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        for generator, found in measured(recipe).items():
            tell(recipe.generators[generator].model, {"readers": found})


if __name__ == "__main__":
    main()
