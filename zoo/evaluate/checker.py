"""The checker: what a picture shows, read from its pixels alone, and whether that is what a description says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import exp
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.data.scenes import Description, Item
from zoo.evaluate import faces
from zoo.evaluate.fit import Fit, fit
from zoo.evaluate.foreground import Array, Blob, as_pixels, distance_from, find_background, find_blobs, split

if TYPE_CHECKING:
    from torch import Tensor

FACETS = ("shape", "colour", "size", "count", "relation", "background", "style", "face", "whole")
"""What a verdict speaks of. `whole` is never said: objects are complete, and of one colour."""

LARGE = 0.485  # extent from which an object is large: halfway between the largest small and the smallest large one
LEAST_SPAN = 11  # pixels across below which a thing is a stray speck, not an object
LEAST_EXTENT = 0.235
ERROR = {"plain": 0.05, "cartoon": 0.065, "sketch": 0.17}  # unexplained share of a whole object, at most
LOOSE = {"plain": 0.014, "cartoon": 0.016, "sketch": 0.037}
SPOT = {"plain": 0.1, "cartoon": 0.1, "sketch": 0.12}
FOREIGN = {"plain": 0.1, "cartoon": 0.1, "sketch": 0.25}
OFF_HUE = {"plain": 10.0, "cartoon": 10.0, "sketch": 30.0}  # RGB levels; drawn ones stay below 6, sketches below 22
SMEARED = 0.88  # correlation of a face with a drawn one; drawn ones are above, but for 1 in 100 wobbly ones
NO_FACE = 0.8  # the same, below which it does not do as a face that is asked for
TINGED = 12.0  # RGB distance; drawn scenes, also blurred, noisy and wobbly ones, stay below 7
STRETCH = exp(0.25)
PATCHES, SMEAR = "patches of another hue", "a smeared face"
BREAK = 4  # pixels at most between the pieces of one object
CUTS = ((0.25, 0), (0.4, 0), (0.55, 0), (0.5, 2), (0.5, 4))  # where things that touch are cut: see `split`


@dataclass(frozen=True)
class Seen:
    """One object as the checker sees it; place and extent as in `zoo.data.scenes.Placed`.

    `flaw` is what makes it no whole object. Of whole ones, `has_patches` says whether there are patches of another hue,
    and `face_likeness` how alike the face is to a drawn one (`zoo.evaluate.faces`; 1 without a face).
    """

    shape: str
    colour: str
    style: str
    face: bool
    x: float
    y: float
    extent: float
    flaw: str | None = None
    has_patches: bool = False
    face_likeness: float = 1.0

    @property
    def blemishes(self) -> tuple[str, ...]:
        """What is badly drawn of a whole object."""
        patches = (PATCHES,) if self.has_patches else ()
        return (*patches, SMEAR) if self.face_likeness < SMEARED else patches

    @property
    def size(self) -> str:
        return "large" if self.extent > LARGE else "small"


@dataclass(frozen=True)
class Reading:
    """All that is seen. `background` is None if it resembles none; `strays` counts specks that are no object."""

    background: str | None
    objects: tuple[Seen, ...]
    strays: int


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, facet by facet (only those that were judged), with a reason for every no.

    A picture is right if it shows what was said, and clean if none of its objects is badly drawn besides: the second is
    asked of right ones (`clean`) and told apart from them, as text alignment and quality are elsewhere.
    """

    ok: bool
    facets: dict[str, bool]
    reasons: tuple[str, ...]
    blemishes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return self.ok and not self.blemishes


def read(picture: NDArray[np.uint8] | Array | Tensor) -> Reading:
    """What a picture shows (shapes and ranges as `as_pixels`). Deterministic; some 30 ms on one core."""
    pixels = as_pixels(picture)
    name, background = find_background(pixels)
    distance = distance_from(background, pixels)
    difference = pixels - background

    def see(blob: Blob, others: list[Blob]) -> Seen:
        best = fit(difference, background, blob, others, night=name == "night")[0]
        kind = best.kind
        flaw = _flaw(best)
        seen = Seen(kind.shape, best.colour, kind.style, kind.face, best.x, best.y, best.extent, flaw)
        if flaw:
            return seen
        alike = faces.likeness(pixels, name or "gray", best) if kind.face else 1.0
        return replace(seen, has_patches=best.off_hue > OFF_HUE[kind.style], face_likeness=alike)

    blobs = find_blobs(distance)
    found = [(blob, see(blob, _without(blobs, blob)) if blob.span >= LEAST_SPAN else None) for blob in blobs]
    found = _mended(found, see)
    objects: list[Seen] = []
    for blob, seen in found:
        if seen is not None:
            others = _without([other for other, _ in found], blob)
            objects += (seen.flaw and _apart(blob, others, distance, see)) or [seen]
    return Reading(name, tuple(objects), sum(seen is None for _, seen in found))


_Found: TypeAlias = list[tuple[Blob, Seen | None]]
_See: TypeAlias = Callable[[Blob, list[Blob]], Seen]


def _without(blobs: list[Blob], *some: Blob) -> list[Blob]:
    return [blob for blob in blobs if blob not in some]


def _mended(found: _Found, see: _See) -> _Found:
    """Joins what is flawed with specks and flawed things close by, if that makes a whole object: a broken outline."""
    for (blob, seen), (other, also) in permutations(found, 2):
        if seen is not None and seen.flaw and (also is None or also.flaw) and blob.gap(other) <= BREAK:
            whole, rest = blob.joined(other), [f for f in found if f[0] not in (blob, other)]
            as_one = see(whole, [b for b, _ in rest])
            if as_one.flaw is None:
                return _mended([*rest, (whole, as_one)], see)
    return found


def _apart(blob: Blob, others: list[Blob], distance: Array, see: _See) -> list[Seen]:
    """What a blob shows if it is objects that touch, all of them whole; else nothing."""
    for share, peel in CUTS:
        parts = split(blob, distance, share, peel)
        if len(parts) > 1:
            seen = [see(part, [*others, *_without(parts, part)]) for part in parts]
            if not any(part.flaw for part in seen):
                return seen
    return []


def _flaw(best: Fit) -> str | None:
    style = best.kind.style
    if best.foreign > FOREIGN[style]:
        return "partly in another colour"
    if best.tinged > TINGED:
        return "of two colours"
    if best.error > ERROR[style] or best.loose > LOOSE[style] or best.spot > SPOT[style]:
        return "not a whole object"
    if not 1 / STRETCH < best.stretch < STRETCH:
        return "out of proportion"
    if best.extent < LEAST_EXTENT:
        return "too small to be an object"
    return None


def judge(picture: NDArray[np.uint8] | Array | Tensor | Reading, description: Description) -> Verdict:
    """Whether a picture (or what was read in it) is what a description says. What is left open there is not judged."""
    reading = picture if isinstance(picture, Reading) else read(picture)
    wanted = wanted_items(description)
    facets: dict[str, bool] = {}
    reasons: list[str] = []

    def check(facet: str, right: bool, reason: str) -> None:
        facets[facet] = facets.get(facet, True) and right
        if not right:
            reasons.append(reason)

    found = list(reading.objects)
    for thing in found:
        check("whole", thing.flaw is None, f"{thing.shape}: {thing.flaw}")
    check("whole", reading.strays == 0, f"{reading.strays} stray specks")
    check("count", len(found) == len(wanted), f"{len(found)} objects instead of {len(wanted)}")
    if description.background:
        right = reading.background == description.background
        check("background", right, f"background {reading.background} instead of {description.background}")
    pairs = assign(wanted, found)
    for item, thing in pairs:
        check("shape", thing.shape == item.shape, f"{thing.shape} instead of {item.shape}")
        if item.colour:
            check("colour", thing.colour == item.colour, f"{thing.colour} {thing.shape} instead of {item.colour}")
        if item.size:
            check("size", thing.size == item.size, f"{thing.size} {thing.shape} instead of {item.size}")
        if description.style:
            check(
                "style", thing.style == description.style, f"{thing.style} {thing.shape} instead of {description.style}"
            )
        if description.face is not None:
            check("face", thing.face == description.face, f"{thing.shape} with{'' if thing.face else 'out'} a face")
            if description.face:
                check("face", thing.face_likeness >= NO_FACE, f"{thing.shape}: no face that one can recognise")
    if description.relation:
        right = len(pairs) == 2 and lies(pairs[0][1], pairs[1][1], description.relation)
        check("relation", right, f"the first object is not {description.relation} the second")
    if not found:
        check("shape", False, "nothing to be seen")
    blemishes = tuple(f"{thing.shape}: {blemish}" for thing in found for blemish in thing.blemishes)
    return Verdict(all(facets.values()), facets, tuple(reasons), blemishes)


def wanted_items(description: Description) -> list[Item]:
    """Every item that a description asks for, as often as it does."""
    return list(description.items) * (description.count if len(description.items) == 1 else 1)


def likeness(item: Item, thing: Seen) -> int:
    """How well an object fits an item: 0 to 3, the shape being twice the colour."""
    return 2 * (item.shape == thing.shape) + (item.colour in (None, thing.colour))


def assign(wanted: Sequence[Item], found: Sequence[Seen]) -> list[tuple[Item, Seen]]:
    """Each item with the object that is most like it; what is too many on either side is left over."""
    if len(wanted) == 1 or all(item == wanted[0] for item in wanted):
        return list(zip(wanted, sorted(found, key=lambda thing: -likeness(wanted[0], thing)), strict=False))
    orders = permutations(found[:4], min(len(wanted), len(found)))
    return max(
        ([*zip(wanted, order, strict=False)] for order in orders),
        key=lambda pairs: sum(likeness(*pair) for pair in pairs),
        default=[],
    )


def lies(first: Seen, second: Seen, relation: str) -> bool:
    """Whether the first object lies to the second as the relation says, more so than in any other direction."""
    right, down = second.x - first.x, second.y - first.y
    towards = {"left of": right, "right of": -right, "above": down, "below": -down}
    return towards[relation] == max(towards.values()) and towards[relation] > 0.05
