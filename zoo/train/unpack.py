"""From a shipped model back to trained parts: `python -m zoo.train.unpack stable-diffusion-small`.

Each part becomes what its training exported, in the folder that recipes look for it in. So any part can be trained
further (`init=runs/unet/final`), and others beside it, without training from nothing what they stand on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from zoo import config as configs
from zoo import tensors
from zoo.config import ModelConfig, PartConfig
from zoo.registry import find
from zoo.train.checkpoint import replacing
from zoo.train.command import mistakes_told
from zoo.train.loop import STORY


class Origin(NamedTuple):
    """The part of a recipe that trains a kind of part, and the runs that recipes know it by."""

    part: str
    runs: tuple[str, ...]


ORIGINS: Mapping[str, Origin] = {  # what else there is (a GAN's generator without its discriminator) cannot go on
    "clip-text": Origin("clip", ("clip", "clip-vision")),
    "t5-text": Origin("t5", ("t5",)),
    "latent-diffusion": Origin("unet", ("unet",)),
    "vae": Origin("vae", ("vae",)),
    "pixel-diffusion": Origin("imagen-base", ("imagen-base",)),
    "cascade": Origin("super-resolution", ("super-resolution",)),
    "diffusion-prior": Origin("diffusion-prior", ("prior-diffusion",)),
    "autoregressive-prior": Origin("autoregressive-prior", ("prior-autoregressive",)),
    "one-step-prior": Origin("one-step-prior", ("prior-one-step",)),
    "unclip-decoder": Origin("unclip-decoder", ("unclip-decoder",)),
}


def unpack(model: str | Path, out: Path = Path("runs")) -> list[Path]:
    """Write the parts of a model folder (or name) to `out`/<run>/final; returns these folders.

    Weights that ship in eight bits stay so rounded, and go by the name of the space that they were rounded from.

    Raises:
        ValueError: there is no such model folder, one of its files is damaged, it is another model with an adapter
            folded in, or a run is there already.
    """
    folder = find(model)
    config = configs.read(folder)
    parts = {(part.kind, part.folder): part for part in _parts(config) if part.files and part.kind in ORIGINS}
    if folded := [part for part in parts.values() if part.lora is not None]:
        raise ValueError(f"{config.name} is {folded[0].shared} with an adapter folded in: unpack {folded[0].shared}")
    places = [(part, out / run / "final") for part in parts.values() for run in ORIGINS[part.kind].runs]
    if there := [place for _, place in places if place.exists()]:
        raise ValueError(f"{there[0]} is there already: remove it, or choose another folder with --out")
    for part, place in places:
        _write(part, folder, config, place)
    return [place for _, place in places]


def _parts(config: ModelConfig) -> list[PartConfig]:
    """The model's parts, variants and upsamplers included."""
    varied = [part for parts in config.variants.values() for part in parts.values()]
    own = [config.text_encoder, config.generator, config.decoder, *varied]
    return [*own, *(part.upsamplers for part in own if part.upsamplers is not None)]


def _write(part: PartConfig, folder: Path, config: ModelConfig, place: Path) -> None:
    source = folder if part.shared is None else folder.parent / part.shared
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as temporary:
        for name, expected in part.files.items():
            tensors.check_sum(source / name, expected)
            copy = temporary / Path(name).relative_to(part.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy)
        said = temporary / configs.FILE
        if not said.exists():  # a CLIP has its own, in transformers' words
            said.write_text(json.dumps(part.arguments, indent=1) + "\n", "utf-8")
        trained = ORIGINS[part.kind].part
        cost = config.training.get(trained)
        if isinstance(cost, dict):
            story = {**cost, "recipe": {"part": trained}}
            (temporary / STORY).write_text(json.dumps(story, indent=1) + "\n", "utf-8")


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m zoo.train.unpack", description=__doc__)
    found.add_argument("model", help="the name of a shipped model, or a model folder")
    found.add_argument("--out", type=Path, default=Path("runs"), help="where runs lie (default: runs)")
    return found


def main() -> None:
    arguments = parser().parse_args()
    with mistakes_told():
        for place in unpack(arguments.model, arguments.out):
            print(place)


if __name__ == "__main__":
    main()
