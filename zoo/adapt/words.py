"""Textual inversion (arXiv 2208.01618): a new word, whose embedding is all that is trained.

A tokenizer of the zoo keeps pieces free for it (`<new0>`, `<new1>` ...). What was learned is one row of the text
encoder's table of embeddings; taught to an encoder, it is there for every prompt that says the word, and changes no
other prompt.

    teach(pipe.text_encoder, Word.load("p7/word.safetensors"))
    pipe("a P7 car at night")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoo import tensors

ROW = "row"
OFTEN = 0.9  # share of the vocabulary with shorter embeddings than a word that is often said


class Reader(Protocol):
    """A text encoder over a transformers model and a sentencepiece tokenizer with pieces kept free."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...


class Word(nn.Module):
    """How prompts write it, the reserved piece that stands for it, and its embedding [width]: what is trained."""

    def __init__(self, name: str, piece: str, row: Tensor) -> None:
        super().__init__()
        self.name, self.piece, self.row = name, piece, nn.Parameter(row)

    @classmethod
    def fresh(cls, encoder: Reader, name: str, piece: str, known: str | None = None, *, seed: int = 0) -> Self:
        """A word that begins as the mean of the embeddings of known words, such as its class's.

        Without any, it begins as a stranger to all words, in a random direction, but as long as those that are often
        said: pieces that training hardly met have short embeddings, which a text encoder all but passes over.

        Raises:
            ValueError: the piece is none that the tokenizer keeps free, or not all that it shall be like is known.
        """
        _identity(encoder, piece)
        if known is None:
            table = _tables(encoder)[0].weight.detach().float()
            row = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed)).to(table)
            return cls(name, piece, row * table.norm(dim=1).quantile(OFTEN) / row.norm())
        ids = list(map(int, encoder.tokenizer.pieces.encode(known)))
        if not ids or encoder.tokenizer.unknown in ids:
            raise ValueError(f"the word cannot begin as {known!r}: the text encoder does not know all of it")
        return cls(name, piece, _tables(encoder)[0].weight.detach()[ids].float().mean(0))

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file of one row."""
        said = {"format": "zoo", "kind": "word", "word": self.name, "piece": self.piece}
        tensors.write(Path(path), {ROW: self.row}, dtype, said)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The word that `save` wrote.

        Raises:
            ValueError: the file is damaged, or no word.
        """
        path = Path(path)
        said, stored = tensors.metadata(path), tensors.read(path)
        whole = said.get("kind") == "word" and {"word", "piece"} <= said.keys() and stored.keys() == {ROW}
        if not whole or stored[ROW].dim() != 1 or not stored[ROW].isfinite().all():
            raise ValueError(f"{path} is no word written by zoo: its header says {said or 'nothing'}")
        return cls(said["word"], said["piece"], stored[ROW].float())


class WordInjection:
    """A word that an encoder reads and that prompts may write, as `inject` had it."""

    def __init__(self, encoder: Reader, word: Word, handles: Sequence[RemovableHandle], before: str | None) -> None:
        self._words, self._name, self._before = encoder.tokenizer.words, word.name, before
        self._handles = list(handles)

    def remove(self) -> None:
        """Take both back: the encoder reads the piece as it did, and prompts mean what they did."""
        if not self._handles:
            return
        while self._handles:
            self._handles.pop().remove()
        if self._before is None:
            self._words.pop(self._name, None)
        else:
            self._words[self._name] = self._before


def inject(encoder: Reader, word: Word) -> WordInjection:
    """Have the encoder read the piece as the word's own row, through which gradients flow, until that is removed.

    Raises:
        ValueError: the piece is none that the tokenizer keeps free, or the row is of another width.
    """
    identity = _check(encoder, word)

    def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where((args[0] == identity)[..., None], word.row.to(output), output)

    before = encoder.tokenizer.words.get(word.name)
    encoder.tokenizer.words[word.name] = word.piece
    handles = [table.register_forward_hook(read) for table in _tables(encoder)]
    return WordInjection(encoder, word, handles, before)


@torch.no_grad()
def teach(encoder: Reader, word: Word) -> None:
    """Put the word into the encoder's table for good. Not while calls run.

    Raises:
        ValueError: as `check` does.
    """
    identity = check(encoder, word)
    for table in _tables(encoder):
        table.weight[identity] = word.row.to(table.weight)
    encoder.tokenizer.words[word.name] = word.piece


def check(encoder: Reader, word: Word) -> int:
    """Look whether a word can be taught; returns which row of the table would be its own.

    Raises:
        ValueError: the piece is none that the tokenizer keeps free, the row is of another width, or the piece stands
            for another word, or for this one as it was learned elsewhere: what was drawn with that would change.
    """
    identity, table = _check(encoder, word), _tables(encoder)[0].weight
    for name, piece in encoder.tokenizer.words.items():
        same = (name, piece) == (word.name, word.piece) and torch.equal(table[identity], word.row.to(table))
        if name.casefold() == word.name.casefold() and not same:  # prompts may write it either way
            raise ValueError(
                f"{name!r} is known already, as it was learned with another adapter: load this one into a pipeline of "
                "its own"
            )
    return identity


def _check(encoder: Reader, word: Word) -> int:
    identity, width = _identity(encoder, word.piece), _tables(encoder)[0].weight.shape[1]
    if len(word.row) != width:
        raise ValueError(f"the word {word.name!r} is {len(word.row)} wide, but this encoder's embeddings are {width}")
    taken = [name for name, piece in encoder.tokenizer.words.items() if piece == word.piece and name != word.name]
    if taken:
        raise ValueError(f"{word.piece} stands for {taken[0]!r} already: train {word.name!r} on another piece")
    return identity


def _identity(encoder: Reader, piece: str) -> int:
    free = getattr(getattr(encoder, "tokenizer", None), "reserved", ())
    if piece not in free:
        some = ", ".join([*free][:4]) or "none: new words need a tokenizer of the zoo"
        raise ValueError(f"{piece!r} is no piece that the tokenizer keeps free for new words; there are: {some}")
    return int(encoder.tokenizer.pieces.piece_to_id(piece))


def _tables(encoder: Reader) -> Sequence[nn.Embedding]:
    """The embedding modules of the vocabulary; a T5 has two over one tensor, of which it calls one."""
    weight = encoder.model.get_input_embeddings().weight
    return [m for m in encoder.model.modules() if isinstance(m, nn.Embedding) and m.weight is weight]
