"""What variations of a picture keep and what they change: the object and its colour, its place and its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import hypot
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor

from zoo.evaluate.checker import Seen, read
from zoo.evaluate.fresh_scenes import SIZE, fresh
from zoo.evaluate.intervals import of_share

MOVED = 4 / SIZE  # share of the picture from which a centre has moved
GROWN = 0.15  # from which an area is another one
SEED = 4_000_000

Vary: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]
"""Pictures [batch, 3, 64, 64] in [0, 1] and a seed for each to one variation of each, as large."""


class Varied(TypedDict):
    """Shares with their 95 % intervals [low, high].

    kept: variations that show one whole object, of the given one's shape and colour. changed: those among them in which
    its centre moved by 4 pixels of 64 or its area changed by 15 %; None where nothing was kept.
    """

    kept: float
    kept_interval: list[float]
    changed: float | None
    changed_interval: list[float] | None
    scenes: int


@torch.no_grad()
def measure(vary: Vary, *, n: int = 200, batch: int = 16) -> Varied:
    """One variation of each of `n` drawn pictures of one object, a third of them held-out combinations (dev half).

    Given and varied pictures are read by the same checker; given ones that it reads wrongly are left out beforehand.

    Raises:
        ValueError: n below 1, or pictures of another size.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 scene, not {n}")
    given, before = _legible(n)
    kept = changed = 0
    for start in range(0, n, batch):
        rows = slice(start, start + batch)
        made = vary(given[rows], [SEED + i for i in range(n)[rows]]).float().cpu()
        if made.shape != given[rows].shape:
            raise ValueError(f"variations are {list(made.shape)} of pictures that are {list(given[rows].shape)}")
        for picture, thing in zip(made, before[rows], strict=True):
            seen = read(picture).objects
            if len(seen) == 1 and same(seen[0], thing):
                kept += 1
                changed += elsewhere(seen[0], thing)
    return Varied(
        kept=round(kept / n, 4),
        kept_interval=_rounded(kept, n),
        changed=round(changed / kept, 4) if kept else None,
        changed_interval=_rounded(changed, kept) if kept else None,
        scenes=n,
    )


def same(seen: Seen, thing: Seen) -> bool:
    """Whether a whole object of the same shape and colour is seen."""
    return seen.flaw is None and (seen.shape, seen.colour) == (thing.shape, thing.colour)


def elsewhere(seen: Seen, thing: Seen) -> bool:
    """Whether the centre moved by 4 pixels of 64, or the area became 15 % larger or smaller."""
    moved = hypot(seen.x - thing.x, seen.y - thing.y) >= MOVED
    return moved or abs((seen.extent / thing.extent) ** 2 - 1) >= GROWN


def _legible(n: int) -> tuple[Tensor, list[Seen]]:
    """Pictures of one object each, and what the checker sees there."""
    pictures, before = list[Tensor](), list[Seen]()
    for turn in count():
        some = fresh(n, SEED + turn * 1_000_003, kind="single")
        for picture, scene in zip(some.pictures, some.scenes, strict=True):
            seen, true = read(picture).objects, scene.objects[0]
            if len(seen) == 1 and seen[0].flaw is None and (seen[0].shape, seen[0].colour) == (true.shape, true.colour):
                pictures.append(picture)
                before.append(seen[0])
            if len(pictures) == n:
                return torch.stack(pictures), before
    raise AssertionError("there is always another scene")


def _rounded(right: int, n: int) -> list[float]:
    return [round(end, 4) for end in of_share(right, n)]
