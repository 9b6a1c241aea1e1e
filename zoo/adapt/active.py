"""Which adapters act, and how strongly on which image: said for the duration of a call, never kept in a module.

What is said holds in the thread (or task) that said it: threads share one network and each has its own adapters. Code
that a network starts in other threads sees none, unless it runs in a copy of the context (`contextvars.copy_context`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from zoo.nn import part

Strength: TypeAlias = float | Tensor
"""One number for every image, or one for each: [images]."""

COPIES = 3  # of its images that a batch may hold: conditional, unconditional, and one branch to spare


@dataclass(frozen=True)
class Active:
    """The strengths that act, by the adapters' names; rows holds those already spread over a batch."""

    strengths: Mapping[str, Strength]
    images: int | None
    rows: dict[tuple[object, ...], Tensor] = field(default_factory=dict)


_ACTIVE: ContextVar[Active | None] = ContextVar("zoo.adapt", default=None)


@contextmanager
def use(strengths: Mapping[str, Strength], images: int | None = None) -> Iterator[None]:
    """Within the block, the named adapters act with these strengths, and no others; 0 is off.

    A strength is one number, or a tensor [images] with one for each image. `images` says how many a batch has (tensors
    say it too). A batch may then also hold all images twice or three times over, one copy after the other, the
    conditional one first, as classifier-free guidance does.

    Raises:
        ValueError: strengths that are not finite, or tensors that do not hold one number per image.
    """
    kept: dict[str, Strength] = {}
    for name, strength in strengths.items():
        if isinstance(strength, Tensor) and strength.dim() == 1:
            images = len(strength) if images is None else images
            if len(strength) != images:
                raise ValueError(f"adapter {name!r}: {len(strength)} strengths for {images} images")
            if not strength.isfinite().all():
                raise ValueError(f"adapter {name!r}: strengths are finite numbers, got {strength.tolist()}")
            acts = True  # zeros as well: what is trained has a gradient, if one of zeros, whatever the batch
        elif isinstance(strength, Tensor) and strength.dim():
            raise ValueError(f"adapter {name!r}: strengths have shape {list(strength.shape)}, expected [images]")
        else:
            strength = finite(name, strength)
            acts = strength != 0
        if acts:
            kept[name] = strength
    token = _ACTIVE.set(Active(kept, images))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def finite(name: str, strength: object) -> float:
    """A strength as a number.

    Raises:
        ValueError: it is none, or not finite.
    """
    try:
        number = float(strength)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"adapter {name!r}: a strength is a finite number, got {strength!r}")
    return number


def strength(name: str, like: Tensor, *, first: bool = False) -> Strength | None:
    """How strongly an adapter acts on each row of `like` [rows, ...]; None if it does not.

    A tensor has the shape [rows, 1, ...] with as many dimensions as `like`. With `first`, only the first copy of the
    images is acted on, the conditional one.

    Raises:
        ValueError: the rows are no copies of the images.
    """
    active = _ACTIVE.get()
    given = None if active is None else active.strengths.get(name)
    if active is None or given is None:
        return None
    rows, images, shown = len(like), active.images, part.shown()
    if shown is not None and images is not None:  # the network is given some of the images at a time
        images = len(range(images)[shown])
        given = given[shown] if isinstance(given, Tensor) and given.dim() else given
    if images is None or (not isinstance(given, Tensor) and (not first or rows == images)):
        return given
    key = (name, like.shape[:1], like.dim(), like.device, like.dtype, first, str(shown))
    if key not in active.rows:
        copies, rest = divmod(rows, images)
        if rest or not 0 < copies <= COPIES:
            raise ValueError(
                f"adapter {name!r}: a batch of {rows} rows where there are {images} images: each image may have up to "
                f"{COPIES} rows, as whole copies of the batch one after the other"
            )
        each = torch.as_tensor(given).expand(images)
        later = torch.zeros_like(each) if first else each
        spread = torch.cat([each, *[later] * (copies - 1)]).to(like.device, like.dtype)
        active.rows[key] = spread.view(-1, *[1] * (like.dim() - 1))
    return active.rows[key]
