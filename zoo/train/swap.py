"""Which text encoder: every generator learns the tokens of every encoder, each pair on the same budget.

    python -m zoo.train.swap       trains what is missing, scores it, saves it, writes the page

A pair begins with the generator's trained weights, so that it knows how to draw, but for those that read text: they
begin at random, for its own encoder as well. What is saved in results/text-encoders.json is all that the table of
docs/text-encoders.md is made of; `make results` writes it anew.
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
from zoo.data.captions import LANGUAGES
from zoo.interface import Generator
from zoo.loading import load
from zoo.markdown import table as rows_of
from zoo.model_card import SPLITS
from zoo.pipeline import Pipeline
from zoo.train import marked, run
from zoo.train.command import mistakes_told
from zoo.train.loop import STORY
from zoo.train.recipe import Table, read_toml, validate
from zoo.train.text_to_image import load_text

SAVED, PAGE = Path("results") / "text-encoders.json", Path("docs") / "text-encoders.md"


class Reader(Table):
    """A generator: how it is trained, the run that it begins with, which of its weights read text."""

    recipe: Path
    init: Path
    fresh: tuple[str, ...]
    kind: str  # of part, a name in `zoo.weights.CLASSES`
    model: str  # the shipped model whose decoder and sampling it gets


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
    """The folder of a pair's trained generator; it is trained, or its training continued, if it is not there."""
    reader = recipe.generators[generator]
    out = recipe.out / f"{generator}-{encoder}".lower().replace(" ", "-")
    if not (out / "final").is_dir():
        changes = {"steps": recipe.steps, "batch": recipe.batch, "threads": recipe.threads, "out": out}
        changes |= {"init": reader.init, "text_encoder": recipe.encoders[encoder]}
        changes |= {} if recipe.scenes is None else {"data.scenes": recipe.scenes}
        changes |= {"optimiser.warmup": recipe.steps // 10}  # of a budget far below the recipe's own
        said = [*(f"{key}={value}" for key, value in changes.items()), f"fresh={json.dumps(reader.fresh)}"]
        run(reader.recipe, [*said, f"sample_every={recipe.steps}"], device="cpu", resume=(out / "checkpoints").is_dir())
    return out / "final"


def pipeline(recipe: SwapRecipe, generator: str, encoder: str, folder: Path) -> Pipeline:
    """A pair's generator and encoder with the decoder of the model that the generator belongs to."""
    reader = recipe.generators[generator]
    said, story = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", STORY))
    made = cast(Generator, weights.load_part(folder, PartConfig(kind=reader.kind, arguments=said)))
    text = load_text(recipe.encoders[encoder], story["recipe"]["length"], torch.device("cpu"))
    return load(reader.model, device="cpu", text_encoder=text, generator=made)


def measured(recipe: SwapRecipe) -> dict[str, Any]:
    """What is saved: of each pair its scores, the images that it saw and the minutes that took."""
    from zoo.evaluate.run import Pipe, evaluate

    found: dict[str, Any] = {"per_task": recipe.per_task, "heldout": recipe.heldout, "pairs": []}
    for generator in recipe.generators:
        for encoder in recipe.encoders:
            folder = trained(recipe, generator, encoder)
            pipe = cast(Pipe, pipeline(recipe, generator, encoder, folder))
            scores = evaluate(pipe, per_task=recipe.per_task, heldout=recipe.heldout, calibration=0)
            story = json.loads((folder / STORY).read_text("utf-8"))
            cost = {key: story[key] for key in ("images", "minutes")}
            kept = {key: scores[key] for key in ("overall", "clean", "tasks", "intervals")}
            found["pairs"].append({"generator": generator, "encoder": encoder, **cost, **kept})
    return found


def table(saved: Mapping[str, Any]) -> str:
    """The table of a saved measurement: a row for each pair."""
    cells = [(split, language) for split in SPLITS for language in LANGUAGES]
    rows = [
        (
            pair["generator"],
            pair["encoder"],
            *(_share(pair, split, language) for split, language in cells),
            *(pair["tasks"]["colour attribution"]["seen"][language] for language in LANGUAGES),
            pair["images"],
            f"{pair['minutes']:.0f}",
        )
        for pair in saved["pairs"]
    ]
    head = [f"{SPLITS[split]}, {language}" for split, language in cells]
    attribution = ["colour attribution, en", "zh"]
    return rows_of(("generator", "reads", *head, *attribution, "images seen", "minutes"), rows)


def _share(pair: Mapping[str, Any], split: str, language: str) -> str:
    low, high = pair["intervals"]["overall"][split][language]
    return f"{pair['overall'][split][language]:.2f} ({low:.2f}–{high:.2f})"


TABLE = marked.Saved(SAVED, PAGE, "text encoders", table)


def main() -> None:
    """Train and score every pair, save what was found, write the page."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train.swap", description=__doc__)
    parser.add_argument("recipe", nargs="?", default="recipes/text-encoders.toml")
    given = parser.parse_args().recipe
    with mistakes_told():
        recipe = validate(SwapRecipe, read_toml(given))
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        found = measured(recipe)
        SAVED.parent.mkdir(exist_ok=True)
        write_text(SAVED, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        TABLE.write(Path())
        print(PAGE)


if __name__ == "__main__":
    main()
