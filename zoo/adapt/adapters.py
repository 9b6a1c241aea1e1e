"""The adapters of one pipeline: loaded by name, chosen per image, merged, told of truthfully."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor, nn

from zoo.adapt import active, lora, prefix
from zoo.adapt.active import finite
from zoo.adapt.files import stem
from zoo.adapt.formats import locate, read
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import Prefix
from zoo.adapt.report import Report, fit, load
from zoo.adapt.words import Reader
from zoo.interface import Adaptable

Choice: TypeAlias = Mapping[str, float]
"""Adapters and their strengths, 1 as they were trained."""


@runtime_checkable
class Adapted(Protocol):
    """A part that says which networks of it adapters are made for, by the names that files give them."""

    @property
    def adaptable(self) -> Mapping[str, Adaptable]: ...


@dataclass(frozen=True)
class AdapterStatus:
    """What is loaded under a name. merged: the strength with which it is in the weights, None if it is not. word: the
    one that was learned with it, if any: it acts of itself where prompts say that. settings: what calls ask for beside
    it, such as steps, if it came with the model and goes with other settings than the model's."""

    kind: str
    source: str
    modules: Mapping[str, int]  # by part
    parameters: int
    merged: float | None
    report: Report | None = None
    word: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Loaded:
    source: str
    modules: Mapping[str, LoRA | Prefix]
    injections: list[lora.Injection | prefix.PrefixInjection]
    report: Report | None
    stored: bool  # it is of a file, and not trained: its type is that of what it adapts
    word: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Adapters:
    """The adapters of the parts of a pipeline, which are given by their roles."""

    def __init__(self, parts: Mapping[str, object]) -> None:
        self._parts = parts
        self._loaded: dict[str, _Loaded] = {}
        self._merged: list[str] = []

    def networks(self) -> dict[str, Adaptable]:
        """What can be adapted, by the names that files use; a part that does not say goes by its role and own names."""
        return self._networks(self._parts)

    def _networks(self, roles: Iterable[str]) -> dict[str, Adaptable]:
        return {name: network for role in roles for name, network in _networks(role, self._parts[role]).items()}

    def report(self, source: str | Path) -> Report:
        """What a LoRA file would do here; nothing is loaded."""
        return fit(read(locate(source)), self.networks())[1]

    def load_lora(
        self, source: str | Path | Mapping[str, LoRA], name: str | None = None, *, partial: bool = False
    ) -> Report | None:
        """Load a file, folder or hub id, or take LoRAs by part as they are; see `Pipeline.load_lora`."""
        if isinstance(source, Mapping):
            self._add(name or "lora", "memory", source)
            return None
        loras, report = load(locate(source), self.networks(), partial=partial)
        self._add(name or stem(source), str(source), loras, report, stored=True)
        return report

    def load_prefix(self, source: str | Path | Mapping[str, Prefix], name: str | None = None) -> None:
        """Load a prefix that `Prefix.save` wrote, or take prefixes by part as they are."""
        if isinstance(source, Mapping):
            return self._add(name or "prefix", "memory", source)
        part, loaded = Prefix.load(Path(source))
        self._add(name or stem(source), str(source), {part: loaded}, stored=True)

    def _add(
        self,
        name: str,
        source: str,
        modules: Mapping[str, LoRA | Prefix],
        report: Report | None = None,
        *,
        stored: bool = False,
    ) -> None:
        if name in self._loaded:
            raise ValueError(f"an adapter called {name!r} is loaded already: give another name=, or unload it first")
        networks = self.networks()
        if unknown := modules.keys() - networks.keys():
            raise ValueError(f"no part {', '.join(sorted(unknown))} to adapt here; there are: {', '.join(networks)}")
        done: list[lora.Injection | prefix.PrefixInjection] = []
        try:
            for part, module in modules.items():
                target = networks[part].module
                module.to(next(target.parameters()).device)
                done.append(
                    lora.inject(target, module, name)
                    if isinstance(module, LoRA)
                    else prefix.inject(target, module, name)
                )
        except ValueError:
            for injection in done:
                injection.remove()
            raise
        self._loaded[name] = _Loaded(source, modules, done, report, stored)
        self._cast(self._loaded[name])

    def called_by(self, word: str, name: str) -> None:
        """Have this adapter, and no other, act of itself where prompts say this word, in calls that choose none."""
        for found in self._loaded.values():
            found.word = None if found.word == word else found.word
        self._find(name).word = word

    def asks(self, name: str, settings: Mapping[str, Any]) -> None:
        """Have calls know the settings that go with this adapter."""
        self._find(name).settings = settings

    def asked(self, chosen: Chosen) -> dict[str, Mapping[str, Any]]:
        """The settings that go with what acts in a call, by the adapters' names; what is merged acts in every call.

        Raises:
            ValueError: a strength is none.
        """
        loaded = list(self._loaded.items())  # another thread may load one meanwhile
        return {
            name: found.settings
            for name, found in loaded
            if found.settings
            and (found.injections[0].merged or any(finite(name, choice.get(name, 0.0)) for choice in chosen.each))
        }

    def unload(self, name: str) -> None:
        """Take an adapter off and forget it."""
        found = self._find(name)
        if name in self._merged:
            raise ValueError(f"adapter {name!r} is merged into the weights: unmerge() before it is unloaded")
        for injection in found.injections:
            injection.remove()
        del self._loaded[name]

    def merge(self, strengths: str | Choice) -> None:
        """Fold these adapters into the weights, in place of those folded in before."""
        wanted = {strengths: 1.0} if isinstance(strengths, str) else dict(strengths)
        for name in wanted:
            if not all(isinstance(injection, lora.Injection) for injection in self._find(name).injections):
                raise ValueError(f"{name!r} is a prefix: what attention looks at cannot be merged into weights")
            finite(name, wanted[name])
        self.unmerge()
        done: list[lora.Injection] = []
        try:
            for name, strength in wanted.items():
                for injection in cast("list[lora.Injection]", self._loaded[name].injections):
                    injection.merge(strength)
                    done.append(injection)
        except BaseException:  # memory, or Ctrl-C: none is merged then
            for injection in reversed(done):
                injection.unmerge()
            raise
        self._merged = list(wanted)

    def unmerge(self) -> None:
        """Put all weights back as they were, to the bit."""
        while self._merged:
            for injection in reversed(self._loaded[self._merged[-1]].injections):
                injection.unmerge()  # type: ignore[union-attr]
            self._merged.pop()

    def status(self) -> dict[str, AdapterStatus]:
        """What is loaded, by name."""
        return {
            name: AdapterStatus(
                kind="lora" if all(isinstance(m, LoRA) for m in found.modules.values()) else "prefix",
                source=found.source,
                modules={part: len(module.layers) for part, module in found.modules.items()},
                parameters=sum(p.numel() for module in found.modules.values() for p in module.parameters()),
                merged=next((injection.merged for injection in found.injections), None),
                report=found.report,
                word=found.word,
                settings=found.settings,
            )
            for name, found in self._loaded.items()
        }

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move what is loaded along with the parts, which have moved already."""
        for found in self._loaded.values():
            for module in found.modules.values():
                module.to(device=device, dtype=None if found.stored else dtype)
            self._cast(found)

    def _cast(self, found: _Loaded) -> None:
        """What is of a file acts in the type of what it adapts, whichever of the two was there first."""
        for injection in found.injections if found.stored else []:
            injection.cast()

    def label(self) -> str:
        """What is merged, to be said beside the model's name: "" if nothing is."""
        said = [f"{name} x {self._loaded[name].injections[0].merged:g}" for name in self._merged]
        return "".join(f" + {one}" for one in said)

    def choose(self, asked: Choice | Sequence[Choice] | None, prompts: Sequence[str], count: int) -> Chosen:
        """The adapters of each image of a call: one choice for all, one per prompt, or one per image; without a choice,
        those whose word the image's prompt says.

        Raises:
            ValueError: what is asked for is no choice, the number of choices does not fit, or one names an adapter that
                is not loaded or is merged.
        """
        if asked is None:
            each: list[Choice] = [self._called(prompt) for prompt in prompts]
        elif isinstance(asked, Sequence) and not isinstance(asked, str):
            each = list(asked)
        else:
            each = [asked]
        for choice in each:
            if not isinstance(choice, Mapping):
                like = f'{{"{choice}": 1.0}}' if isinstance(choice, str) else '{"p7": 1.0}'
                raise ValueError(f"adapters are given with their strengths, as {like}; got {choice!r}")
        if len(each) not in (1, len(prompts), count):
            raise ValueError(
                f"{len(each)} choices of adapters: give one for all, one for each of {len(prompts)} prompts, or one "
                f"for each of {count} images"
            )
        for name in dict.fromkeys(name for choice in each for name in choice):
            self._find(name)
            if name in self._merged:
                raise ValueError(f"adapter {name!r} is merged, so it acts already: leave it out, or unmerge() first")
        times = count // len(each)
        text = self._networks(["text_encoder"]) if self._loaded else {}
        heard = {name for name, found in list(self._loaded.items()) if found.modules.keys() & text.keys()}
        return Chosen([dict(choice) for choice in each for _ in range(times)], heard)

    def _called(self, prompt: str) -> Choice:
        """What acts in an image of this prompt where a call does not choose: what its words call, unless merged."""
        loaded = list(self._loaded.items())  # another thread may load one meanwhile
        worded = {name: found.word for name, found in loaded if found.word and name not in self._merged}
        if not worded:
            return {}
        tokenizer = cast(Reader, self._parts["text_encoder"]).tokenizer
        return {name: 1.0 for name, word in worded.items() if tokenizer.says(prompt, word)}

    def _find(self, name: str) -> _Loaded:
        if name not in self._loaded:
            raise ValueError(f"no adapter {name!r} is loaded; there are: {', '.join(self._loaded) or 'none'}")
        return self._loaded[name]


def fold(part: object, path: Path) -> None:
    """Add a LoRA file to the weights of a part for good: nothing is kept of what they were.

    Raises:
        ValueError: the file is damaged, or does not match the part wholly.
    """
    networks = _networks("part", part)
    for name, loras in load(path, networks)[0].items():
        lora.fold(networks[name].module, loras)


def _networks(role: str, part: object) -> Mapping[str, Adaptable]:
    if isinstance(part, Adapted):
        return part.adaptable
    return {role: Adaptable(part, {})} if isinstance(part, nn.Module) else {}


class Chosen:
    """The adapters of every image of a call; `heard` are those that act on the text encoder."""

    def __init__(self, each: Sequence[Choice], heard: Collection[str] = ()) -> None:
        self.each, self._heard = each, heard

    def groups(self) -> list[list[int]]:
        """The images whose texts are encoded alike."""
        found: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for image, choice in enumerate(self.each):
            found.setdefault(tuple(sorted((n, s) for n, s in choice.items() if n in self._heard)), []).append(image)
        return list(found.values())

    def alone(self, image: int) -> AbstractContextManager[None]:
        """Within the block, every row of every batch has this image's adapters."""
        return active.use(self.each[image])

    @contextmanager
    def use(self, rows: Tensor | Sequence[int]) -> Iterator[None]:
        """Within the block, a batch of these images has their adapters."""
        batch = [self.each[int(row)] for row in rows]
        strengths: dict[str, active.Strength] = {}
        for name in dict.fromkeys(name for choice in batch for name in choice):
            values = [float(choice.get(name, 0.0)) for choice in batch]
            strengths[name] = values[0] if len(set(values)) == 1 else torch.tensor(values)
        with active.use(strengths, len(batch)):
            yield

    def settings(self) -> dict[str, object]:
        """What a result says of them: one choice, or one for each image; nothing if there is none."""
        if not any(self.each):
            return {}
        alike = all(choice == self.each[0] for choice in self.each)
        return {"adapters": dict(self.each[0]) if alike else [dict(choice) for choice in self.each]}
