"""Does a LoRA file fit? Every key is accounted for before anything is loaded."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from zoo.adapt.formats import KOHYA, Entry, LoRAFile, Networks, read
from zoo.adapt.lora import LoRA, LowRank, adaptable
from zoo.interface import Adaptable

LISTED = 20  # keys of one fault that a message names


@dataclass(frozen=True)
class Matched:
    """One module that a file adapts; `assumed` if the file states no alpha, which then is the rank."""

    part: str
    module: str
    keys: tuple[str, ...]
    rank: int
    alpha: float
    assumed: bool


@dataclass(frozen=True)
class Report:
    """What a LoRA file would do to a pipeline: what matches, and under the name of each fault the keys that have it."""

    source: Path
    format: str
    matched: tuple[Matched, ...]
    faults: Mapping[str, tuple[str, ...]]

    @property
    def fits(self) -> bool:
        """Everything in the file has its place."""
        return bool(self.matched) and not self.faults

    def check(self, partial: bool = False) -> None:
        """Complain of a file that does not fit; `partial` lets pass one of which only some modules do.

        Raises:
            ValueError: nothing matches, or (not partial) something has a fault; the message names the keys.
        """
        if self.fits or (partial and self.matched):
            return
        mend = "partial=True loads what fits" if self.matched else "is it made for another family?"
        count = sum(len(keys) for keys in self.faults.values())
        how = "in part only" if self.matched else "nowhere"
        raise ValueError(
            f"{self.source} ({self.format}) fits {how}: {len(self.matched)} modules match, {count} keys do not "
            f"({mend})\n{self._listed()}"
        )

    def _listed(self) -> str:
        lines = []
        for fault, keys in self.faults.items():
            more = f", and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            lines.append(f"  {fault} ({len(keys)}): {', '.join(keys[:LISTED])}{more}")
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.format}"]
        for part in dict.fromkeys(match.part for match in self.matched):
            mine = [match for match in self.matched if match.part == part]
            ranks, alphas = (_counted(getattr(match, what) for match in mine) for what in ("rank", "alpha"))
            assumed = sum(match.assumed for match in mine)
            note = f" (assumed to be the rank in {assumed}: the file does not say)" if assumed else ""
            lines.append(f"  {part}: {len(mine)} modules, rank {ranks}, alpha {alphas}{note}")
        lines += [self._listed()] if self.faults else []
        keys = sum(len(match.keys) for match in self.matched)
        lines.append(f"  {keys} keys match, {sum(len(found) for found in self.faults.values())} do not")
        return "\n".join(lines)


def load(path: str | Path, networks: Networks, *, partial: bool = False) -> tuple[dict[str, LoRA], Report]:
    """The LoRAs of a file or PEFT folder by part, float32, and the report on it.

    Raises:
        ValueError: the file is damaged, matches nothing, or (not `partial`) does not match wholly.
    """
    loras, report = fit(read(path), networks)
    report.check(partial)
    return loras, report


def fit(file: LoRAFile, networks: Networks) -> tuple[dict[str, LoRA], Report]:
    """What of a file fits, by part, and the report; raises nothing about what does not."""
    bases = {part: adaptable(_module(network)) for part, network in networks.items()}
    lookup = {part: _spellings(network, bases[part]) for part, network in networks.items()}
    bare = _bare_part(file, lookup)
    faults: dict[str, list[str]] = {}
    found: dict[tuple[str, str], tuple[Matched, LowRank]] = {}

    for spelled, entry in file.entries.items():
        place = _with_part(spelled, lookup)
        if place is None and bare is not None and (ours := lookup[bare].get(_flat(spelled))) is not None:
            place = bare, ours
        if place is None:
            faults.setdefault("no such module", []).extend(entry.keys.values())
            continue
        part, module = place
        complaint = _complaint(entry, bases[part][module].weight, file.foreign)
        if complaint is None and (part, module) in found:
            complaint = "twice", list(entry.keys.values())
        if complaint is not None:
            faults.setdefault(complaint[0], []).extend(complaint[1])
            continue
        down, up = _shaped(entry, bases[part][module].weight)
        rank = len(down)
        alpha = float(rank) if entry.alpha is None else entry.alpha
        match = Matched(part, module, tuple(entry.keys.values()), rank, alpha, entry.alpha is None)
        found[part, module] = match, LowRank(down, up, alpha)
    if file.foreign:
        faults["not understood"] = list(file.foreign)

    loras = {
        part: LoRA({module: found[part, module][1] for module in bases[part] if (part, module) in found})
        for part in networks
        if any(owner == part for owner, _ in found)
    }
    matched = tuple(match for match, _ in found.values())
    return loras, Report(file.path, file.format, matched, {fault: tuple(keys) for fault, keys in faults.items()})


def _module(network: Adaptable | nn.Module) -> nn.Module:
    return network.module if isinstance(network, Adaptable) else network


def _spellings(network: Adaptable | nn.Module, bases: Mapping[str, object]) -> dict[str, str]:
    """Our module by each of its spellings: published names, then our own, with _ for . as kohya writes."""
    published = network.published if isinstance(network, Adaptable) else {}
    found: dict[str, str] = {}
    for ours in bases:
        for name in published.get(ours, ()):
            found.setdefault(_flat(name), ours)
    for ours in bases:
        found.setdefault(_flat(ours), ours)
    return found


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _split(spelled: str) -> tuple[str, str]:
    """The part that a file's spelling may begin with, and the rest of it."""
    if match := re.match(r"lora_(unet|te[12]?)_", spelled):
        return KOHYA[match[1]], spelled[match.end() :]
    part, _, rest = spelled.partition(".")
    return part, rest


def _with_part(spelled: str, lookup: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    part, rest = _split(spelled)
    module = lookup.get(part, {}).get(_flat(rest))
    return None if module is None else (part, module)


def _bare_part(file: LoRAFile, lookup: Mapping[str, Mapping[str, str]]) -> str | None:
    """The part that names without one are of: the one that knows most of them."""
    bare = [_flat(spelled) for spelled in file.entries if _with_part(spelled, lookup) is None]
    known = {part: sum(name in names for name in bare) for part, names in lookup.items()}
    return max(known, key=lambda part: known[part]) if any(known.values()) else None


def _complaint(entry: Entry, weight: Tensor, foreign: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """The fault of an entry and the keys that have it, the last with a note of what is wrong."""

    def of(keys: Iterable[str], note: str) -> list[str]:
        *rest, last = keys
        return [*rest, f"{last} ({note})"]

    keys = entry.keys.values()
    if lacking := [side for side in ("down", "up") if side not in entry.keys]:
        return "incomplete", of(keys, f"without its {' and '.join(lacking)} matrix")
    if spoils := [key for key in foreign if key.startswith(f"{entry.stem}.")]:
        return "cannot act without what is not understood", of(keys, ", ".join(spoils))
    if broken := [entry.keys[side] for side, tensor in entry.tensors.items() if not tensor.isfinite().all()]:
        return "not finite", broken
    if not math.isfinite(entry.alpha or 0.0):
        return "not finite", of(keys, f"alpha {entry.alpha}")
    down, up = _shaped(entry, weight)
    rank, tail = (len(down) if down.dim() else 0), [1] * (weight.dim() - 2)
    wanted = [rank, *weight.shape[1:]], [weight.shape[0], rank, *tail]
    if rank == 0 or (list(down.shape), list(up.shape)) != wanted:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        return "misshapen", of(keys, f"{shapes}: the weight {list(weight.shape)} needs {wanted[0]} and {wanted[1]}")
    if entry.rank is not None and entry.rank != rank:
        return "misshapen", of(keys, f"of rank {rank}, where the config says {entry.rank}")
    return None


def _shaped(entry: Entry, weight: Tensor) -> tuple[Tensor, Tensor]:
    """down and up, float32; a linear layer is the same as a 1x1 convolution, whichever of the two the file was for."""
    down, up = entry.tensors["down"].float(), entry.tensors["up"].float()
    if weight.dim() == 2 and down.dim() == up.dim() == 4 and down.shape[2:] == up.shape[2:] == (1, 1):
        return down.flatten(1), up.flatten(1)
    if weight.dim() == 4 and weight.shape[2:] == (1, 1) and down.dim() == up.dim() == 2:
        return down[..., None, None], up[..., None, None]
    return down, up


def _counted(values: Iterable[float]) -> str:
    counts = Counter(values)
    return " / ".join(f"{value:g}" for value, _ in counts.most_common())
