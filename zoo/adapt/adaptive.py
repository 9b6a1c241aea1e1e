"""What a pipeline can do with adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from zoo.adapt import files
from zoo.adapt.adapters import Adapters, AdapterStatus, Choice
from zoo.adapt.formats import locate
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import Prefix
from zoo.adapt.report import Report
from zoo.adapt.words import Reader, Word, check, teach
from zoo.interface import Adaptable, TextEncoder


class Adaptive:
    """Adapters are loaded once and asked for in each call; words are taught, and prompts say them."""

    text_encoder: TextEncoder
    name: str
    shipped: Mapping[str, files.Shipped]  # adapters that came with the model, by name
    _adapters: Adapters

    def load_adapter(self, source: str | Path, *, name: str | None = None) -> str | None:
        """Load whatever an adapter's file holds: see `load_lora`, `load_prefix`, `load_word`.

        source: a file, a folder, a hub id, or the name of an adapter that came with the model (`shipped`).

        Returns the name by which calls ask for it; None for a word, which prompts say.

        Raises:
            ValueError: as those three do.
        """
        path = locate(self._place(source))
        kind = files.kind(path)
        if kind == "word":
            self.load_word(path)
            return None
        name = name or files.stem(source)
        if kind == "prefix":
            self.load_prefix(source, name=name)
        else:
            self.load_lora(source, name=name)
        return name

    def load_lora(
        self, source: str | Path | Mapping[str, LoRA], *, name: str | None = None, partial: bool = False
    ) -> Report | None:
        """Load a LoRA; it acts in the calls that ask for it, `pipe(prompt, adapters={name: 0.8})`.

        One that comes with a word also acts of itself, in calls without `adapters`, for the prompts that say it.

        source: the name of one that came with the model, a file or folder in any of the layouts of
        `zoo.adapt.formats`, a hub id, one file of a hub repository (`owner/name/file`), or LoRAs by part. Of a name, a
        folder or a hub id, the word that was learned with it is taught as well, for good: see `load_word`. name: the
        file's unless given. partial: load what fits. Returns the report on the file. Not while calls run.

        Raises:
            ValueError: a name that is taken, a damaged file, or one that does not fit; the message names the keys.
        """
        if isinstance(source, Mapping):
            return self._adapters.load_lora(source, name)
        path = locate(self._place(source))
        word, name = self._word_beside(source, path), name or files.stem(source)
        report = self._adapters.load_lora(path, name, partial=partial)
        self._adapters.asks(name, self._settings(source))
        if word is not None:
            self._adapters.called_by(self.load_word(word), name)
        return report

    def load_prefix(self, source: str | Path | Mapping[str, Prefix], *, name: str | None = None) -> None:
        """Load a prefix (`zoo.adapt.prefix`), which then acts as a LoRA does; it cannot be merged. Not while calls run.

        Raises:
            ValueError: a name that is taken, a damaged file, or one that does not fit.
        """
        if isinstance(source, Mapping):
            return self._adapters.load_prefix(source, name)
        path = locate(self._place(source))
        word, name = self._word_beside(source, path), name or files.stem(source)
        self._adapters.load_prefix(path, name)
        self._adapters.asks(name, self._settings(source))
        if word is not None:
            self._adapters.called_by(self.load_word(word), name)

    def load_word(self, source: str | Path | Word) -> str:
        """Teach the text encoder a word that was learned (`zoo.adapt.words`): prompts that say it mean it from now on.

        Returns the word. Not while calls run.

        Raises:
            ValueError: a damaged file, or an encoder that it was not learned for.
        """
        word = source if isinstance(source, Word) else Word.load(source)
        teach(cast(Reader, self.text_encoder), word)
        return word.name

    def _place(self, source: str | Path) -> str | Path:
        """Where an adapter is: one that came with the model is known by its name."""
        if isinstance(source, str) and source in self.shipped:
            return self.shipped[source].checked()
        if isinstance(source, Path) or "/" in source or Path(source).exists():
            return source
        came = ", ".join(sorted(self.shipped)) or "none"
        raise ValueError(
            f"there is no adapter {source!r}: give a file, a folder or a hub id (owner/name), or one of those that "
            f"came with {self.name}: {came}"
        )

    def _settings(self, source: str | Path) -> Mapping[str, Any]:
        """What calls ask for beside an adapter that came with the model; nothing of others is known."""
        came = self.shipped.get(source) if isinstance(source, str) else None
        return {} if came is None else came.settings

    def _word_beside(self, source: str | Path, path: Path) -> Word | None:
        """The word that was learned with an adapter and lies in its folder; none where only its file was asked for."""
        file = (path if path.is_dir() else path.parent) / files.WORD
        if (not path.is_dir() and str(source).endswith(path.name)) or not file.is_file():
            return None
        word = Word.load(file)
        check(cast(Reader, self.text_encoder), word)
        return word

    def adaptable(self) -> dict[str, Adaptable]:
        """The networks that adapters can be trained for and loaded into, by the names that their files use."""
        return self._adapters.networks()

    def adapters(self) -> dict[str, AdapterStatus]:
        """What is loaded, by name: kind, source, adapted modules, with which strength it is merged, if it is, and the
        `settings` that go with it, `pipe(prompt, adapters={name: 1.0}, **pipe.adapters()[name].settings)`."""
        return self._adapters.status()

    def report_lora(self, source: str | Path) -> Report:
        """What of a LoRA file would fit this pipeline, key by key; nothing is loaded.

        Raises:
            ValueError: the file cannot be read.
        """
        return self._adapters.report(self._place(source))

    def merge(self, adapters: str | Choice) -> None:
        """Fold adapters into the weights, in place of those merged before: they act in every call and cost nothing.

        `unmerge` needs the weights of before, so a second copy of the adapted modules is kept. Not while calls run.

        Raises:
            ValueError: an adapter is not loaded, or is a prefix.
        """
        self._adapters.merge(adapters)

    def unmerge(self) -> None:
        """Put back the weights of before `merge`, to the bit. Not while calls run."""
        self._adapters.unmerge()

    def unload(self, name: str) -> None:
        """Forget an adapter. Not while calls run.

        Raises:
            ValueError: it is not loaded, or is merged.
        """
        self._adapters.unload(name)
