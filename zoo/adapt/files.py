"""Files of adapters as people name them: what one holds, and how strongly it is to act."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

Kind: TypeAlias = Literal["lora", "prefix", "word"]
# As training leaves them:
LORA, PREFIX, WORD = Path("lora.safetensors"), Path("prefix.safetensors"), Path("word.safetensors")


@dataclass(frozen=True)
class Shipped:
    """An adapter that came with a model: its folder, the SHA-256 of its files by their paths, and the settings that
    calls ask for beside it."""

    folder: Path
    sums: Mapping[Path, str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> Path:
        """The folder.

        Raises:
            ValueError: a file is missing or changed.
        """
        from zoo import tensors

        for path, expected in self.sums.items():
            tensors.check_sum(path, expected)
        return self.folder


class Loader(Protocol):
    """A pipeline."""

    def load_adapter(self, source: str | Path, *, name: str | None = None) -> str | None: ...


def kind(path: Path) -> Kind:
    """What an adapter's file holds, as its header says; what the zoo did not write is read as a LoRA.

    Raises:
        ValueError: the file is damaged.
    """
    from zoo import tensors

    if path.suffix != ".safetensors":
        return "lora"
    said = tensors.metadata(path)
    found = said.get("kind") if said.get("format") == "zoo" else None
    return "prefix" if found == "prefix" else "word" if found == "word" else "lora"


def stem(source: str | Path) -> str:
    """The name that an adapter goes by unless it is given another: its file's or repository's."""
    last = re.split(r"[/\\]", str(source).rstrip("/\\"))[-1]
    return re.sub(r"\.(safetensors|bin|pt|pth|ckpt)$", "", last)


def split(text: str) -> tuple[str, float]:
    """The source and the strength of `SOURCE:STRENGTH`, where the strength may be left out: then it is 1."""
    source, colon, number = text.rpartition(":")
    try:
        return (source, float(number)) if colon else (text, 1.0)
    except ValueError:  # the colon is the path's own
        return text, 1.0


def load_all(pipe: Loader, asked: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Load adapters of all kinds by source and strength; returns the `adapters` to ask for in calls.

    A source that comes twice is loaded under two names. Words are not asked for: prompts say them.

    Raises:
        ValueError: an adapter that cannot be loaded, or a word with another strength than 1.
    """
    chosen: dict[str, float] = {}
    for source, strength in asked:
        if not source:
            raise ValueError("an adapter is named by its file, folder or hub id, as SOURCE:STRENGTH")
        name = stem(source)
        loaded = pipe.load_adapter(source, name=name if name not in chosen else f"{name}-{len(chosen) + 1}")
        if loaded is not None:
            chosen[loaded] = strength
        elif strength != 1:
            raise ValueError(f"{source} is a word, which prompts say: it has no strength such as {strength:g}")
    return chosen
