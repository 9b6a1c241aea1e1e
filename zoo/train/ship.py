"""From trained parts to a shipped model: `python -m zoo.train.ship recipes/stable-diffusion-small.toml [--measure]`.

Without `--measure` the model folder is written and can be loaded; with it, the folder's scores, gates and pictures are
made and become its results and its card. The held-out test half is looked at only then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo import config as configs
from zoo import tensors, weights
from zoo.adapt.files import LORA
from zoo.adapt.formats import locate
from zoo.atomic import replacing
from zoo.config import AdapterConfig
from zoo.loading import load
from zoo.train.assemble import assemble, share, tell_sharers
from zoo.train.command import mistakes_told
from zoo.train.loop import STORY, cost
from zoo.train.measure import MEASUREMENTS, measure
from zoo.train.methods import BASE, goes_with, weights_of
from zoo.train.model_recipe import WORDS, ShipRecipe
from zoo.train.recipe import read_toml, validate


def retell(folder: Path, recipe: ShipRecipe) -> None:
    """Have a model folder say what the recipe says now, of it and of its adapters, in words; all else stays."""
    config = configs.read(folder)
    adapters = {
        name: one.model_copy(update={"summary": recipe.adapters[name].summary} if name in recipe.adapters else {})
        for name, one in config.adapters.items()
    }
    words = {field: getattr(recipe, field) for field in WORDS}
    weights.write_config(folder, config.model_copy(update=words | {"adapters": adapters}))


def add_adapters(folder: Path, recipe: ShipRecipe, names: Sequence[str] = ()) -> None:
    """Put what the runs of the recipe's adapters left beside the model that they were trained on; LoRAs in `bits`.

    `names`: those to add, in place of all; others that are there already stay.

    Raises:
        ValueError: no such adapter, a run left nothing that can be added, or was of another model.
    """
    if unknown := [name for name in names if name not in recipe.adapters]:
        raise ValueError(f"the recipe has no adapter {unknown[0]!r}, only {', '.join(recipe.adapters) or 'none'}")
    config = configs.read(folder)
    told = {name: one for name, one in config.adapters.items() if names and name in recipe.adapters}
    weights_there = weights_of(load(folder, device="cpu"))
    for name in names or recipe.adapters:
        adapter = recipe.adapters[name]
        if not (adapter.run / BASE).is_file():
            raise ValueError(f"{adapter.run} holds no adapter: train it first")
        if not goes_with(adapter.run, weights_there):
            raise ValueError(f"{adapter.run} was trained on other weights than those in {folder}: train it again")
        locate(adapter.run)  # there is one that `load_adapter` finds
        files = sorted(adapter.run.glob("*.safetensors"))
        place = folder / configs.ADAPTERS / name
        with replacing(place) as temporary:
            temporary.mkdir(parents=True)
            for file in files:
                dtype = torch.int8 if recipe.bits == 8 and file.name == LORA.name else None
                tensors.write(temporary / file.name, tensors.read(file), dtype, tensors.metadata(file))
        inside = {file.relative_to(folder).as_posix(): tensors.sha256(file) for file in sorted(place.iterdir())}
        story = json.loads((adapter.run / STORY).read_text("utf-8"))
        told[name] = AdapterConfig(
            summary=adapter.summary,
            prompt=adapter.prompt,
            settings=dict(adapter.settings),
            files=inside,
            training={story["recipe"]["part"]: dict(cost(story))},
        )
    ordered = {name: told[name] for name in recipe.adapters if name in told}
    weights.write_config(folder, config.model_copy(update={"adapters": ordered}))
    tell_sharers(folder.parent, folder.name)


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m zoo.train.ship", description=__doc__)
    found.add_argument("recipe", help="recipes/<model>.toml")
    found.add_argument(
        "--measure", nargs="*", choices=MEASUREMENTS, help="all of it, the held-out test half included, or some"
    )
    found.add_argument("--out", type=Path, help="the folder to write the model's into, in place of the recipe's")
    found.add_argument(
        "--keep", action="store_true", help="leave the weights as they are: only what the recipe says in words is new"
    )
    found.add_argument(
        "--shared", action="store_true", help="write the CLIP that it shares with other models alone, and tell them"
    )
    found.add_argument(
        "--only", nargs="+", choices=configs.ROLES, help="write the parts of these roles, and leave the others alone"
    )
    found.add_argument(
        "--adapters", nargs="*", metavar="NAME", help="add the recipe's adapters, trained on this very model, or some"
    )
    return found


def main() -> None:
    """Assemble, unless only measuring, and measure what is asked for."""
    found = parser()
    arguments = found.parse_args()
    if arguments.keep and arguments.only:
        found.error("--keep leaves all parts as they are, --only writes some: give one of them")
    more = (arguments.adapters, arguments.measure, arguments.only)
    if arguments.shared and (arguments.keep or any(given is not None for given in more)):
        found.error("--shared writes the shared CLIP and does nothing else: measure and add adapters in a second call")
    with mistakes_told():
        recipe = validate(ShipRecipe, read_toml(arguments.recipe))
        if arguments.out is not None:
            recipe = recipe.model_copy(update={"out": arguments.out})
        _ship(recipe, arguments)


def _ship(recipe: ShipRecipe, asked: argparse.Namespace) -> None:
    if asked.shared:
        print(*share(recipe), sep="\n")
        return
    folder = recipe.out / recipe.name
    if asked.keep:
        retell(folder, recipe)
    else:
        assemble(recipe, asked.only or configs.ROLES)
    if asked.adapters is not None:
        add_adapters(folder, recipe, asked.adapters)
    if asked.measure is not None:
        measure(folder, recipe, asked.measure or MEASUREMENTS)
    print(folder)


if __name__ == "__main__":
    main()
