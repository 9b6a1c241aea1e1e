"""The failure sheet: the worst pictures, each with its prompt, what the checker saw in it, and why that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from zoo.data.captions import article, plural
from zoo.evaluate.checker import Reading
from zoo.evaluate.judged import Judged
from zoo.evaluate.tasks import phrase
from zoo.sheet import INK, Card, card_sheet, writable

MOST = 24
FAINT, SEEN, WRONG = "#888888", "#1f5fa8", "#b3261e"


def worst(judged: Sequence[Judged], most: int = MOST) -> list[int]:
    """Indices of the `most` pictures furthest from what was asked, worst first: by facets that are wrong, then reasons.

    Among equals the first come first; pictures judged right are left out.
    """

    def wrong(index: int) -> tuple[int, int]:
        verdict = judged[index].verdict
        return list(verdict.facets.values()).count(False), len(verdict.reasons)

    return sorted((i for i, j in enumerate(judged) if not j.verdict.ok), key=wrong, reverse=True)[:most]


def failure_sheet(judged: Sequence[Judged], model: str, most: int = MOST) -> Image.Image | None:
    """A sheet of the worst pictures (see `worst`), named by the files that `zoo evaluate --save` writes them to.

    None where no picture is wrong. A Chinese prompt that no installed font can write is told in English.
    """
    chosen = worst(judged, most)
    if not chosen:
        return None
    failures = sum(not j.verdict.ok for j in judged)
    title = f"{model}, judged wrong: {failures} of {len(judged)} pictures" + f"; the {most} worst" * (failures > most)
    return card_sheet(title, [_card(judged[index], index) for index in chosen])


def told(reading: Reading) -> str:
    """What the checker saw, in words: "2 red stars and a blue car on white, plain, with faces"."""
    things = Counter((thing.colour, thing.shape) for thing in reading.objects)
    nouns = [f"{_number(n, colour)} {colour} {_plural(shape, n)}" for (colour, shape), n in things.items()]
    listed = " and ".join([", ".join(nouns[:-1]), nouns[-1]] if len(nouns) > 1 else nouns) or "nothing"
    details = [f"{listed} on {reading.background or 'an unknown background'}"]
    details += [" and ".join(sorted({thing.style for thing in reading.objects}))] if things else []
    faces, all_of_them = sum(thing.face for thing in reading.objects), len(reading.objects)
    if faces:
        details.append(f"{faces} with a face" if faces < all_of_them else "with faces" if faces > 1 else "with a face")
    if reading.strays:
        details.append(f"{reading.strays} stray {'speck' if reading.strays == 1 else 'specks'}")
    return ", ".join(details)


def _card(j: Judged, index: int) -> Card:
    case = j.case
    in_english = f"(in Chinese) {phrase(case.scene, 'en', (case.seed,))}"
    reasons = [reason if n == 1 else f"{reason} ({n} times)" for reason, n in Counter(j.verdict.reasons).items()]
    lines = [
        (f"{file_name(index)}  {case.task}, {case.split.replace('_', '-')}, {case.language}", FAINT),
        (case.prompt if writable(case.prompt) else in_english, INK),
        (f"saw {told(j.reading)}", SEEN),
        *((f"- {reason}", WRONG) for reason in reasons),
    ]
    return Card(j.image(), lines)


def file_name(index: int) -> str:
    """The file of the picture at `index` in a folder written by `zoo evaluate --save`."""
    return f"{index:05}.png"


def _number(n: int, word: str) -> str:
    return str(n) if n > 1 else article(word)


def _plural(shape: str, n: int) -> str:
    return shape if n == 1 else plural(shape)
