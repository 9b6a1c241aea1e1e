"""Does the checker agree with the eye? `python -m zoo.evaluate.eye FOLDER` compares it with labels made by looking.

FOLDER holds pictures and labels.csv with the columns `file`, `label` (yes or no: does the picture show what the
description says, with every object whole?), `scene` (the description as JSON, as in `zoo.evaluate.tasks.read_cases`)
and, if that was asked too, `clean` (yes or no: would one accept it as a good drawing of that?).
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.scenes import Description
from zoo.evaluate.checker import judge


@dataclass(frozen=True)
class Agreement:
    """The shares of labelled pictures on which checker and eye agree, and a line on each of the others."""

    right: float
    clean: float | None
    others: list[str]


def agreement(folder: str | Path) -> Agreement:
    """How the checker's verdicts compare with the labels of a folder.

    Raises:
        ValueError: no labels, or a row that is not as described; the message gives its number.
    """
    folder = Path(folder)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{folder / 'labels.csv'} holds no labels")
    others: list[str] = []
    missed = {"right": 0, "clean": 0}
    for number, row in enumerate(rows, 1):
        try:
            scene = Description.from_dict(json.loads(row["scene"]))
            labels = {"right": _said(row["label"])} | ({"clean": _said(row["clean"])} if "clean" in row else {})
            picture = np.asarray(Image.open(folder / row["file"]).convert("RGB"))
        except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
            expected = "expected a picture's file, label, scene and, if that was asked, clean"
            raise ValueError(f"labels.csv, label {number}: {error!r}; {expected}") from error
        verdict = judge(picture, scene)
        for what, label in labels.items():
            found = verdict.ok if what == "right" else verdict.clean
            if found != label:
                missed[what] += 1
                why = "; ".join((*verdict.reasons, *verdict.blemishes))
                others.append(f"{row['file']}: {what}: eye {_word(label)}, checker {_word(found)} {why}".rstrip())
    shares = {what: 1 - count / len(rows) for what, count in missed.items()}
    return Agreement(shares["right"], shares["clean"] if "clean" in rows[0] else None, others)


def _said(label: str) -> bool:
    if label.strip().lower() not in ("yes", "no"):
        raise ValueError(f"a label is {label!r}; expected yes or no")
    return label.strip().lower() == "yes"


def _word(yes: bool) -> str:
    return "yes" if yes else "no"


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m zoo.evaluate.eye", description=__doc__)
    found.add_argument("folder", metavar="FOLDER", help="pictures and labels.csv, such as tests/evaluate/eye")
    return found


def main() -> None:
    found = agreement(parser().parse_args().folder)
    clean = "" if found.clean is None else f", on cleanly drawn {100 * found.clean:.1f} %"
    print("\n".join([*found.others, f"agreement on right {100 * found.right:.1f} %{clean}"]))


if __name__ == "__main__":
    main()
