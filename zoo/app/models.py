"""The models of a page: each is loaded when it is first drawn with, once for all visitors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING

from zoo import registry
from zoo.adapt import files

if TYPE_CHECKING:
    from zoo.pipeline import Pipeline

KEPT = 16  # adapters that a model keeps loaded


class Model:
    """A pipeline that many draw with at once; adapters are loaded while nobody does."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._idle = Condition()
        self._drawing = 0

    @contextmanager
    def drawing(self, adapters: Mapping[str, str]) -> Iterator[Pipeline]:
        """Within the block the pipeline has these adapters, given as their sources by their names.

        Raises:
            ValueError: one cannot be loaded, or is not made for this model.
        """
        with self._idle:
            if adapters.keys() - self._pipe.adapters().keys():
                self._idle.wait_for(lambda: self._drawing == 0)
                self._load(adapters)
            self._drawing += 1
        try:
            yield self._pipe
        finally:
            with self._idle:
                self._drawing -= 1
                self._idle.notify_all()

    def _load(self, adapters: Mapping[str, str]) -> None:
        for name, source in adapters.items():
            if name not in self._pipe.adapters() and self._pipe.load_adapter(source, name=name) is None:
                raise _word(source)
        others = [name for name in self._pipe.adapters() if name not in adapters]
        for name in others[: max(0, len(others) + len(adapters) - KEPT)]:
            self._pipe.unload(name)


class Models:
    """What a page offers: models by what they are called there, and adapters for them.

    models: names, folders, files or hub ids as for `zoo.load`; none is all that are at hand. adapters: files, folders
    or hub ids, which visitors may choose beside those that came with the models, and those that they bring.

    Raises:
        ValueError: there is no such model or adapter, one is a word, or two adapters go by one name.
    """

    def __init__(self, models: Sequence[str] = (), adapters: Sequence[str] = (), *, device: str = "auto") -> None:
        self.names = tuple(dict.fromkeys(models or registry.list_models()))
        if not self.names:
            raise ValueError("there are no models at hand: name some by --models, as names, folders or hub ids")
        for name in self.names:
            if not registry.is_fetched(name):
                registry.find(name)  # a wrong name is told before anybody waits for it
        self.adapters = {name: name for model in self.names for name in _shipped(model)}  # sources by name
        for source in adapters:
            if files.stem(source) in self.adapters:
                raise ValueError(f"two adapters are called {files.stem(source)!r}: rename the file {source}")
            if not _is_hub_id(source) and not Path(source).exists():
                raise ValueError(f"there is no adapter at {source}: give a file, a folder or a hub id (owner/name)")
            if Path(source).exists() and files.kind(Path(source)) == "word":
                raise _word(source)
            self.adapters[files.stem(source)] = source
        self._device = device
        self._loaded: dict[str, Model] = {}
        self._locks = {name: Lock() for name in self.names}

    def load(self, name: str) -> Model:
        """The model of this name.

        Raises:
            ValueError: the page does not offer it, or it cannot be loaded.
        """
        if name not in self._locks:
            raise ValueError(f"this page has no model {name!r}; there are: {', '.join(self.names)}")
        with self._locks[name]:  # whoever comes second waits, instead of loading it again
            if name not in self._loaded:
                from zoo.loading import load

                self._loaded[name] = Model(load(name, device=self._device))
            return self._loaded[name]


def _shipped(model: str) -> list[str]:
    """Adapters that come with a model; none of one that cannot be read, which is told when it is loaded."""
    try:
        return registry.list_adapters(model)
    except ValueError:
        return []


def label(name: str) -> str:
    """What a model is called in the page: its name, or the end of its path."""
    return Path(name).name if os.sep in name and Path(name).exists() else name


def _word(source: str) -> ValueError:
    """Why a page has no place for an adapter that is a learned word."""
    return ValueError(
        f"{source} is a word, which would change what every visitor's prompts mean: a page offers LoRAs and prefixes, "
        "also such as come with a word"
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
