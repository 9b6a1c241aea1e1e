"""What runs of the part "adapter" left, opened again and compared: by the P7 checker, the scene checker, and the eye.

python -m zoo.train.adapters runs/p7-lora/final runs/p7-dreambooth/final --sheet p7.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import cast

from zoo.adapt.files import WORD
from zoo.data.subjects import P7_CLASS
from zoo.evaluate.judged import Pipe
from zoo.evaluate.personalisation import Contestant, Sizes, compare, strip, table
from zoo.loading import load
from zoo.train.loop import STORY


def opened(folder: Path, name: str, model: str | None = None, device: str = "auto") -> Contestant:
    """What a run of the part "adapter" left in its `final`: a model folder, or adapters of the model it names.

    Raises:
        ValueError: the folder holds nothing that can be opened.
    """
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "config.json").is_file():
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        whole = load(folder, device=device)
        if (folder / WORD).is_file():
            whole.load_word(folder / WORD)
        return Contestant(name, cast(Pipe, whole), {}, size)
    if not files or not (folder / STORY).is_file():
        raise ValueError(f"{folder} holds no adapters with their {STORY}: give the folder `final` of a training run")
    said = json.loads((folder / STORY).read_text("utf-8"))
    pipe = load(model or said["recipe"]["model"], device=device)
    chosen: dict[str, float] = {}
    for file in files:
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
    settings = {"adapters": chosen} if chosen else {}
    return Contestant(name, cast(Pipe, pipe), settings, sum(file.stat().st_size for file in files))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare adapters of the P7, beside the model that they adapt.")
    parser.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help="for example runs/p7-lora/final")
    parser.add_argument("--model", default=None, help="the model they adapt (default: what their runs say)")
    parser.add_argument("--per-prompt", type=int, default=Sizes.per_prompt, help="pictures of each of 50 prompts")
    parser.add_argument("--of-class", type=int, default=Sizes.of_class, help=f"pictures of {P7_CLASS!r}")
    parser.add_argument("--per-task", type=int, default=Sizes.per_task, help="scenes for each task without the subject")
    parser.add_argument("--steps", type=int, default=None, help="of sampling (default: each model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sheet", type=Path, default=None, help="a PNG of the first pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    entered = []
    for given in options.folders:
        name, _, path = given.rpartition("=")
        folder = Path(path)
        name = name or (folder.parent.name if folder.name == "final" else folder.name)
        entered.append((folder, opened(folder, name, options.model, options.device)))
    base = options.model or json.loads((entered[0][0] / STORY).read_text("utf-8"))["recipe"]["model"]
    model = cast(Pipe, load(base, device=options.device))
    contestants = [Contestant(str(base), model, {}), *(one for _, one in entered)]
    found = compare(
        contestants, Sizes(options.per_prompt, options.of_class, options.per_task, options.steps, options.seed)
    )
    measures = {name: drawn.measures for name, drawn in found.items()}
    print(json.dumps(measures) if options.json else table(found, contestants))
    if options.sheet is not None:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        strip(found).save(options.sheet)


if __name__ == "__main__":
    main()
