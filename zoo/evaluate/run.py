"""Scoring a model: ask for pictures, let the checker judge them, report how many are right in each task."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.data.captions import Language
from zoo.evaluate.calibration import Report, calibrate
from zoo.evaluate.checker import FACETS, Verdict, judge
from zoo.evaluate.tasks import LANGUAGES, MEAN_OF, TASKS, Case, cases, read_cases

Cell: TypeAlias = "dict[str, dict[str, float | None]]"
SPLITS = ("seen", "held_out")


class Pictures(Protocol):
    """What a pipeline returns: `tensor` [batch, 3, height, width] in [0, 1]."""

    @property
    def tensor(self) -> Tensor: ...


class Pipe(Protocol):
    """What is scored: a `zoo.Pipeline`, or anything that is called like one."""

    def __call__(
        self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **settings: object
    ) -> Pictures: ...


class Scores(TypedDict):
    """A cell is {"seen" | "held_out": {"en" | "zh": share of right pictures, None where none was asked for}}.

    `overall` is the mean of the six tasks (of those that were asked for), style apart; `interval` half the width of its
    95 % interval; `facets` the share right in each facet, over the pictures it was judged in.
    """

    model: str
    overall: Cell
    tasks: dict[str, Cell]
    checker: Report | None
    images: int
    seconds: float
    interval: Cell
    facets: dict[str, Cell]
    heldout: str
    settings: dict[str, object]


@dataclass(frozen=True)
class Judged:
    """One case with its verdict and its picture [3, height, width]."""

    case: Case
    verdict: Verdict
    picture: Tensor


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
    (0: not). save: a folder for the pictures, verdicts.jsonl and failures.png. settings: sampler, steps, guidance and
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
    if save is not None:
        write(judged, Path(save))
    tasks = {task: _cells([j for j in judged if j.case.task == task]) for task in dict.fromkeys(c.task for c in asked)}
    overall, interval = _overall(judged)
    return Scores(
        model=str(getattr(pipe, "name", type(pipe).__name__)),
        overall=overall,
        tasks=tasks,
        checker=calibrate(calibration, seed) if calibration else None,
        images=len(judged),
        seconds=round(time.perf_counter() - started, 1),
        interval=interval,
        facets={facet: _cells(judged, facet) for facet in FACETS if any(facet in j.verdict.facets for j in judged)},
        heldout=heldout,
        settings=settings,
    )


def draw_and_judge(
    pipe: Pipe, asked: Sequence[Case], batch: int = 16, progress: bool = True, settings: dict[str, object] | None = None
) -> list[Judged]:
    """Each case's picture, judged, in the order of the cases."""
    from tqdm.auto import tqdm

    judged = []
    with tqdm(total=len(asked), disable=not progress, unit="image", leave=False) as bar:
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            made = pipe([c.prompt for c in part], n=1, seed=[c.seed for c in part], progress=False, **(settings or {}))
            pictures = made.tensor.detach().float().cpu()
            if pictures.ndim != 4 or pictures.shape[:2] != (len(part), 3):
                raise ValueError(
                    f"the pipe returned pictures {list(pictures.shape)} for {len(part)} prompts; expected "
                    f"[{len(part)}, 3, height, width]"
                )
            judged += [Judged(c, judge(p, c.scene), p) for c, p in zip(part, pictures, strict=True)]
            bar.update(len(part))
    return judged


def _share(judged: Sequence[Judged], facet: str | None) -> float | None:
    """The share that is right, in all that was said or in one facet; None where there is nothing to count."""
    marks = [j.verdict.ok if facet is None else j.verdict.facets.get(facet) for j in judged]
    counted = [mark for mark in marks if mark is not None]
    return round(sum(counted) / len(counted), 4) if counted else None


def _cells(judged: Sequence[Judged], facet: str | None = None) -> Cell:
    groups: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for j in judged:
        groups[j.case.split, j.case.language].append(j)
    return {split: {language: _share(groups[split, language], facet) for language in LANGUAGES} for split in SPLITS}


def _overall(judged: Sequence[Judged]) -> tuple[Cell, Cell]:
    """The mean of the tasks' shares and half the width of its 95 % interval; with one's own prompts all tasks count."""
    counted = [t for t in dict.fromkeys(j.case.task for j in judged) if t in MEAN_OF or t not in TASKS]
    overall: Cell = {split: {} for split in SPLITS}
    interval: Cell = {split: {} for split in SPLITS}
    for split in SPLITS:
        for language in LANGUAGES:
            groups = [
                [j for j in judged if (j.case.task, j.case.split, j.case.language) == (task, split, language)]
                for task in counted
            ]
            shares = [(sum(j.verdict.ok for j in group) / len(group), len(group)) for group in groups if group]
            overall[split][language] = round(sum(p for p, _ in shares) / len(shares), 4) if shares else None
            spread = math.sqrt(sum(p * (1 - p) / n for p, n in shares)) / max(1, len(shares))
            interval[split][language] = round(1.96 * spread, 4) if shares else None
    return overall, interval


def write(judged: Sequence[Judged], folder: Path) -> None:
    """The pictures as PNG, a line of JSON each in verdicts.jsonl, and those judged wrong on one sheet, failures.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "verdicts.jsonl").open("w", encoding="utf-8") as lines:
        for number, j in enumerate(judged):
            name = f"{number:05}.png"
            Image.fromarray(_pixels(j.picture)).save(folder / name)
            row = {
                "file": name,
                "task": j.case.task,
                "split": j.case.split,
                "language": j.case.language,
                "prompt": j.case.prompt,
                "scene": j.case.scene.to_dict(),
                "seed": j.case.seed,
                "ok": j.verdict.ok,
                "facets": j.verdict.facets,
                "reasons": j.verdict.reasons,
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    wrong = [_pixels(j.picture) for j in judged if not j.verdict.ok]
    if wrong:
        height, width, _ = wrong[0].shape
        columns = min(len(wrong), 20)
        sheet = np.full((-(-len(wrong) // columns) * (height + 2), columns * (width + 2), 3), 255, np.uint8)
        for index, picture in enumerate(wrong):
            top, left = index // columns * (height + 2), index % columns * (width + 2)
            sheet[top : top + height, left : left + width] = picture
        Image.fromarray(sheet).save(folder / "failures.png")


def _pixels(picture: Tensor) -> np.ndarray:
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def table(report: Scores) -> str:
    """A report as text: a row a task, a column a split and language, in per cent."""

    def row(title: str, cell: Cell, after: str = "") -> str:
        values = [cell[split][language] for split in SPLITS for language in LANGUAGES]
        return f"{title:24}" + "".join(f"{'-':>14}" if v is None else f"{100 * v:>13.1f}%" for v in values) + after

    lines = [
        f"{report['model']}: {report['images']} images, {report['seconds']:.0f} s, held-out half: {report['heldout']}",
        f"{'':24}" + "".join(f"{s.replace('_', '-') + ' ' + language:>14}" for s in SPLITS for language in LANGUAGES),
        *(row(task, cell) for task, cell in report["tasks"].items()),
        row("overall", report["overall"]),
        row("  95 % interval, +-", report["interval"]),
    ]
    if report["checker"]:
        true, changed = report["checker"]["true"], report["checker"]["changed"]
        lines.append(
            f"checker: yes to {100 * min(true.values()):.1f} % of true descriptions and to "
            f"{100 * max(part['all'] for part in changed.values()):.2f} % of changed ones, at worst"
        )
    return "\n".join(lines)
