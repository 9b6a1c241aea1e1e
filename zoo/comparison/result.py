"""What a comparison finds: a row for each model, the pictures, and the files that tell of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from zoo.atomic import write_image, write_text
from zoo.config import Role
from zoo.evaluate.run import Scores
from zoo.sheet import grid_sheet

GRID, SCORES, SPEED, ALIGNMENT, TABLE, PAGE = (
    *("grid.png", "scores.csv", "speed.csv", "alignment.csv", "table.md", "report.html"),
)


@dataclass(frozen=True)
class Row:
    """One model. pictures: prompt by prompt, as many of each. evaluations: of networks, for one image.

    scores: by the names of `zoo.comparison.table.SCORES`, of those that were measured; None where one has no value.
    seconds: of one image, each time anew. memory: in MiB, None where it is not known.
    """

    name: str
    settings: Mapping[str, object]
    parameters: Mapping[Role, int]
    evaluations: Mapping[Role, float]
    scores: Mapping[str, float | None]
    seconds: tuple[float, ...]
    memory: float | None
    pictures: tuple[Image.Image, ...]
    alignment: Scores | None = None

    @property
    def seconds_per_image(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models side by side. drawn: the scores of fresh drawings in place of a model's, if there was `scored`.

    Printed, it is the table in Markdown.
    """

    rows: tuple[Row, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    machine: str
    notes: tuple[str, ...] = ()
    drawn: Mapping[str, float | None] | None = None

    def __repr__(self) -> str:
        return f"Comparison({len(self.rows)} models, {len(self.prompts)} prompts, seeds {list(self.seeds)})"

    def __str__(self) -> str:
        from zoo.comparison import table

        return table.markdown(self)

    def pictures(self, row: Row, prompt: int) -> tuple[Image.Image, ...]:
        """What a model drew of the prompt with this number."""
        each = len(row.pictures) // len(self.prompts)
        return row.pictures[prompt * each : (prompt + 1) * each]

    def grid(self) -> Image.Image:
        """All pictures, a row for each prompt and a column for each model."""
        cells = [[self.pictures(row, i) for row in self.rows] for i in range(len(self.prompts))]
        return grid_sheet(self.prompts, [row.name for row in self.rows], cells)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the grid (PNG), the scores, the speeds and the alignment by task (CSV), the table (Markdown) and the
        report (one HTML file that needs no other); returns the paths, the report last.

        scores.csv and alignment.csv are the same whenever the same is compared again on the same machine; what clocks
        and memory say is in speed.csv alone.
        """
        from zoo.comparison import page, table

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        texts = {SCORES: table.scores_csv(self), SPEED: table.speed_csv(self)}
        if any(row.alignment for row in self.rows):
            texts[ALIGNMENT] = table.alignment_csv(self)
        texts |= {TABLE: table.markdown(self), PAGE: page.render(self)}
        write_image(target / GRID, self.grid())
        for name, text in texts.items():
            write_text(target / name, text)
        return [target / GRID, *(target / name for name in texts)]
