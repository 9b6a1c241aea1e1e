"""What it takes to learn the three things of `zoo.evaluate.lessons` by prefix, by LoRA and by both.

python -m zoo.train.lessons runs/p7-lora/final runs/maroon-prefix/final --steps 10

A run's lesson is the folder of pictures it was trained on. What is saved in results/lessons.json is all that the table
of docs/adaptation.md is made of; `make results` writes it anew. Milliseconds are of unloading what was loaded and
reading this from its files, ready to draw, on one thread; to choose among adapters that are loaded takes none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from zoo.atomic import write_text
from zoo.evaluate.lessons import LESSONS, score
from zoo.markdown import table as rows_of
from zoo.pipeline import Pipeline
from zoo.tensors import read, sha256
from zoo.train import marked
from zoo.train.adapters import attach, files_of, opened, story_of
from zoo.train.cache import fingerprint
from zoo.train.command import mistakes_told
from zoo.train.loop import cost
from zoo.train.methods import weights_of

SAVED, PAGE = Path("results") / "lessons.json", Path("docs") / "adaptation.md"
SWITCHES = 15  # of which the median is taken


class Lesson(TypedDict):
    """How well one method taught one thing, and what it takes."""

    lesson: str
    method: str
    score: float
    parameters: int
    bytes: int
    minutes: float
    milliseconds: float
    steps: int | None
    digest: str  # of what was trained, of what it adapts, and of how it is asked


def measured(folders: Sequence[Path], steps: int | None = None, saved: Path | None = None) -> list[Lesson]:
    """A row a run, in the order of the lessons, and the rows of `saved`: those of these files are not measured again.

    Raises:
        ValueError: a folder that is no run of an adapter, one that learned from other pictures than a lesson's, or two
            that learned the same in the same way.
    """
    entered: dict[tuple[str, str], tuple[Path, float]] = {}
    for folder in folders:
        said = story_of(folder)
        lesson, method = Path(said["recipe"]["pictures"]).name, str(said["recipe"]["method"])
        if lesson not in LESSONS or method == "full":
            raise ValueError(f"{folder} is no lesson by an adapter: it learned {lesson} by {method}")
        if (lesson, method) in entered:
            raise ValueError(f"{folder} and {entered[lesson, method][0]} both learned {lesson} by {method}: give one")
        entered[lesson, method] = folder, cost(said)["minutes"]
    known = _read(saved)
    for (lesson, method), (folder, minutes) in entered.items():
        one = opened(folder, folder.parent.name)
        pipe, files = cast(Pipeline, one.pipe), files_of(folder)
        digest = fingerprint(*weights_of(pipe).values(), *map(sha256, files), steps)
        if (lesson, method) in known and known[lesson, method]["digest"] == digest:
            continue
        row = Lesson(
            lesson=lesson,
            method=method,
            score=score(one, lesson, steps=steps),
            parameters=sum(tensor.numel() for file in files for tensor in read(file).values()),
            bytes=one.bytes,
            minutes=minutes,
            milliseconds=_switch(pipe, folder),
            steps=steps,
            digest=digest,
        )
        known = known | _read(saved) | {(lesson, method): row}  # another process may have saved since
        if saved is not None:
            saved.parent.mkdir(parents=True, exist_ok=True)
            write_text(saved, json.dumps(_ordered(known), indent=1) + "\n")
    return _ordered(known)


def table(rows: Sequence[Lesson]) -> str:
    """The comparison in Markdown, a row a lesson and method."""
    told = [
        (
            row["lesson"],
            row["method"],
            f"{row['score']:.3f}",
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1024:,.0f} KB",
            f"{row['minutes']:.0f}",
            f"{row['milliseconds']:.0f}",
        )
        for row in rows
    ]
    return rows_of(("lesson", "method", "score", "parameters", "size", "minutes", "ms to switch"), told)


def _switch(pipe: Pipeline, folder: Path) -> float:
    """Milliseconds, the median of some times, until what a run left is read anew in place of what is loaded."""
    took = []
    for _ in range(SWITCHES):
        start = time.thread_time()  # which other processes do not add to
        for name in pipe.adapters():
            pipe.unload(name)
        attach(pipe, folder)
        took.append(1000 * (time.thread_time() - start))
    return statistics.median(took)


def _read(saved: Path | None) -> dict[tuple[str, str], Lesson]:
    rows = [] if saved is None or not saved.is_file() else json.loads(saved.read_text("utf-8"))
    return {(row["lesson"], row["method"]): row for row in rows}


def _ordered(rows: Mapping[tuple[str, str], Lesson]) -> list[Lesson]:
    order = list(LESSONS)
    return sorted(rows.values(), key=lambda row: (order.index(row["lesson"]), row["bytes"]))


TABLE = marked.Saved(SAVED, PAGE, "lessons", cast(Any, table))


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(description="Compare what prefixes, LoRA and both learn of three things.")
    found.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="for example runs/p7-lora/final")
    found.add_argument("--steps", type=int, default=None, help="of sampling (default: the model's own)")
    found.add_argument("--save", type=Path, default=SAVED, help=f"measure what this file lacks (default {SAVED})")
    return found


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        print(table(measured(options.folders, options.steps, options.save)))


if __name__ == "__main__":
    main()
