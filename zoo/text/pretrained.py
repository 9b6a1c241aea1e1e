"""Published tokenizers, read by transformers, behind the same face as our own (`zoo.text.tokenizer.Tokenizer`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import published
from zoo.text.tokenizer import UnknownWords

# The class that model_index.json names: transformers', and the files it cannot do without (one set of them).
CLASSES: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "CLIPTokenizer": ("CLIPTokenizer", (("vocab.json", "merges.txt"), ("tokenizer.json",))),
    "BertTokenizer": ("BertTokenizer", (("vocab.txt",), ("tokenizer.json",))),
    "PreTrainedTokenizerFast": ("PreTrainedTokenizerFast", (("tokenizer.json",),)),
}
NAMES = {"CLIPTokenizerFast": "CLIPTokenizer", "BertTokenizerFast": "BertTokenizer"}
NAMES |= {"TokenizersBackend": "PreTrainedTokenizerFast"}
FILES = (  # everything that is read of a tokenizer's folder
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


class PublishedTokenizer:
    """A transformers tokenizer and a window of `window` tokens, markers included: ids padded to the window.

    Nothing is dropped silently: a prompt that does not fit the window is an error, words that the vocabulary does not
    know are announced.
    """

    def __init__(self, tokenizer: Any, window: int) -> None:
        self.tokenizer = tokenizer
        self.window = window
        self.end = int(next(i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id, -1) if i is not None))

    @classmethod
    def load(cls, folder: Path, kind: str, longest: int) -> PublishedTokenizer:
        """The tokenizer of a folder, as the class `kind`; its window is what it says itself, `longest` at most.

        Raises:
            ValueError: an unknown class, or a file that is missing or damaged.
        """
        import transformers

        kind = NAMES.get(kind, kind)
        if kind not in CLASSES:
            raise ValueError(f"unknown tokenizer {kind!r} of {folder}; known are {', '.join(CLASSES)}")
        name, needed = CLASSES[kind]
        there = {file for file in FILES if published.inside(folder, file).is_file()}
        if not any(there.issuperset(files) for files in needed):
            wanted = " or ".join(" and ".join(files) for files in needed)
            raise ValueError(
                f"{folder} holds no {kind}: {wanted} is needed, {', '.join(sorted(there)) or 'nothing'} there"
            )
        for file in there:
            if file.endswith(".json") and file not in ("vocab.json", "tokenizer.json"):
                published.options(folder, file)
        try:
            tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
            made = cls(tokenizer, min(int(tokenizer.model_max_length), longest))
            made._split(["a"])
        except Exception as error:  # the library's reader may end in any error at all
            raise ValueError(f"{folder} cannot be read as a {kind} ({error}): fetch it again") from error
        return made

    def __len__(self) -> int:
        """The size of the vocabulary."""
        return len(self.tokenizer)

    def save(self, folder: Path) -> list[Path]:
        """Write the tokenizer's files; returns their paths relative to `folder`."""
        return [Path(path).relative_to(folder) for path in self.tokenizer.save_pretrained(folder)]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [batch, window], int64 on the CPU. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than the window.
        """
        prompts = list(prompts)
        if not prompts:
            return torch.zeros(0, self.window, dtype=torch.long)
        split = self._split(prompts)
        rows = split["input_ids"]
        markers = self.tokenizer.num_special_tokens_to_add()
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.window:
                raise ValueError(
                    f"the prompt is {len(row) - markers} tokens long and the text encoder reads at most "
                    f"{self.window - markers}: shorten {prompt!r}"
                )
        strangers = list(dict.fromkeys(self._strangers(prompts, split))) if self.unknown is not None else []
        if strangers:
            warnings.warn(
                f"the text encoder does not know {', '.join(map(repr, strangers))}: expect the picture to ignore "
                f"{'it' if len(strangers) == 1 else 'them'}",
                UnknownWords,
                stacklevel=2,
            )
        return torch.tensor(rows, dtype=torch.long)

    @property
    def unknown(self) -> int | None:
        """The id of what the vocabulary does not know; None of a byte-level one, which knows everything."""
        found: int | None = self.tokenizer.unk_token_id
        return None if found == self.end else found  # CLIP's own stands at the end of every prompt

    def _split(self, prompts: list[str]) -> Mapping[str, Any]:
        """Ids by prompt and, where some may be unknown, their places in the text.

        Always asked in the same way, for the tokenizer keeps its padding: threads that change it disturb each
        other.
        """
        found: Mapping[str, Any] = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.window,
            truncation=False,
            return_offsets_mapping=self.unknown is not None,
        )
        return found

    def _strangers(self, prompts: Sequence[str], split: Mapping[str, Any]) -> Iterator[str]:
        """What stands where ids are unknown."""
        for prompt, row, places in zip(prompts, split["input_ids"], split["offset_mapping"], strict=True):
            yield from (
                prompt[a:b] for token, (a, b) in zip(row, places, strict=True) if token == self.unknown and b > a
            )
