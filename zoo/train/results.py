"""What the shipped models' configs hold, written where people look: `make results`, or `python -m zoo.train.results`.

The results in a config are the only ones that are measured and stored. results/<model>.csv, the cards, the tables of
README.md, docs/diffusion-against-gan.md and docs/text-encoders.md are rendered from them; those of docs/adaptation.md
from what `zoo.train.adapters` and `zoo.train.lessons` saved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zoo import config as configs
from zoo import model_card
from zoo.atomic import write_text
from zoo.config import ModelConfig
from zoo.train import adapters, lessons, overview, readers, rivals

CARD = "README.md"
RESULTS = Path("results")  # of a checkout: a CSV for each shipped model
PAGES = (overview, rivals, readers)  # tables from configs
TABLES = (adapters.TABLE, lessons.TABLE)  # and from files of their own


def shipped(root: Path) -> list[tuple[Path, ModelConfig]]:
    """The model folders of a checkout and their configs, by name; parts that models share have none."""
    found = sorted(root.glob(f"weights/*/{configs.FILE}"))
    return [
        (path.parent, configs.read(path.parent)) for path in found if "format" in json.loads(path.read_text("utf-8"))
    ]


def write(root: Path) -> list[Path]:
    """Write every model's CSV and card and the tables of pages anew; returns the CSVs and the cards."""
    (root / RESULTS).mkdir(exist_ok=True)
    models = shipped(root)
    for stale in {*root.glob(f"{RESULTS}/*.csv")} - {root / RESULTS / f"{config.name}.csv" for _, config in models}:
        stale.unlink()
    written: list[Path] = []
    for folder, config in models:
        texts = {root / RESULTS / f"{config.name}.csv": model_card.results_csv(config)}
        texts |= {folder / CARD: model_card.render(config)}
        for path, text in texts.items():
            write_text(path, text)
        written += texts
    for page in PAGES:
        page.write(root, [config for _, config in models])
    for table in TABLES:
        table.write(root)
    return written


def disagreements(root: Path) -> list[str]:
    """Each file that says other than the configs do: a CSV, a card or the README, or one that is missing or stale."""
    models = shipped(root)
    wrong = []
    for folder, config in models:
        texts = {root / RESULTS / f"{config.name}.csv": model_card.results_csv(config)}
        texts |= {folder / CARD: model_card.render(config)}
        wrong += [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    wrong += [root / page.PAGE for page in PAGES if page.stale(root, [config for _, config in models])]
    wrong += [root / table.page for table in TABLES if table.stale(root)]
    known = {config.name for _, config in models}
    wrong += [path for path in root.glob(f"{RESULTS}/*.csv") if path.stem not in known]
    return [f"{path.relative_to(root)} is not what the configs hold: run `make results`" for path in wrong]


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    return argparse.ArgumentParser(prog="python -m zoo.train.results", description=__doc__)


def main() -> None:
    """Write all, in the checkout that is the current folder."""
    parser().parse_args()
    for path in write(Path()):
        print(path)


if __name__ == "__main__":
    main()
