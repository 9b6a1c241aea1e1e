"""A comparison as one HTML file: pictures inside, no script, nothing fetched; for phones and desks, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from zoo.comparison.table import (
    ALIGNED,
    COST,
    DRAWN,
    SCORES,
    columns,
    figures,
    is_best,
    meanings,
    shown,
    title,
    written,
)
from zoo.evaluate.run import LANGUAGES, SPLITS, Cell, IntervalCell, Scores, score_rows

if TYPE_CHECKING:
    from PIL import Image

    from zoo.comparison.result import Comparison, Row
    from zoo.comparison.table import Column

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #656d76; --paper: #fff; --rule: #d8dee4; --best: #e6f4ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --quiet: #9198a1; --paper: #0d1117; --rule: #30363d; --best: #12361f; }
}
body { margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
p, li, dd { color: var(--quiet); } dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; min-width: 4rem; font-weight: 600; }
th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 7rem; max-width: 16rem; }
td.best { background: var(--best); font-weight: 700; }
tr.drawn > * { color: var(--quiet); font-weight: 400; }
.models { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(var(--cell), 45%), 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; color: var(--quiet); overflow-wrap: anywhere; }
.each { display: flex; flex-wrap: wrap; gap: 2px; }
.each img { flex: 1 1 5rem; min-width: 0; max-width: 24rem; height: auto; border-radius: 3px; }
"""


def render(found: Comparison) -> str:
    """The whole page."""
    heading = f"{len(found.rows)} models side by side" if len(found.rows) > 1 else "One model"
    sections = [
        f"<h1>{heading}</h1>",
        f"<p>{escape(' '.join((*found.notes, found.machine)))}</p>",
        _pictures(found),
        _figures("Scores", found, SCORES | ALIGNED, found.drawn),
        _figures("Cost", found, COST, None),
        *(_alignment(row.name, row.alignment) for row in found.rows if row.alignment is not None),
        "<h2>What the columns mean</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(note)}</dd>" for name, note in meanings(found)),
        "</dl><p>The best of each column is marked. ↑: more is better, ↓: less is.</p>",
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>zoo: {heading}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _figures(
    name: str, found: Comparison, among: Mapping[str, Column], drawn: Mapping[str, float | None] | None
) -> str:
    names = columns(found, among)
    if not names:
        return ""
    head = ["model", *map(title, names), *(["sampler", "steps", "guidance", "size"] if among is COST else [])]
    rows = []
    for row in found.rows:
        settings = [(text, "") for text in shown(row)] if among is COST else []
        rows.append(_row(row.name, [*(_cell(found, row, column) for column in names), *settings]))
    if drawn:
        rows.append(_row(DRAWN, [(written(column, drawn.get(column)), "") for column in names], "drawn"))
    return f"<h2>{name}</h2>{_table(head, rows)}"


def _cell(found: Comparison, row: Row, name: str) -> tuple[str, str]:
    value = figures(row).get(name)
    return written(name, value, row), "best" if is_best(found, row, name) else ""


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(name: str, cells: Iterable[tuple[str, str]], kind: str = "") -> str:
    def marked(word: str) -> str:
        return f' class="{word}"' if word else ""

    inner = "".join(f"<td{marked(word)}>{escape(text)}</td>" for text, word in cells)
    return f"<tr{marked(kind)}><th>{escape(name)}</th>{inner}</tr>"


def _pictures(found: Comparison) -> str:
    each = len(found.seeds)
    cell = f"{min(24, 5 * min(each, 4) + 5)}rem"
    sections = [f'<h2>Pictures</h2><div style="--cell: {cell}">']
    for number, prompt in enumerate(found.prompts):
        figures = [_figure(row, found.pictures(row, number), prompt) for row in found.rows]
        sections.append(f'<h3>{escape(prompt or "(no prompt)")}</h3><div class="models">{"".join(figures)}</div>')
    return "\n".join(sections) + "</div>"


def _figure(row: Row, pictures: Sequence[Image.Image], prompt: str) -> str:
    alt = escape(f"{row.name}: {prompt}", quote=True)
    images = "".join(
        f'<img src="{_embedded(picture)}" alt="{alt}" width="{picture.width}" height="{picture.height}">'
        for picture in pictures
    )
    return f'<figure><div class="each">{images}</div><figcaption>{escape(row.name)}</figcaption></figure>'


def _embedded(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _alignment(name: str, scores: Scores) -> str:
    pairs = [(split, language) for split in SPLITS for language in LANGUAGES]

    def share(cell: Cell, ends: IntervalCell, split: str, language: str) -> str:
        found, interval = cell[split][language], ends[split][language]
        return "–" if found is None or interval is None else f"{found:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"

    rows = [_row(task, [(share(cell, ends, *pair), "") for pair in pairs]) for task, cell, ends in score_rows(scores)]
    head = ["task", *(f"{split.replace('_', '-')}, {language}" for split, language in pairs)]
    return f"<h2>Alignment of {escape(name)}</h2>{_table(head, rows)}"
