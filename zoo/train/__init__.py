"""Training any part again from nothing: `zoo train recipes/<part>.toml`.

One loop (`loop.py`) serves every part; a part says what it trains on in a `Task` (`task.py`) and in its own type of
recipe. Adding a part is adding one task and one line to `PARTS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.train.recipe import Recipe, RecipeError, nearest, read_toml, validate

if TYPE_CHECKING:
    from zoo.train.task import Task

__all__ = ["PARTS", "RecipeError", "Summary", "TrainingError", "run", "task_type"]

PARTS = {
    "vae": "zoo.train.vae:VaeTask",
    "clip": "zoo.train.clip:ClipTask",
    "t5": "zoo.train.t5:T5Task",
    "unet": "zoo.train.unet:UNetTask",
    "imagen-base": "zoo.train.pixels:BaseTask",
    "super-resolution": "zoo.train.pixels:StageTask",
    "map": "zoo.train.map:MapTask",
    "lcm": "zoo.train.lcm:LcmTask",
    "lcm-lora": "zoo.train.lcm:LcmLoraTask",
    "phases-lora": "zoo.train.phases:PhasesTask",
    "adapter": "zoo.train.personalise:AdapterTask",
    "diffusion-prior": "zoo.train.prior:DiffusionPriorTask",
    "autoregressive-prior": "zoo.train.prior:AutoregressivePriorTask",
    "one-step-prior": "zoo.train.prior:OneStepPriorTask",
    "unclip-decoder": "zoo.train.unclip:UnclipTask",
    "gan": "zoo.train.gan:GanTask",
}
TOKENIZER = "tokenizer"  # a part that is counted, not trained by gradients


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says at which step, why, and what to do."""


@dataclass(frozen=True)
class Summary:
    """How a run ended. `folder` holds the weights if it is `finished`; if it was interrupted, there is a checkpoint."""

    finished: bool
    step: int
    images: int
    minutes: float
    figures: dict[str, float]
    folder: Path


def run(path: str | Path, overrides: Sequence[str] = (), *, device: str | None = None, resume: bool = False) -> Summary:
    """Train the part that a recipe names, and write its weights to `<out>/final`.

    `overrides` are `key=value` with dotted keys (`optimiser.lr=1e-3`). `device` is "cpu", "cuda" or "cuda:N"; None
    takes a GPU if there is one. With `resume`, the newest checkpoint in the output folder is continued.

    Raises:
        RecipeError: the recipe or an override is wrong, or names files that are not there.
        TrainingError: the run cannot start, or its loss is not finite.
    """
    tree = read_toml(path, overrides)
    if tree.get("part") == TOKENIZER:
        from zoo.train import tokenizer

        recipe = validate(tokenizer.TokenizerRecipe, tree)
        written = tokenizer.train(recipe)
        print(f"finished: {written}", flush=True)
        return Summary(True, 0, 0, 0.0, {}, written.parent)

    from zoo.train.loop import train

    if "part" not in tree and {"name", "generator"} <= tree.keys():
        raise RecipeError(
            f"{path} tells how trained parts become a model, not how one is trained: python -m zoo.train.ship {path}"
        )
    kind = task_type(tree.get("part"))
    return train(kind, validate(kind.recipe_type, tree), device=device, resume=resume)


def task_type(part: object) -> type[Task[Recipe]]:
    """The task class of a part.

    Raises:
        RecipeError: there is no such part.
    """
    names = [*PARTS, TOKENIZER]
    if not isinstance(part, str):
        raise RecipeError(f'the recipe does not say which part it trains: part = "..."; there are: {", ".join(names)}')
    if part not in PARTS:
        raise RecipeError(f"no part {part!r}: {nearest(part, names)}")
    module, _, name = PARTS[part].partition(":")
    kind: type[Task[Recipe]] = getattr(importlib.import_module(module), name)
    return kind
