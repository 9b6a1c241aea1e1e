"""What was asked and what was seen instead, facet by facet: which colour became which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from zoo.data.scenes import RELATIONS, Description, Item
from zoo.evaluate.checker import FACETS, Reading, Seen, assign, lies, likeness, wanted_items

Confusion: TypeAlias = dict[str, dict[str, dict[str, int]]]
"""{facet: {asked: {seen: how often}}}: a matrix for each facet that was asked for, of which zeros are left out."""

MISSING = "missing"  # there is no object that could show it
UNCLEAR = "unclear"  # a background like none that there is, or objects that lie neither beside nor above each other
STRAY = "stray specks"


def confusion(pictures: Iterable[tuple[Description, Reading]]) -> Confusion:
    """How often each asked value was seen as each other, over pictures given as (what was asked, what is seen).

    Shape, colour, size, style and face are counted once for each object asked for; count, relation and background once
    for each picture; and of `whole` each object seen counts, as "whole" or as what is wrong with it, and stray specks
    once for each picture that has them.
    """
    counts = Counter(finding for asked, reading in pictures for finding in _findings(asked, reading))
    matrices: Confusion = {}
    for facet, asked, seen in sorted(counts, key=lambda f: (FACETS.index(f[0]), *f[1:])):
        matrices.setdefault(facet, {}).setdefault(asked, {})[seen] = counts[facet, asked, seen]
    return matrices


def table(matrices: Confusion, most: int = 3) -> str:
    """A line for each facet: how many are not as asked, and the `most` frequent confusions."""
    lines = []
    for facet, rows in matrices.items():
        cells = [(n, f"{asked} -> {seen}", asked != seen) for asked, row in rows.items() for seen, n in row.items()]
        wrong = sorted(((n, told) for n, told, differs in cells if differs), key=lambda cell: -cell[0])
        share = f"{sum(n for n, _ in wrong)} of {sum(n for n, *_ in cells)}"
        lines.append(f"{facet:<12}{share:>12}  {', '.join(f'{told} ({n})' for n, told in wrong[:most])}".rstrip())
    return "\n".join(lines)


def _findings(asked: Description, reading: Reading) -> Iterator[tuple[str, str, str]]:
    """(facet, asked, seen) for all that a description says."""
    pairs = _pairs(asked, reading)
    for found in reading.objects:
        yield "whole", "whole", found.flaw or "whole"
    if reading.strays:
        yield "whole", "whole", STRAY
    yield "count", str(len(pairs)), str(len(reading.objects))
    if asked.background:
        yield "background", asked.background, reading.background or UNCLEAR
    for item, thing in pairs:
        yield "shape", item.shape, thing.shape if thing else MISSING
        if item.colour:
            yield "colour", item.colour, thing.colour if thing else MISSING
        if item.size:
            yield "size", item.size, thing.size if thing else MISSING
        if asked.style:
            yield "style", asked.style, thing.style if thing else MISSING
        if asked.face is not None:
            yield "face", _face(asked.face), _face(thing.face) if thing else MISSING
    if asked.relation:
        yield "relation", asked.relation, _relation(*(thing for _, thing in pairs))


def _pairs(asked: Description, reading: Reading) -> list[tuple[Item, Seen | None]]:
    """Every item asked for, as often as it is, with the object that the checker judged it by, if there is one.

    Where one of two unlike items is missing, it is the one less like what there is: the checker, to whom both are
    wrong, takes the first for present.
    """
    found = list(reading.objects)
    if len(asked.items) == 2 and len(found) == 1:
        first, second = asked.items
        if likeness(first, found[0]) >= likeness(second, found[0]):
            return [(first, found[0]), (second, None)]
        return [(first, None), (second, found[0])]
    wanted = wanted_items(asked)
    pairs: list[tuple[Item, Seen | None]] = list(assign(wanted, found))
    return [*pairs, *((item, None) for item in wanted[len(pairs) :])]


def _relation(first: Seen | None, second: Seen | None) -> str:
    if first is None or second is None:
        return MISSING
    return next((relation for relation in RELATIONS if lies(first, second, relation)), UNCLEAR)


def _face(face: bool) -> str:
    return "face" if face else "no face"
