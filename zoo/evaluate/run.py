"""Scoring a model: ask for pictures, let the checker judge them, report how many are right in each task."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, TypeVar

from zoo.atomic import replacing, write_image, write_text
from zoo.data.captions import Language
from zoo.evaluate import confusion as confusions
from zoo.evaluate.calibration import Report, calibrate
from zoo.evaluate.checker import FACETS, Verdict
from zoo.evaluate.confusion import Confusion, confusion
from zoo.evaluate.failures import failure_sheet, file_name
from zoo.evaluate.intervals import of_mean, of_share
from zoo.evaluate.judged import Judged, Pipe, draw_and_judge
from zoo.evaluate.tasks import LANGUAGES, MEAN_OF, TASKS, cases, read_cases

Cell: TypeAlias = "dict[str, dict[str, float | None]]"
IntervalCell: TypeAlias = "dict[str, dict[str, list[float] | None]]"
SPLITS = ("seen", "held_out")
CLEAN = "cleanly drawn too"
T = TypeVar("T")


class Intervals(TypedDict):
    """The 95 % intervals [low, high] of the shares that `Scores` has under the same names."""

    overall: IntervalCell
    clean: IntervalCell
    tasks: dict[str, IntervalCell]
    facets: dict[str, IntervalCell]


class Scores(TypedDict):
    """A cell is {"seen" | "held_out": {"en" | "zh": share of right pictures, None where none was asked for}}.

    `overall` is the mean of the six tasks (of those that were asked for), style apart, and `clean` the same mean of the
    shares that are right and cleanly drawn too (`zoo.evaluate.checker.Verdict`); `facets` the share right in each
    facet, over the pictures it was judged in; `intervals` how far all these can be trusted (`zoo.evaluate.intervals`;
    those of facets are rather too wide: their pictures come from tasks in fixed numbers); `confusion` how often what
    was asked was seen as what, {facet: {asked: {seen: count}}} (`zoo.evaluate.confusion`).
    """

    model: str
    overall: Cell
    clean: Cell
    tasks: dict[str, Cell]
    checker: Report | None
    images: int
    seconds: float
    facets: dict[str, Cell]
    intervals: Intervals
    confusion: Confusion
    heldout: str
    settings: dict[str, object]


def evaluate(
    pipe: Pipe,
    *,
    per_task: int = 100,
    seed: int = 0,
    heldout: Literal["dev", "test"] = "test",
    languages: Sequence[Language] = LANGUAGES,
    prompts: str | Path | None = None,
    calibration: int = 200,
    batch: int = 16,
    save: str | Path | None = None,
    progress: bool = True,
    **settings: object,
) -> Scores:
    """How often a model's pictures show what their prompts say.

    per_task: scenes for each task and split, one picture in each language, of the same scenes and seeds. heldout: which
    half of the held-out combinations: "dev" while developing, "test" once, when a model ships. prompts: a file of one's
    own prompts instead (see `zoo.evaluate.tasks.read_cases`). calibration: scenes on which the checker is measured too
    (0: not). save: a folder for the report and the pictures (see `write`). settings: sampler, steps, guidance and
    whatever else the pipe's call takes.

    Raises:
        ValueError: per_task below 1, an unknown half or language, or a file of prompts that cannot be read.
    """
    if per_task < 1 or heldout not in ("dev", "test") or not languages or not set(languages) <= set(LANGUAGES):
        raise ValueError(
            f"cannot evaluate per_task={per_task}, heldout={heldout!r}, languages={list(languages)}; "
            f"expected at least 1 scene a task, dev or test, and some of {', '.join(LANGUAGES)}"
        )
    started = time.perf_counter()
    asked = read_cases(prompts, seed) if prompts is not None else cases(per_task, seed, heldout, languages)
    judged = draw_and_judge(pipe, asked, batch, progress, settings)
    tasks = {task: [j for j in judged if j.case.task == task] for task in dict.fromkeys(c.task for c in asked)}
    counted = [j for j in judged if j.case.task in MEAN_OF or j.case.task not in TASKS]  # of one's own tasks, all
    facets = [facet for facet in FACETS if any(facet in j.verdict.facets for j in judged)]
    report = Scores(
        model=str(getattr(pipe, "name", type(pipe).__name__)),
        overall=_cells(counted, _mean),
        clean=_cells(counted, partial(_mean, mark=_clean)),
        tasks={task: _cells(group, _share) for task, group in tasks.items()},
        checker=calibrate(calibration, seed) if calibration else None,
        images=len(judged),
        seconds=round(time.perf_counter() - started, 1),
        facets={facet: _cells(judged, partial(_share, mark=_in(facet))) for facet in facets},
        intervals=Intervals(
            overall=_cells(counted, _mean_interval),
            clean=_cells(counted, partial(_mean_interval, mark=_clean)),
            tasks={task: _cells(group, _interval) for task, group in tasks.items()},
            facets={facet: _cells(judged, partial(_interval, mark=_in(facet))) for facet in facets},
        ),
        confusion=confusion((j.case.scene, j.reading) for j in judged),
        heldout=heldout,
        settings=settings,
    )
    if save is not None:
        write(judged, report, Path(save))
    return report


def _cells(judged: Sequence[Judged], value: Callable[[list[Judged]], T | None]) -> dict[str, dict[str, T | None]]:
    """What `value` says of the pictures of each split and language."""
    groups: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for j in judged:
        groups[j.case.split, j.case.language].append(j)
    return {split: {language: value(groups[split, language]) for language in LANGUAGES} for split in SPLITS}


Mark: TypeAlias = Callable[[Verdict], bool | None]
"""What is counted of a verdict: True is right, None was not judged."""


def _right(verdict: Verdict) -> bool:
    return verdict.ok


def _clean(verdict: Verdict) -> bool:
    return verdict.clean


def _in(facet: str) -> Mark:
    return lambda verdict: verdict.facets.get(facet)


def _count(judged: Sequence[Judged], mark: Mark = _right) -> tuple[int, int]:
    """How many are right, and of how many that was judged."""
    marks = [mark(j.verdict) for j in judged]
    return sum(found is True for found in marks), sum(found is not None for found in marks)


def _share(judged: Sequence[Judged], mark: Mark = _right) -> float | None:
    right, n = _count(judged, mark)
    return round(right / n, 4) if n else None


def _interval(judged: Sequence[Judged], mark: Mark = _right) -> list[float] | None:
    right, n = _count(judged, mark)
    return [round(end, 4) for end in of_share(right, n)] if n else None


def _counts(judged: Sequence[Judged], mark: Mark) -> list[tuple[int, int]]:
    """(right, of how many) for each task."""
    tasks: dict[str, list[Judged]] = defaultdict(list)
    for j in judged:
        tasks[j.case.task].append(j)
    return [_count(group, mark) for group in tasks.values()]


def _mean(judged: Sequence[Judged], mark: Mark = _right) -> float | None:
    shares = [right / n for right, n in _counts(judged, mark)]
    return round(sum(shares) / len(shares), 4) if shares else None


def _mean_interval(judged: Sequence[Judged], mark: Mark = _right) -> list[float] | None:
    return [round(end, 4) for end in of_mean(_counts(judged, mark))] if judged else None


def score_rows(scores: Scores) -> list[tuple[str, Cell, IntervalCell]]:
    """The rows of a report, each with its shares and their intervals: overall, cleanly drawn too, and each task."""
    ends = scores["intervals"]
    found = [("overall", scores["overall"], ends["overall"]), (CLEAN, scores["clean"], ends["clean"])]
    return [*found, *((task, cell, ends["tasks"][task]) for task, cell in scores["tasks"].items())]


def write(judged: Sequence[Judged], report: Scores, folder: Path) -> None:
    """Into a folder: report.json; the pictures as PNG, with a line of JSON each in verdicts.jsonl that tells what was
    asked, seen and judged; and the worst of the wrong ones on one sheet, failures.png (none where all are right)."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "verdicts.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for index, j in enumerate(judged):
            write_image(folder / file_name(index), j.image(), durable=False)
            row = {
                "file": file_name(index),
                "task": j.case.task,
                "split": j.case.split,
                "language": j.case.language,
                "prompt": j.case.prompt,
                "scene": j.case.scene.to_dict(),
                "seed": j.case.seed,
                "ok": j.verdict.ok,
                "facets": j.verdict.facets,
                "reasons": j.verdict.reasons,
                "blemishes": j.verdict.blemishes,
                "seen": asdict(j.reading),
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    sheet = failure_sheet(judged, report["model"])
    if sheet is None:
        (folder / "failures.png").unlink(missing_ok=True)  # an earlier evaluation's
    else:
        write_image(folder / "failures.png", sheet)
    write_text(folder / "report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")


def table(report: Scores) -> str:
    """A report as text, in 80 columns but for the confusions: a row a task, a column a split and language, in per cent.

    Behind each share stands its 95 % interval, its ends rounded outwards.
    """

    def row(title: str, cell: Cell, intervals: IntervalCell) -> str:
        columns = [(split, language) for split in SPLITS for language in LANGUAGES]
        return f"{title:20}" + "".join(f"{_percent(cell[s][k], intervals[s][k]):>15}" for s, k in columns)

    lines = [
        f"{report['model']}: {report['images']} images, {report['seconds']:.0f} s, held-out half: {report['heldout']}",
        f"{'% (95 % interval)':20}"
        + "".join(f"{s.replace('_', '-') + ' ' + language:>15}" for s in SPLITS for language in LANGUAGES),
        *(row(*one) for one in score_rows(report)),
        "",
        f"{'facet':<12}{'not as asked':>12}  most frequent confusions (asked -> seen)",
        confusions.table(report["confusion"]),
    ]
    if report["checker"]:
        true, changed = report["checker"]["true"], report["checker"]["changed"]
        lines += [
            "",
            f"checker: yes to {100 * min(true.values()):.1f} % of true descriptions and to "
            f"{100 * max(part['all'] for part in changed.values()):.2f} % of changed ones, at worst",
        ]
    return "\n".join(lines)


def _percent(share: float | None, interval: list[float] | None) -> str:
    if share is None or interval is None:
        return "-"
    low, high = interval
    return f"{100 * share:.1f} ({math.floor(100 * low)}-{math.ceil(100 * high)})"
