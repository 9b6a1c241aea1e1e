"""The table of docs/diffusion-against-gan.md, from what the two models' configs hold; `make results` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config import ModelConfig
from zoo.model_card import distances, table
from zoo.shares import COLUMNS, HEAD
from zoo.train import marked

PAGE = Path("docs") / "diffusion-against-gan.md"
RIVALS = {"stable-diffusion-small": "unet", "gan-small": "gan"}  # models, and the runs that their generators come from
MARKS = ("<!-- diffusion against gan: written by `make results` -->\n", "<!-- end of the table -->")


def compared(models: Sequence[ModelConfig]) -> str:
    """The table of these models, a column each; of what was not measured, dashes."""
    columns = {model.name: _figures(model) for model in models}
    sets: list[Any] = [model.results["distances"] for model in models if "distances" in model.results]
    if sets:  # what is expected of a set of pictures is not 0 or 1, but what drawings reach
        columns["drawings"] = distances(sets[0]["drawn"])
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return table(("", *columns), [(name, *(column.get(name) for column in columns.values())) for name in names])


def write(root: Path, models: Sequence[ModelConfig]) -> None:
    """Write the table of the page in a checkout anew, if both rivals are shipped."""
    if rivals := _rivals(models):
        marked.fill(root / PAGE, *MARKS, compared(rivals))


def stale(root: Path, models: Sequence[ModelConfig]) -> bool:
    """Whether the page of a checkout says other than the configs do."""
    rivals = _rivals(models)
    return bool(rivals) and marked.stale(root / PAGE, *MARKS, compared(rivals))


def _rivals(models: Sequence[ModelConfig]) -> list[ModelConfig]:
    """The two, or none where one of them is not shipped."""
    shipped = {model.name: model for model in models}
    return [shipped[name] for name in RIVALS] if RIVALS.keys() <= shipped.keys() else []


def _figures(model: ModelConfig) -> dict[str, object]:
    """The rows of a model's column."""
    results: Any = model.results
    overall = results.get("evaluation", {}).get("overall", {})
    run: Any = model.training.get(RIVALS.get(model.name, ""), {})
    parameters = results.get("parameters", {}).get("generator")
    right = {
        f"pictures that are what the prompt says, {title}": overall.get(split, {}).get(language)
        for title, (split, language) in zip(HEAD, COLUMNS, strict=True)
    }
    return right | {
        "seconds a picture, warm": results.get("seconds_per_image"),
        "steps a picture": model.defaults.steps,
        "generator, M parameters": None if parameters is None else parameters / 1e6,
        "pictures seen in training": run.get("images"),
        "minutes of training": run.get("minutes"),
        **distances(results.get("distances", {}).get("made", {})),
    }
