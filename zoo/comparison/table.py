"""The figures of a comparison as CSV and Markdown, and what each of them means."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from zoo.config import ROLES
from zoo.data.captions import LANGUAGES
from zoo.evaluate.run import score_rows
from zoo.markdown import table as markdown_table

if TYPE_CHECKING:
    from zoo.comparison.result import Comparison, Row

DRAWN = "(fresh drawings)"
SETTINGS = ("sampler", "steps", "guidance", "width", "height")
Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A figure of every model: its title, which end is better, and what it means."""

    title: str
    note: str
    better: Literal["high", "low"] | None = None
    digits: int = 3


SCORES = {
    "clip_score": Column(
        "CLIP score",
        "100 x the cosine of a picture and its prompt in the zoo's CLIP, the mean of the pictures shown, and how far "
        "that mean is uncertain (95 %). It knows the scenes world, and of other prompts says little.",
        "high",
        4,
    ),
    "clip_score_scenes": Column("CLIP score, scenes", "The same for captions of fresh scenes.", "high", 4),
    "fd_clip": Column(
        "FD-CLIP",
        "Fréchet distance between pictures of captions and drawings of other fresh scenes, in the image features of "
        "the zoo's CLIP (arXiv 1706.08500). Only the same number of pictures compares.",
        "low",
    ),
    "kd_clip": Column(
        "KD-CLIP",
        "Kernel distance between the same, unbiased for few pictures; around 0 is as good as drawn (arXiv 1801.01401).",
        "low",
    ),
    "precision": Column("precision", "Share of pictures that lie among drawings (arXiv 1904.06991).", "high"),
    "recall": Column("recall", "Share of drawings that lie among the pictures: variety.", "high"),
    "fid": Column("FID", "Fréchet distance in Inception's features, made for photographs.", "low"),
}
ALIGNED = {
    f"aligned_{split}_{language}": Column(
        f"aligned, {split.replace('_', '-')} {language}",
        "Share of pictures that are all that the prompt says, by the checker; mean of six tasks.",
        "high",
    )
    for split in ("seen", "held_out")
    for language in LANGUAGES
}
PARAMETERS: dict[str, Column] = {
    role: Column(f"{role.replace('_', ' ')}, M", "Parameters in millions.") for role in ROLES
}
COST = {
    "seconds": Column("seconds an image", "Median, drawn one at a time in a loaded pipeline.", "low"),
    "memory": Column(
        "peak memory, MiB",
        "The most that loading and drawing one image at a time took beyond what the process held before; on a CPU the "
        "first model also pays for what libraries set up once.",
        "low",
    ),
    "evaluations": Column(
        "evaluations an image",
        "Calls of the sampled networks, where a guided step counts twice: generator, and decoder if it samples too.",
        "low",
    ),
} | PARAMETERS
COLUMNS = SCORES | ALIGNED | COST


def figures(row: Row) -> dict[str, Value]:
    """Every figure of a model by the names of `COLUMNS`, those that were not measured left out."""
    counted = [count for count in row.evaluations.values() if count]
    cost: dict[str, Value] = {
        "seconds": row.seconds_per_image,
        "memory": row.memory,
        "evaluations": " + ".join(f"{count:g}" for count in counted) or "0",
        **{role: row.parameters[role] / 1e6 for role in ROLES},
    }
    return {**{name: value for name, value in row.scores.items() if name in COLUMNS}, **cost}


def written(name: str, value: Value, row: Row | None = None) -> str:
    """A figure as the tables show it."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    spread = row.scores.get("clip_score_spread") if row is not None and name == "clip_score" else None
    digits = COLUMNS[name].digits
    text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return text + (f" ± {spread:.1f}" if spread is not None else "")


def columns(found: Comparison, among: Mapping[str, Column]) -> list[str]:
    """The names of the figures that any model has."""
    return [name for name in among if any(figures(row).get(name) is not None for row in found.rows)]


def is_best(found: Comparison, row: Row, name: str) -> bool:
    """Whether no model has a better figure, where the models differ at all. Below 0 there is only chance."""
    values = [figures(other).get(name) for other in found.rows]
    numbers = [_number(value) for value in values if value is not None]
    better, own = COLUMNS[name].better, figures(row).get(name)
    if better is None or own is None or len(set(numbers)) < 2:
        return False
    return _number(own) == (max if better == "high" else min)(numbers)


def _number(value: Value) -> float:
    return sum(float(part) for part in value.split(" + ")) if isinstance(value, str) else max(0.0, float(value or 0))


def shown(row: Row) -> list[str]:
    """Sampler ("–" where a generator has none), steps, guidance and size of a model, as the tables show them."""
    settings = row.settings
    stages = cast(Mapping[str, Mapping[str, object]], settings.get("stages", {}))
    steps = " + ".join(str(how["steps"]) for how in (settings, *stages.values()))
    size = f"{settings['width']}x{settings['height']}"
    return [str(settings.get("sampler", "–")), steps, f"{settings['guidance']:g}", size]


def markdown(found: Comparison) -> str:
    """Scores and costs in two tables, the best of a column bold, and below them what the columns mean."""
    lines = []
    for among in (SCORES | ALIGNED, COST):
        names = columns(found, among)
        rows = [[_escaped(row.name), *shown(row), *(_cell(found, row, name) for name in names)] for row in found.rows]
        if found.drawn and among is not COST:
            rows.append([DRAWN, *[""] * 4, *(written(name, found.drawn.get(name)) for name in names)])
        head = ("model", "sampler", "steps", "guidance", "size", *(title(name) for name in names))
        lines.append(markdown_table(head, rows))
    used = [name for name in COLUMNS if name in columns(found, COLUMNS)]
    meanings = dict.fromkeys(f"- {_group(name)}: {COLUMNS[name].note}" for name in used)
    lines += ["\n".join(meanings), *found.notes, found.machine]
    return "\n\n".join(lines) + "\n"


def title(name: str) -> str:
    """A column's title with an arrow to the better end."""
    return COLUMNS[name].title + {"high": " ↑", "low": " ↓", None: ""}[COLUMNS[name].better]


def meanings(found: Comparison) -> list[tuple[str, str]]:
    """What the figures that are shown mean: (title, meaning), alike ones once."""
    return list(dict.fromkeys((_group(name), COLUMNS[name].note) for name in columns(found, COLUMNS)))


def _group(name: str) -> str:
    if name in ALIGNED:
        return "aligned"
    return "parameters" if name in ROLES else COLUMNS[name].title


def _cell(found: Comparison, row: Row, name: str) -> str:
    value = figures(row).get(name)
    text = written(name, value, row)
    return f"**{text}**" if is_best(found, row, name) else text


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


def scores_csv(found: Comparison) -> str:
    """All that is the same when it is made again: settings, parameters, evaluations, scores."""
    names = list(dict.fromkeys(name for row in found.rows for name in row.scores))
    head = ["model", *SETTINGS, *(f"parameters_{role}" for role in ROLES)]
    head += ["evaluations_generator", "evaluations_decoder", *names]
    rows: list[Sequence[object]] = []
    for row in found.rows:
        sizes: list[object] = [row.parameters[role] for role in ROLES]
        sizes += [row.evaluations["generator"], row.evaluations["decoder"]]
        rows.append([row.name, *(row.settings.get(name) for name in SETTINGS), *sizes, *map(row.scores.get, names)])
    if found.drawn:
        blank = [""] * (len(head) - len(names) - 1)
        rows.append([DRAWN, *blank, *map(found.drawn.get, names)])
    return _csv(head, rows)


def speed_csv(found: Comparison) -> str:
    """What depends on the machine and the moment."""
    rows = [
        (row.name, row.seconds_per_image, min(row.seconds), max(row.seconds), row.memory, found.machine)
        for row in found.rows
    ]
    head = ("model", "seconds_per_image", "fastest", "slowest", "peak_memory_mib", "machine")
    return _csv(head, rows)


def alignment_csv(found: Comparison) -> str:
    """The share of right pictures by model, task, split and language, with its 95 % interval."""
    rows = []
    for row in found.rows:
        if row.alignment is None:
            continue
        for task, cell, ends in score_rows(row.alignment):
            for split, shares in cell.items():
                for language, share in shares.items():
                    if share is not None:
                        low, high = ends[split][language] or (None, None)
                        rows.append((row.name, task, split, language, share, low, high))
    return _csv(("model", "task", "split", "language", "share", "low", "high"), rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[_plain(value) for value in row] for row in rows])
    return text.getvalue()


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
