"""Does the checker agree with the eye? `python -m zoo.evaluate.eye FOLDER` compares it with labels made by looking.

FOLDER holds pictures and labels.csv with the columns `file`, `label` (yes or no: is the picture what the description
says, with every object whole?) and `scene` (the description as JSON, as in `zoo.evaluate.tasks.read_cases`).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.scenes import Description
from zoo.evaluate.checker import judge


def agreement(folder: str | Path) -> tuple[float, list[str]]:
    """The share of labelled pictures on which checker and eye agree, and a line on each of the others.

    Raises:
        ValueError: no labels, or a row that is not as described; the message gives its number.
    """
    folder = Path(folder)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{folder / 'labels.csv'} holds no labels")
    others = []
    for number, row in enumerate(rows, 1):
        try:
            file, label = row["file"], row["label"].strip().lower()
            scene = Description.from_dict(json.loads(row["scene"]))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"labels.csv, label {number}: {error!r}; expected file, label and scene") from error
        if label not in ("yes", "no"):
            raise ValueError(f"labels.csv, label {number} is {label!r}; expected yes or no")
        verdict = judge(np.asarray(Image.open(folder / file).convert("RGB")), scene)
        if verdict.ok != (label == "yes"):
            others.append(f"{file}: eye {label}, checker {'yes' if verdict.ok else 'no'} {'; '.join(verdict.reasons)}")
    return 1 - len(others) / len(rows), others


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m zoo.evaluate.eye FOLDER")
    share, others = agreement(sys.argv[1])
    print("\n".join([*others, f"agreement {100 * share:.1f} %"]))


if __name__ == "__main__":
    main()
