"""Folders of published checkpoints in the diffusers layout: which files they hold, and that these are safe to read.

    model_index.json                                          what the parts are, by class
    unet/config.json, diffusion_pytorch_model.safetensors     a part; or .bin, in shards, or a variant (.fp16.)
    text_encoder/config.json, model.safetensors               the same with transformers' names

Nothing outside the folder is read: no name may lead out of it, and no link, but for those of the hub's own cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from torch import Tensor

from zoo import tensors
from zoo.config import inner_path
from zoo.interface import Decoder, Generator, Sampling, TextEncoder

INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of weight files: diffusers', transformers' new and old
LONGEST_CONFIG = 4_000_000  # bytes
VARIANT = re.compile(r"[A-Za-z0-9_-]+")
COUNTS = {"layers_per_block", "transformer_layers_per_block", "num_hidden_layers", "attention_head_dim"}
LARGEST_COUNT, LARGEST = 1000, 10_000_000

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Assembly:
    """What a published checkpoint holds: the parts of a pipeline, and how it is sampled.

    A checkpoint may be one part alone (None for the others); `lacking` then says what it is and how it is loaded.
    """

    name: str
    text_encoder: TextEncoder | None
    generator: Generator | None
    decoder: Decoder | None
    defaults: Sampling
    size: tuple[int, int]  # height and width in pixels
    lacking: str = ""


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder, which may or may not be there.

    Raises:
        ValueError: the name, or a link that it leads to, leaves the folder.
    """
    try:
        path = folder / inner_path(name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    home = _home(folder)
    if not path.resolve().is_relative_to(home):
        raise ValueError(f"{path} is a link to {path.resolve()}, outside {home}: put the file itself there")
    return path


def _home(folder: Path) -> Path:
    """What a folder's links may point into: the model's folder, or in the hub's cache all that is kept of it."""
    folder = folder.resolve()
    for snapshots in folder.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return folder.parent if (folder.parent / INDEX).is_file() else folder


def options(folder: Path, name: str) -> dict[str, object]:
    """What a JSON file in a folder says.

    Raises:
        ValueError: the file is missing, damaged, or no object of JSON.
    """
    path = inside(folder, name)
    try:
        size = path.stat().st_size
        if size > LONGEST_CONFIG:
            raise ValueError(f"{size} bytes are too many for it")
        said = tensors.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a valid config: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} is not a valid config: an object is expected, not {type(said).__name__}")
    return said


def classes(
    folder: Path, pipelines: Sequence[str], components: Mapping[str, Sequence[str]], aside: Mapping[str, str]
) -> dict[str, str]:
    """The class of each component that model_index.json names; those that `aside` names are passed over.

    pipelines: the classes of pipelines that are read. components: those that it must have, and the classes of each that
    are read; none is any.

    Raises:
        ValueError: it is of another pipeline, or has other components.
    """
    said = options(folder, INDEX)
    if said.get("_class_name") not in pipelines:
        raise ValueError(f"{folder / INDEX} is of a {said.get('_class_name')}, not of one of: {', '.join(pipelines)}")
    listed = {name: value for name, value in said.items() if not name.startswith("_")}
    if unknown := sorted(listed.keys() - components.keys() - aside.keys()):
        raise ValueError(f"{folder / INDEX} lists components that are not known: {', '.join(unknown)}")
    found: dict[str, str] = {}
    for name in sorted(components):
        value = listed.get(name)
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            raise ValueError(f"{folder / INDEX} does not name the class of {name!r}, as in [library, class]: {value!r}")
        found[name] = value[1]
    for name, expected in components.items():
        inside(folder, name)
        if expected and found[name] not in expected:
            raise ValueError(f"the {name} in {folder / INDEX} is a {found[name]}: supported is {' or '.join(expected)}")
    return found


def understood(
    folder: Path, name: str, understand: Callable[[dict[str, object]], ConfigT]
) -> tuple[dict[str, object], ConfigT]:
    """What a config says, as it stands and as it is understood.

    Raises:
        ValueError: it cannot be; the message names the file.
    """
    said = options(folder, name)
    if odd := [option for option, value in said.items() if not _sane(option, value)]:
        raise ValueError(f"{folder / name}: no network has such numbers: {', '.join(f'{o}={said[o]!r}' for o in odd)}")
    try:
        return said, understand(said)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{folder / name} is not valid: {faults}") from error
    except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
        raise ValueError(f"{folder / name} is not valid: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{folder / name}: {error}") from error


def side(place: Path, said: Mapping[str, object], multiple: int) -> int:
    """The height and width of a network's square pictures, which its config in the folder `place` says.

    Raises:
        ValueError: it says no positive multiple of `multiple`.
    """
    found = said.get("sample_size")
    if not isinstance(found, int) or found < 1 or found % multiple:
        raise ValueError(
            f"{place / 'config.json'}: sample_size={found!r} is no size: a positive multiple of {multiple} is expected"
        )
    return found


def _sane(option: str, value: object) -> bool:
    """Whether numbers are such that a network can be built of them at all, before one is tried."""
    if isinstance(value, (list, tuple)):
        return len(value) < LARGEST_COUNT and all(_sane(option, inner) for inner in value)
    if isinstance(value, bool) or not isinstance(value, int):
        return True
    return abs(value) < (LARGEST_COUNT if option in COUNTS else LARGEST)


def choose(names: Sequence[str], variant: str | None, part: str) -> list[str]:
    """Of the files in a part's folder, those with the weights: safetensors rather than pickles, whole or in shards.

    variant: such as "fp16": those files where there are any, else the plain ones.

    Raises:
        ValueError: there are none; the message names those there are.
    """
    if variant is not None and not VARIANT.fullmatch(variant):
        raise ValueError(f"variant {variant!r} is not the name of one, such as 'fp16'")
    for named in dict.fromkeys((variant, None)):
        dotted = f".{named}" if named else ""
        for ending in (".safetensors", ".bin"):
            for stem in STEMS:
                if f"{stem}{dotted}{ending}" in names:
                    return [f"{stem}{dotted}{ending}"]
                index = f"{stem}{ending}.index{dotted}.json"
                if index in names:
                    shard = re.compile(rf"{stem}{re.escape(dotted)}-\d+-of-\d+{re.escape(ending)}")
                    return [index, *sorted(name for name in names if shard.fullmatch(name))]
    there = sorted(name for name in names if name.endswith((".safetensors", ".bin")))
    variants = sorted({parts[1] for name in there if len(parts := name.split(".")) > 2})
    hint = f"; there are variants: pass variant={variants[0]!r}" if variants else ""
    raise ValueError(f"{part} holds no weights (found: {', '.join(there) or 'no weight files'}){hint}")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that hold the tensors of a part's folder, as `choose` has it.

    Raises:
        ValueError: there are none, or a shard's name leaves the folder.
    """
    first, *_ = choose([path.name for path in folder.glob("*")], variant, str(folder))
    return shards(folder, first) if first.endswith(".json") else [inside(folder, first)]


def shards(folder: Path, index: str) -> list[Path]:
    """The files that an index names as those of a folder's tensors.

    Raises:
        ValueError: it is missing or damaged, or a name leaves the folder.
    """
    listed = options(folder, index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{folder / index} has no valid weight_map: names of tensors to names of files are expected")
    return [inside(folder, name) for name in sorted(set(listed.values()))]


def weights(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The tensors of a part's folder, as stored.

    Raises:
        ValueError: no weight files, one is missing or damaged, or two hold the same tensor.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, variant):
        part = tensors.read(path) if path.suffix == ".safetensors" else tensors.read_pickle(path)
        if twice := sorted(found.keys() & part.keys()):
            raise ValueError(f"{path} holds tensors that another shard has too: {', '.join(twice[:5])}")
        found |= part
    return found


def renamed(
    folder: Path, variant: str | None, rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a part's folder under our names; an error names the folder."""
    stored = weights(folder, variant)
    try:
        return rename(stored)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
