"""What runs of the part "adapter" left, opened again and compared: by the P7 checker, the scene checker, and the eye.

python -m zoo.train.adapters runs/p7-lora/final runs/p7-dreambooth/final --sheet p7.png

What is saved in results/p7.json is all that the table of docs/adaptation.md is made of; `make results` writes it anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from zoo.adapt.files import WORD
from zoo.atomic import write_image, write_text
from zoo.data.subjects import P7_CLASS
from zoo.evaluate.judged import Pipe
from zoo.evaluate.personalisation import COLUMNS, Contestant, Measures, Sizes, measure, relative, strip
from zoo.loading import load
from zoo.markdown import table as rows_of
from zoo.pipeline import Pipeline
from zoo.tensors import sha256
from zoo.train import marked
from zoo.train.cache import fingerprint
from zoo.train.command import mistakes_told
from zoo.train.loop import STORY, cost
from zoo.train.methods import BASE, goes_with, weights_of

SAVED, PAGE = Path("results") / "p7.json", Path("docs") / "adaptation.md"


class Row(Measures):
    """A contestant's measures, the size of what was trained, and what that took."""

    bytes: int
    images: int
    minutes: float
    digest: str  # of what was trained, and of what it adapts


def opened(folder: Path, name: str, model: str | None = None, device: str = "auto") -> Contestant:
    """What a run of the part "adapter" left in its `final`: a model folder, or adapters of the model it names.

    Raises:
        ValueError: the folder holds nothing that can be opened.
    """
    files = files_of(folder)
    if (folder / "config.json").is_file():
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        whole = load(folder, device=device)
        if (folder / WORD).is_file():
            whole.load_word(folder / WORD)
        return Contestant(name, cast(Pipe, whole), {}, size)
    if not files:
        raise ValueError(f"{folder} holds no adapters: give the folder `final` of a training run")
    pipe = load(model or story_of(folder)["recipe"]["model"], device=device)
    if (folder / BASE).is_file() and not goes_with(folder, weights_of(pipe)):
        raise ValueError(f"{folder} was trained on other weights than those of {pipe.name}: train it again")
    chosen = attach(pipe, folder)
    settings = {"adapters": chosen} if chosen else {}
    return Contestant(name, cast(Pipe, pipe), settings, sum(file.stat().st_size for file in files))


def attach(pipe: Pipeline, folder: Path) -> dict[str, float]:
    """Load what a run left into its model; returns the strengths with which it acts.

    Raises:
        ValueError: a file that training does not leave.
    """
    chosen: dict[str, float] = {}
    for file in files_of(folder):
        kind = file.stem.partition("-")[0]
        if kind == "lora":
            pipe.load_lora(file, name=file.stem)
        elif kind == "prefix":
            pipe.load_prefix(file, name=file.stem)
        elif kind == "word":
            pipe.load_word(file)
            continue
        else:
            raise ValueError(f"{file} is no file that training leaves: expected lora, prefix or word")
        chosen[file.stem] = 1.0
    return chosen


def measured(
    entered: Mapping[str, Path], model: str, sizes: Sizes, saved: Path | None = None, device: str = "auto"
) -> dict[str, Row]:
    """What was measured of the model itself and then of every run, by name; read from `saved` if it is of these files.

    Raises:
        ValueError: a folder that cannot be opened, or was trained on other weights than the model's; a run that goes by
            the model's name; or what is saved is of another model or in other sizes.
    """
    if model in entered:
        raise ValueError(f"a run cannot go by the model's name {model!r}: give it as NAME={entered[model]}")
    found = _read(saved, model, sizes)
    for name, folder in {model: None, **entered}.items():
        one = _contestant(name, folder, model, device)
        digest = fingerprint(
            *weights_of(cast(Pipeline, one.pipe)).values(), *(() if folder is None else map(sha256, files_of(folder)))
        )
        if name in found and found[name]["digest"] == digest:
            continue
        took = {"images": 0, "minutes": 0.0} if folder is None else cost(story_of(folder))
        spent = {"bytes": one.bytes, "images": took["images"], "minutes": took["minutes"], "digest": digest}
        row = cast(Row, spent | measure(one, sizes))
        found = found | _read(saved, model, sizes) | {name: row}  # another process may have saved since
        if saved is not None:
            saved.parent.mkdir(parents=True, exist_ok=True)
            kept = {"model": model, "sizes": asdict(sizes), "measured": found}
            write_text(saved, json.dumps(kept, indent=1) + "\n")
    return {name: found[name] for name in (model, *entered)}


def table(found: Mapping[str, Row]) -> str:
    """The comparison in Markdown, a row a contestant; relative measures are to the first, which is the base model."""
    base = next(iter(found.values()))
    rows = [
        (
            name,
            f"{row['bytes'] / 1024:,.0f} KB" if row["bytes"] else "",
            f"{row['minutes']:.0f}" if row["images"] else "",
            *(f"{value:.3f}" for value in relative(row, base).values()),
        )
        for name, row in found.items()
    ]
    return rows_of(("", "size", "minutes", *COLUMNS), rows)


def _saved_table(said: Mapping[str, Any]) -> str:
    return table({said["model"]: said["measured"][said["model"]], **said["measured"]})


TABLE = marked.Saved(SAVED, PAGE, "P7", _saved_table)


def files_of(folder: Path) -> list[Path]:
    """What a run left to be loaded."""
    return sorted(folder.glob("*.safetensors"))


def story_of(folder: Path) -> dict[str, Any]:
    """How a run went: its recipe, steps and minutes.

    Raises:
        ValueError: the folder does not say.
    """
    if not (folder / STORY).is_file():
        raise ValueError(f"{folder} has no {STORY}: give the folder `final` of a training run")
    return dict(json.loads((folder / STORY).read_text("utf-8")))


def _contestant(name: str, folder: Path | None, model: str, device: str) -> Contestant:
    if folder is None:
        return Contestant(name, cast(Pipe, load(model, device=device)), {})
    return opened(folder, name, model, device)


def _read(saved: Path | None, model: str, sizes: Sizes) -> dict[str, Row]:
    if saved is None or not saved.is_file():
        return {}
    said = json.loads(saved.read_text("utf-8"))
    if (said["model"], said["sizes"]) != (model, asdict(sizes)):
        raise ValueError(
            f"{saved} holds what was measured of {said['model']} with {said['sizes']}, not of {model} with "
            f"{asdict(sizes)}: give another file, or remove it"
        )
    return dict(said["measured"])


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(description="Compare adapters of the P7, beside the model that they adapt.")
    found.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help="for example runs/p7-lora/final")
    found.add_argument("--model", default=None, help="the model they adapt (default: what the first run says)")
    found.add_argument("--per-prompt", type=int, default=Sizes.per_prompt, help="pictures of each of 50 prompts")
    found.add_argument("--of-class", type=int, default=Sizes.of_class, help=f"pictures of {P7_CLASS!r}")
    found.add_argument("--per-task", type=int, default=Sizes.per_task, help="scenes for each task without the subject")
    found.add_argument("--steps", type=int, default=None, help="of sampling (default: each model's own)")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--device", default="auto")
    found.add_argument("--save", type=Path, default=None, help=f"measure what this file lacks, such as {SAVED}")
    found.add_argument("--sheet", type=Path, default=None, help="a picture of each of some prompts, in one PNG")
    return found


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    entered: dict[str, Path] = {}
    for given in options.folders:
        name, _, path = given.rpartition("=")
        folder = Path(path)
        name = name or (folder.parent.name if folder.name == "final" else folder.name)
        if name in entered:
            raise ValueError(f"{entered[name]} and {folder} are both called {name!r}: give one as NAME=FOLDER")
        entered[name] = folder
    model = options.model or story_of(next(iter(entered.values())))["recipe"]["model"]
    sizes = Sizes(options.per_prompt, options.of_class, options.per_task, options.steps, options.seed)
    print(table(measured(entered, model, sizes, options.save, options.device)))
    if options.sheet is not None:
        folders = {model: None, **entered}
        shown = [_contestant(name, folder, model, options.device) for name, folder in folders.items()]
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_image(options.sheet, strip(shown, seed=options.seed, steps=options.steps))


if __name__ == "__main__":
    main()
