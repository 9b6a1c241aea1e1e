"""What a LoRA file states of rank and alpha, in its header or in the config beside it: all of it is checked here."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from zoo import tensors

CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # what PEFT begins a LoRA as by changing its base
HEADER = "lora_adapter_metadata"  # of diffusers

T = TypeVar("T")


@dataclass(frozen=True)
class Stated:
    """Rank and alpha of the modules of one network: of some by name, of all others in common; None where unsaid."""

    rank: int | None
    alpha: float | None
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    exact: bool = False  # whole names, as zoo writes them; else regular expressions on their ends, as PEFT has them
    rslora: bool = False  # alpha / sqrt(rank) is the factor

    def of(self, module: str) -> tuple[int | None, float | None]:
        """The rank and the alpha that are stated for a module."""
        return self._find(module, self.ranks, self.rank), self._find(module, self.alphas, self.alpha)

    def _find(self, module: str, each: Mapping[str, T], common: T | None) -> T | None:
        if self.exact:
            return each.get(module, common)
        return next((value for key, value in each.items() if re.match(_at_end(key), module)), common)


def of_folder(path: Path) -> Stated:
    """What the config of a PEFT folder states.

    Raises:
        ValueError: it cannot be read, is of no LoRA or of one that would not act as it was trained, or an option has a
            value that it cannot have; the message names file and option.
    """
    try:
        config = tensors.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no adapter config: {error}") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{path} is no adapter config: it does not say peft_type")
    if config["peft_type"] != "LORA":
        raise ValueError(f"{path} is of a {config['peft_type']} adapter, not of a LoRA")
    return _checked(path, config)


def of_header(path: Path, said: Mapping[str, str]) -> dict[str, Stated]:
    """What diffusers wrote into a header, by part; nothing where it wrote nothing.

    Raises:
        ValueError: as `of_folder`.
    """
    if HEADER not in said:
        return {}
    flat = _loaded(path, HEADER, said[HEADER])
    parts: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, dot, option = key.partition(".")
        parts.setdefault(part if dot else "", {})[option or part] = value
    return {part: _checked(path, config, f"{part}." if part else "") for part, config in parts.items()}


def of_zoo(path: Path, said: Mapping[str, str]) -> Stated:
    """What `zoo.adapt.formats.write` wrote into a header.

    Raises:
        ValueError: it is not there, or is no rank or no alpha.
    """
    if lacking := [name for name in ("rank", "alpha") if name not in said]:
        raise ValueError(f"{path}: the header does not say {' and '.join(lacking)} as zoo writes them")
    ranks, alphas = (_loaded(path, name, said[name]) for name in ("rank", "alpha"))
    each = {name: _rank(path, f"rank of {name}", value) for name, value in ranks.items()}
    return Stated(
        None, None, each, {name: _alpha(path, f"alpha of {name}", value) for name, value in alphas.items()}, exact=True
    )


def _loaded(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        found = tensors.loads(text.encode())
    except ValueError as error:
        raise ValueError(f"{path}: the header's {name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the header's {name} is no table, but {found!r}")
    return found


def _checked(path: Path, config: Mapping[str, Any], before: str = "") -> Stated:
    """What a PEFT config states; `before` begins its options' names as the file has them."""
    for option in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if config.get(option):
            raise ValueError(f"{path} says {before}{option}: such a LoRA would not act here as it was trained")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ValueError(
            f"{path} says {before}init_lora_weights = {start!r}, which also changes the weights beneath: convert it, "
            "as PEFT does with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    rank, alpha, rslora = (config.get(option) for option in ("r", "lora_alpha", "use_rslora"))
    if not isinstance(rslora, bool | None):
        raise _wrong(path, f"{before}use_rslora", rslora, "true or false")
    ranks, alphas = (_patterns(path, before + name, config.get(name)) for name in ("rank_pattern", "alpha_pattern"))
    return Stated(
        None if rank is None else _rank(path, f"{before}r", rank),
        None if alpha is None else _alpha(path, f"{before}lora_alpha", alpha),
        {key: _rank(path, f"{before}rank_pattern of {key!r}", value) for key, value in ranks.items()},
        {key: _alpha(path, f"{before}alpha_pattern of {key!r}", value) for key, value in alphas.items()},
        rslora=bool(rslora),
    )


def _patterns(path: Path, option: str, given: object) -> dict[str, object]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong(path, option, given, "a table")
    for key in given:
        try:
            re.compile(_at_end(key))
        except (re.error, OverflowError, RecursionError) as error:
            raise _wrong(path, f"a key of {option}", key, f"a regular expression ({error})") from error
    return given


def _at_end(key: str) -> str:
    """PEFT's pattern of the modules that a key means: those whose names end so, from a dot on."""
    return rf"(.*\.)?({key})$"


def _rank(path: Path, option: str, given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise _wrong(path, option, given, "a whole number above 0")
    return given


def _alpha(path: Path, option: str, given: object) -> float:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or abs(cast(float, given)) > sys.float_info.max:
        raise _wrong(path, option, given, "a finite number")
    return float(cast(float, given))


def _wrong(path: Path, option: str, given: object, wanted: str) -> ValueError:
    return ValueError(f"{path}: {option} is {given!r}, expected {wanted}")
