"""Published tokenizers, read by transformers, behind the same face as our own (`zoo.text.tokenizer.Tokenizer`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
            made.tokenizer(["a"], padding="max_length", max_length=made.window)
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
        rows = self.tokenizer(prompts, padding="max_length", max_length=self.window, truncation=False)["input_ids"]
        markers = self.tokenizer.num_special_tokens_to_add()
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.window:
                raise ValueError(
                    f"the prompt is {len(row) - markers} tokens long and the text encoder reads at most "
                    f"{self.window - markers}: shorten {prompt!r}"
                )
        strangers = list(dict.fromkeys(word for prompt in prompts for word in self.strangers(prompt)))
        if strangers:
            warnings.warn(
                f"the text encoder does not know {', '.join(map(repr, strangers))}: expect the picture to ignore "
                f"{'it' if len(strangers) == 1 else 'them'}",
                UnknownWords,
                stacklevel=2,
            )
        return torch.tensor(rows, dtype=torch.long)

    def strangers(self, prompt: str) -> list[str]:
        """What stands where a prompt's ids are unknown; a byte-level vocabulary knows everything."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown == self.end:  # CLIP's own, which stands at the end of every prompt
            return []
        split = self.tokenizer(prompt, return_offsets_mapping=True, truncation=False)
        places = zip(split["input_ids"], split["offset_mapping"], strict=True)
        return [prompt[start:end] for token, (start, end) in places if token == unknown and end > start]
