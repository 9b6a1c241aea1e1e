"""Prompts to token ids with a sentencepiece model: <s> pieces </s> <pad> ..., always one window long (T5 has no <s>).

Nothing is dropped silently: a prompt that does not fit the window is an error, a word that the vocabulary does not know
is announced.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
WORD = re.compile(r"[A-Za-zÀ-ɏ]+|[^\sA-Za-zÀ-ɏ]+")
RESERVED = re.compile(r"<new\d+>")
FILE = Path("tokenizer") / "tokenizer.model"  # below a model folder


class UnknownWords(UserWarning):
    """A prompt has words that the text encoder's vocabulary does not know."""


class Tokenizer:
    """A sentencepiece model and a window of `window` tokens, the first and last markers included.

    `begin` False leaves the first marker away: `self.begin` is None then, and the model need not have one.

    Raises:
        ValueError: the model cannot be read, or lacks one of the special pieces (unknown, begin, end, padding).
    """

    def __init__(self, model: bytes, window: int, *, begin: bool = True) -> None:
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model: {error}") from error
        self.model = model
        self.window = window
        self.words: dict[str, str] = {}  # that were learned, and the reserved pieces that stand for them
        self.unknown, self.end, self.padding = (
            int(self.pieces.unk_id()),
            int(self.pieces.eos_id()),
            int(self.pieces.pad_id()),
        )
        self.begin = int(self.pieces.bos_id()) if begin else None
        self.opening = [self.begin] if self.begin is not None else []
        if min(self.unknown, *self.opening, self.end, self.padding) < 0:
            raise ValueError(
                f"the sentencepiece model must have unknown, {'begin, ' if begin else ''}end and padding pieces: "
                "train it with them"
            )

    @classmethod
    def load(cls, folder: Path, window: int) -> Tokenizer:
        """The tokenizer of a model folder."""
        try:
            return cls((folder / FILE).read_bytes(), window)
        except OSError as error:
            raise ValueError(f"{folder / FILE} cannot be read ({error.strerror})") from error

    def __len__(self) -> int:
        """The size of the vocabulary."""
        return int(self.pieces.get_piece_size())

    @property
    def reserved(self) -> tuple[str, ...]:
        """The pieces kept free for words that are learned later."""
        names = (self.pieces.id_to_piece(i) for i in range(len(self)))
        return tuple(name for name in names if RESERVED.fullmatch(name))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [batch, window], int64 on the CPU. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than the window.
        """
        cut = (self.pieces.encode(self._with_learned(prompt)) for prompt in prompts)
        rows = [[*self.opening, *map(int, row), self.end] for row in cut]
        markers = len(self.opening) + 1
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
        padded = [row + [self.padding] * (self.window - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).reshape(len(rows), self.window)

    def strangers(self, prompt: str) -> list[str]:
        """The words of a prompt that the vocabulary does not know, in order.

        A word is a stranger if it holds an unknown character, or if half of it had to be cut up to single letters: a
        vocabulary has the words that it was made for in few pieces.
        """
        found = []
        reserved = self.reserved if RESERVED.search(prompt) or self.words else ()
        prompt = RESERVED.sub(lambda piece: " " if piece[0] in reserved else piece[0], self._with_learned(prompt))
        for word in WORD.findall(prompt):
            if LATIN.match(word):
                found += [word] if self._cut(word) else []
            else:  # no spaces between words: name the unknown characters
                found += ["".join(run) for known, run in groupby(word, self._spelled) if not known]
        return [word for word in found if any(c.isalnum() for c in word)]

    def says(self, prompt: str, word: str) -> bool:
        """Whether a prompt says a learned word: in any capitals, and not inside another word."""
        return _where(word).search(prompt) is not None

    def _with_learned(self, prompt: str) -> str:
        """The prompt with the pieces of learned words in their place."""
        for word, piece in self.words.items():
            prompt = _where(word).sub(piece, prompt)
        return prompt

    def _cut(self, word: str) -> bool:
        pieces = [piece.strip("▁") for piece in self.pieces.encode(word, out_type=str)]
        letters = sum(len(piece) == 1 for piece in pieces)
        return not self._spelled(word) or (len(word) > 2 and 2 * letters >= len(word))

    def _spelled(self, word: str) -> bool:
        return not any(i == self.unknown or self.pieces.is_byte(i) for i in self.pieces.encode(word))


def _where(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE)
