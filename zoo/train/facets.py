"""Facets of a description as classes, and the probes that read them from features of a text or a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, STYLES, Description

LAYOUTS = ("beside", "stacked")
CLASSES = {
    "count": 4,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "second shape": len(SHAPES),
    "second colour": len(COLOURS),
    "relation": len(LAYOUTS),
    "size": len(SIZES),
    "background": len(BACKGROUNDS),
    "style": len(STYLES),
    "face": 2,
}
ABSENT = -100


def labels(said: Description) -> list[int]:
    """The class of each facet, ABSENT where it is not said.

    Of two objects the first is the left or the upper one; where their relation is not said, neither is the first.
    """
    items, two = list(said.items), len(said.items) == 2
    if said.relation in ("right of", "below"):
        items.reverse()
    known = not two or said.relation is not None

    def index(values: tuple[str, ...], value: str | None) -> int:
        return values.index(value) if value is not None else ABSENT

    return [
        ABSENT if two else said.count - 1,
        index(SHAPES, items[0].shape if known else None),
        index(COLOURS, items[0].colour if known else None),
        index(SHAPES, items[-1].shape if two and known else None),
        index(COLOURS, items[-1].colour if two and known else None),
        int(said.relation in ("above", "below")) if said.relation else ABSENT,
        index(SIZES, items[0].size),
        index(BACKGROUNDS, said.background),
        index(STYLES, said.style),
        ABSENT if said.face is None else int(said.face),
    ]


class CrossAttentionProbe(nn.Module):
    """One learned query a facet attends to the tokens [batch, length, width]; a linear layer reads what it found.

    A mask [batch, length] says which of them may be attended to; None is all.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(CLASSES), width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read = nn.ModuleList(nn.Linear(width, n) for n in CLASSES.values())

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        queries, hidden = self.queries.expand(len(tokens), -1, -1), None if mask is None else ~mask
        found, _ = self.attention(queries, tokens, tokens, key_padding_mask=hidden, need_weights=False)
        return [read(found[:, i]) for i, read in enumerate(self.read)]


class LinearProbe(nn.Module):
    """A linear layer a facet on the embedding [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.read = nn.ModuleList(nn.Linear(width, n) for n in CLASSES.values())

    def forward(self, embedding: Tensor) -> list[Tensor]:
        normed = self.norm(embedding)
        return [read(normed) for read in self.read]


def misread(outputs: list[Tensor], truth: Tensor) -> Tensor:
    """Cross-entropy summed over the facets, each averaged over the rows [batch, facets] that have it."""
    losses = []
    for output, wanted in zip(outputs, truth.unbind(1), strict=True):
        there = (wanted != ABSENT).sum().clamp(min=1)
        losses.append(F.cross_entropy(output.float(), wanted, ignore_index=ABSENT, reduction="sum") / there)
    return torch.stack(losses).sum()
