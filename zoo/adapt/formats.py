"""LoRA files: ours, and the four layouts that are published. Nothing is ever unpickled but plain tensors.

    format       written by                    keys                                                  alpha
    zoo          `write`                       <part>.<our module>.down, .up                         in the header
    kohya        kohya-ss/sd-scripts           lora_unet_<module, _ for .>.lora_down.weight, lora_te_..  a tensor each
    attn-procs   diffusers 0.13 to 0.16        <attention>.processor.to_q_lora.down.weight           none: the rank
    diffusers    diffusers from 0.17           unet.<module>.lora_A.weight, .lora.down.weight        header, or the rank
    peft         PEFT: a folder                base_model.model.<module>.lora_A.weight               adapter_config.json

What a module is called in them is data that a part hands over (`zoo.interface.Adaptable`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from zoo import hub, tensors
from zoo.adapt.files import LORA, PREFIX, WORD
from zoo.adapt.lora import LoRA
from zoo.adapt.stated import HEADER, Stated, of_folder, of_header, of_zoo
from zoo.atomic import write_text
from zoo.interface import Adaptable

Format: TypeAlias = Literal["zoo", "kohya", "diffusers", "peft"]
Networks: TypeAlias = Mapping[str, Adaptable | nn.Module]
"""Networks by the names of their parts, such as "unet" and "text_encoder"; a bare module goes by its own names."""

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
KOHYA = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
SIDES = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up"}

# Layouts of keys, the first that fits holds: what to call the module whose name and projection were found.
Spell: TypeAlias = Callable[[str, str], str]
GRAMMARS: Sequence[tuple[str, str, Spell]] = (
    (
        "kohya",
        r"(?P<module>lora_(?:unet|te[12]?)_\w+)\.(?P<side>lora_down\.weight|lora_up\.weight|alpha)",
        lambda m, _: m,
    ),
    (
        "attn-procs",
        r"(?P<module>.+)\.processor\.to_(?P<projection>[qkv]|out)_lora\.(?P<side>down|up)\.weight",
        lambda m, p: f"{m}.to_out.0" if p == "out" else f"{m}.to_{p}",
    ),
    (
        "diffusers",
        r"(?P<module>.+\.self_attn)\.to_(?P<projection>[qkv]|out)_lora\.(?P<side>down|up)\.weight",
        lambda m, p: f"{m}.{p}_proj",
    ),
    ("diffusers", r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight", lambda m, _: m),
    ("peft", r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight", lambda m, _: m),
    ("diffusers", r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight", lambda m, _: m),
)
OURS: Sequence[tuple[str, str, Spell]] = (("zoo", r"(?P<module>.+)\.(?P<side>down|up)", lambda m, _: m),)


@dataclass(frozen=True)
class Entry:
    """What a file holds for one module: its keys and tensors by side (down, up), and what it says of rank and alpha."""

    stem: str  # with which its keys begin
    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA file as read: its entries by the module's name as it spells it, and keys that no layout knows."""

    path: Path
    format: str
    entries: dict[str, Entry]
    foreign: tuple[str, ...]


def locate(source: str | Path) -> Path:
    """The file or PEFT folder of a path, of a hub id `owner/name`, or of one file in it, `owner/name/file`.

    Of a folder or repository, its one adapter: the file of a usual name, or the only one there is. Of a repository
    nothing else is fetched, but the word that was learned with it.

    Raises:
        ValueError: there is none, or a folder holds several and no one of them has a usual name.
    """
    path = Path(source)
    if not path.exists():
        owner, *names = str(source).split("/")
        local = isinstance(source, Path) or owner in ("", ".", "..", "~") or not names
        if local or (len(names) == 1 and path.suffix in (".safetensors", *PICKLES)):
            raise ValueError(f"there is no adapter {str(source)!r}: give a file, a folder or a hub id (owner/name)")
        path = _fetch(str(source))
    if path.is_file():
        return path.parent if path.name in WEIGHTS[:2] and (path.parent / CONFIG).is_file() else path
    chosen = _choose(source, [file.name if file.is_file() else f"{file.name}/" for file in path.iterdir()])
    return path if chosen == CONFIG else path / chosen


def read(path: str | Path) -> LoRAFile:
    """The content of a LoRA file, or of a PEFT folder, in whichever layout it is.

    Raises:
        ValueError: it cannot be read, holds other things than tensors, states a rank or alpha that is none, or is of a
            kind that cannot act as it should (DoRA, transposed weights).
    """
    path = Path(path)
    stated: dict[str, Stated] | None = None
    if path.is_dir():
        stated = {"": of_folder(path / CONFIG)}
        file = next((path / name for name in WEIGHTS[:2] if (path / name).is_file()), path / WEIGHTS[0])
    else:
        file = path
    stored = _tensors(file)
    said = tensors.metadata(file) if file.suffix == ".safetensors" else {}
    if said.get("format") == "zoo" and said.get("kind") != "lora":
        raise ValueError(f"{path} is no LoRA: its header says kind {said.get('kind')!r}")
    grammars = OURS if said.get("format") == "zoo" else GRAMMARS
    entries: dict[str, Entry] = {}
    formats, foreign = set(), []
    for key, tensor in stored.items():
        match, layout, spell = next(
            ((m, f, s) for f, p, s in grammars if (m := re.fullmatch(p, key))), (None, "", None)
        )
        if match is None or spell is None:
            foreign.append(key)
            continue
        module = spell(match["module"], match.groupdict().get("projection") or "")
        entry = entries.setdefault(module, Entry(key[: match.end("module")]))
        side = SIDES.get(match["side"], match["side"])
        if side in entry.keys:
            foreign.append(key)  # two keys for one matrix
            continue
        entry.keys[side], entry.tensors[side] = key, tensor
        formats.add(layout)
    if said.get("format") == "zoo":
        stated = {"": of_zoo(path, said)}
    elif stated is None:
        stated = of_header(path, said)
    whole = {module: _with_stated(module, entry, stated) for module, entry in entries.items()}
    return LoRAFile(path, " + ".join(sorted(formats)) or "unknown", whole, tuple(foreign))


def write(
    path: str | Path,
    loras: Mapping[str, LoRA],
    format: Format = "zoo",
    *,
    networks: Networks | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the LoRAs of one or more parts, tensors as `dtype` if given: a safetensors file, for "peft" a folder.

    networks: the parts that the LoRAs are for, which say what published files call their modules; "zoo" needs none.

    Raises:
        ValueError: an unknown format, a module without a published name, or a part that the format has no place for.
    """
    if format not in get_args(Format):
        raise ValueError(f"unknown format {format!r}; known: {', '.join(get_args(Format))}")
    if format == "peft" and len(loras) != 1:
        raise ValueError(f"a PEFT folder holds the LoRA of one network, not of {', '.join(loras) or 'none'}")
    path = Path(path)
    stored: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    for part, lora in loras.items():
        spelled = {name: (name,) for name in lora.layers} if format == "zoo" else _published(part, lora, networks)
        for name, layer in lora.layers.items():
            module = spelled[name][0]
            if format == "kohya":
                kind = next((kind for kind, known in KOHYA.items() if known == part), None)
                if kind is None:
                    raise ValueError(f"kohya files know {', '.join(KOHYA.values())}, but not the part {part!r}")
                stem = f"lora_{kind}_{module.replace('.', '_')}"
                stored |= {f"{stem}.lora_down.weight": layer.down, f"{stem}.lora_up.weight": layer.up}
                stored[f"{stem}.alpha"] = torch.tensor(layer.alpha)
            elif format == "zoo":
                stored |= {f"{part}.{module}.down": layer.down, f"{part}.{module}.up": layer.up}
                said[f"{part}.{module}"] = layer.alpha
            else:
                stem = f"{part}.{module}" if format == "diffusers" else f"base_model.model.{module}"
                stored |= {f"{stem}.lora_A.weight": layer.down, f"{stem}.lora_B.weight": layer.up}
        if format in ("diffusers", "peft"):
            config = _peft_config(lora, {name: names[-1] for name, names in spelled.items()})
            said |= config if format == "peft" else {f"{part}.{key}": value for key, value in config.items()}
    if format == "peft":
        tensors.write(path / WEIGHTS[0], stored, dtype)
        write_text(path / CONFIG, json.dumps(said, indent=2) + "\n")
        return
    header = {"format": "pt"}
    if format == "zoo":
        ranks = {f"{part}.{name}": layer.rank for part, lora in loras.items() for name, layer in lora.layers.items()}
        header = {"format": "zoo", "kind": "lora", "parts": ",".join(loras)}
        header |= {"rank": json.dumps(ranks), "alpha": json.dumps(said)}
    elif format == "diffusers":
        header[HEADER] = json.dumps(said)
    elif format == "kohya":
        layers = [layer for lora in loras.values() for layer in lora.layers.values()]
        header["ss_network_module"] = "networks.lora"
        header["ss_network_dim"] = str(Counter(layer.rank for layer in layers).most_common(1)[0][0])
        header["ss_network_alpha"] = str(Counter(layer.alpha for layer in layers).most_common(1)[0][0])
    tensors.write(path, stored, dtype, header)


def _published(part: str, lora: LoRA, networks: Networks | None) -> dict[str, tuple[str, ...]]:
    network = (networks or {}).get(part)
    if network is None:
        raise ValueError(
            f"which names published files give to the modules of {part!r}? Pass networks={{{part!r}: ...}}"
        )
    if not isinstance(network, Adaptable):
        return {name: (name,) for name in lora.layers}
    unknown = sorted(name for name in lora.layers if name not in network.published)
    if unknown:
        raise ValueError(f"no published name is known for these modules of {part!r}: {', '.join(unknown)}")
    return {name: network.published[name] for name in lora.layers}


def _peft_config(lora: LoRA, names: Mapping[str, str]) -> dict[str, Any]:
    ranks = {names[name]: layer.rank for name, layer in lora.layers.items()}
    alphas = {names[name]: layer.alpha for name, layer in lora.layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(names.values()),
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return tensors.read(path)
    if path.suffix not in PICKLES:
        raise ValueError(f"{path} is no LoRA file: expected .safetensors, or of old ones {', '.join(PICKLES)}")
    return tensors.read_pickle(path, only=True)  # an alpha that is a plain number must not go unheard


def _with_stated(module: str, entry: Entry, stated: Mapping[str, Stated]) -> Entry:
    """The entry with the rank and alpha that the file states for it."""
    if "alpha" in entry.tensors:
        return replace(entry, alpha=float(entry.tensors["alpha"].float().mean()))
    part, _, rest = module.partition(".")
    says, name = (stated[part], rest) if part in stated else (stated.get(""), module)
    if says is None:
        return entry
    rank, alpha = says.of(name)
    down = entry.tensors.get("down")
    if alpha is not None and says.rslora and down is not None and down.dim():
        alpha = alpha * math.sqrt(len(down))  # there alpha / sqrt(rank) is the factor
    return replace(entry, alpha=alpha, rank=rank)


def _choose(source: str | Path, names: Sequence[str]) -> str:
    """Of the files of a folder or repository, by their names there, its one adapter; `CONFIG` is a PEFT folder."""
    top = sorted(name for name in names if "/" not in name)
    any_one = [name for name in top if name.endswith(".safetensors")]
    for usual in ([CONFIG], [WEIGHTS[2]], ["pytorch_lora_weights.bin"], [LORA.name, PREFIX.name], any_one):
        found = [name for name in usual if name in top]
        if len(found) == 1:
            return found[0]
    listed = ", ".join(sorted(names)[:20])
    raise ValueError(f"{source} holds no or several adapters ({listed}): give one file's path")


def _fetch(source: str) -> Path:
    """The file that `owner/name/file` names, or the folder of the one adapter of `owner/name`."""
    from huggingface_hub import hf_hub_download

    owner, name, *inner = source.split("/")
    repository, otherwise = f"{owner}/{name}", "is neither a path here nor a LoRA on the hub"
    if inner:
        file = "/".join(inner)
        return Path(hub.asked(source, lambda: hf_hub_download(repository, file), otherwise=otherwise))
    return hub.fetch_chosen(repository, lambda names: _needed(source, names), otherwise=otherwise)


def _needed(source: str, names: Sequence[str]) -> list[str]:
    """Of a repository's files, those of its one adapter: PEFT's config has the weights beside it."""
    chosen = _choose(source, names)
    weights = [name for name in WEIGHTS[:2] if chosen == CONFIG and name in names]
    return [name for name in dict.fromkeys([chosen, *weights[:1], WORD.name]) if name in names]
