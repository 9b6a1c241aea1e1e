"""The table of docs/diffusion-against-gan.md, from what the two models' configs hold; `make results` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config import ModelConfig
from zoo.model_card import SPLITS, table
from zoo.train.checkpoint import replacing

PAGE = Path("docs") / "diffusion-against-gan.md"
RIVALS = {"stable-diffusion-small": "unet", "gan-small": "gan"}  # models, and the runs that their generators come from
BEGIN, END = "<!-- diffusion against gan: written by `make results` -->\n", "<!-- end of the table -->"


def compared(models: Sequence[ModelConfig]) -> str:
    """The table of these models, a column each; of what was not measured, dashes."""
    columns = [_figures(model) for model in models]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return table(("", *(model.name for model in models)), rows)


def page(text: str, models: Sequence[ModelConfig]) -> str:
    """The page with its table made of `models`; as it is where one of the rivals is not shipped."""
    shipped = {model.name: model for model in models}
    head, found, rest = text.partition(BEGIN)
    if not found or not RIVALS.keys() <= shipped.keys():
        return text
    return f"{head}{BEGIN}\n{compared([shipped[name] for name in RIVALS])}\n\n{END}{rest.partition(END)[2]}"


def write(root: Path, models: Sequence[ModelConfig]) -> None:
    """Write the table of the page in a checkout anew, if it has the page."""
    if (root / PAGE).is_file():
        with replacing(root / PAGE) as temporary:
            temporary.write_text(page((root / PAGE).read_text("utf-8"), models), "utf-8")


def stale(root: Path, models: Sequence[ModelConfig]) -> bool:
    """Whether the page of a checkout says other than the configs do."""
    if not (root / PAGE).is_file():
        return False
    text = (root / PAGE).read_text("utf-8")
    return page(text, models) != text


def _figures(model: ModelConfig) -> dict[str, object]:
    """The rows of a model's column."""
    results: Any = model.results
    overall = results.get("evaluation", {}).get("overall", {})
    run: Any = model.training.get(RIVALS.get(model.name, ""), {})
    parameters = results.get("parameters", {}).get("generator")
    right = {
        f"pictures that are what the prompt says, {title}, {language}": overall.get(split, {}).get(language)
        for split, title in SPLITS.items()
        for language in ("en", "zh")
    }
    return right | {
        "seconds a picture, warm": results.get("seconds_per_image"),
        "steps a picture": model.defaults.steps,
        "generator, M parameters": None if parameters is None else parameters / 1e6,
        "pictures seen in the last run of its training": run.get("images"),
        "minutes of that run": run.get("minutes"),
    }
