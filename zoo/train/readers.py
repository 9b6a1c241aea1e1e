"""The table of docs/text-encoders.md, from what `zoo.train.swap` left in the configs; `make results` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo import readers_card
from zoo.config import ModelConfig
from zoo.markdown import table
from zoo.train import marked

PAGE = Path("docs") / "text-encoders.md"
MARKS = ("<!-- text encoders: written by `make results` -->\n", "<!-- end of text encoders -->")


def compared(models: Sequence[ModelConfig]) -> str:
    """The rows of all models whose generators learned to read several encoders; empty if there are none."""
    found = {model.name: model.results["readers"] for model in models if "readers" in model.results}
    rows = [(name, *row) for name, readers in found.items() for row in readers_card.rows(readers)]
    return table(("generator of", *readers_card.COLUMNS), rows) if rows else ""


def write(root: Path, models: Sequence[ModelConfig]) -> None:
    """Write the table of the page in a checkout anew, if there is one."""
    if said := compared(models):
        marked.fill(root / PAGE, *MARKS, said)


def stale(root: Path, models: Sequence[ModelConfig]) -> bool:
    """Whether the page of a checkout says other than the configs do."""
    said = compared(models)
    return bool(said) and marked.stale(root / PAGE, *MARKS, said)
