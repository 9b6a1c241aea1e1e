"""The sections of a model card that DALL-E 2 alone has: its priors, what its decoder needs, edits by embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zoo.markdown import table, with_interval
from zoo.shares import HEAD, cells


def sections(results: Mapping[str, Any]) -> list[str]:
    """Those that something was measured for."""
    return [write(results[name]) for name, write in SECTIONS.items() if name in results]


def priors(found: Any) -> str:
    """The priors side by side."""
    rows = [
        (
            f"`{name}`",
            *cells(row["overall"], row["intervals"]),
            row["diversity"],
            row["seconds"],
            f"{row['parameters'] / 1e6:.2f}M",
        )
        for name, row in found.items()
    ]
    images = next(iter(found.values()))["images"]
    head = ("prior", *HEAD, "diversity", "seconds an embedding", "parameters")
    return (
        '### Priors\n\n`zoo.load(..., generator="...")` chooses one. The share of pictures in which the checker finds '
        f"everything that the prompt says, the mean of the six tasks, {images} pictures each, with its 95 % interval. "
        "*Diversity*: the mean of 1 - cosine between CLIP's embeddings of the pictures of one prompt.\n\n"
        + table(head, rows)
    )


def fed(found: Any) -> str:
    """What a decoder makes of what it is told."""
    rows = [(way, with_interval(row["ok"], row["interval"])) for way, row in found["ways"].items()]
    return (
        "### What the decoder is told\n\nThe share of pictures that are everything their scene is, over the same "
        f"{found['scenes']} fresh scenes (a third of them held-out combinations, dev half) and captions that say "
        "everything, by the default prior.\n\n" + table(("the decoder is told", "pictures that are their scene"), rows)
    )


def variations(found: Any) -> str:
    """What variations keep and change."""
    rows = [
        ("object and colour are kept", with_interval(found["kept"], found["kept_interval"])),
        (
            "of these: the centre moved 4 pixels of 64, or the area changed 15 %",
            with_interval(found["changed"], found["changed_interval"]),
        ),
    ]
    return (
        "### Variations\n\n"
        f"`zoo.dalle2.variations(pipe, picture)` of {found['scenes']} drawn pictures of one object.\n\n"
        + table(("share", "value"), rows)
    )


def strips(found: Any) -> str:
    """What the checker sees along an interpolation and two text differences."""
    parts = [
        "### Between pictures and along texts\n\n![Rows of a given picture and what was made of it](strips.webp)\n\n"
        "`zoo.dalle2.interpolate` from one picture to another, and `zoo.dalle2.text_diff` from one caption to another "
        "by growing strength; in each what the checker sees."
    ]
    parts += [table((name, *seen), [("seen", *seen.values())]) for name, seen in found.items()]
    return "\n\n".join(parts)


def inversion(found: Any) -> str:
    """How well pictures come back from their noise."""
    return (
        "### Pictures from their noise\n\n"
        f"Inverted in {found['steps']} steps and made again, {found['scenes']} fresh scenes come back with a PSNR of "
        f"{found['small']:.1f} dB in the decoder's own size and {found['whole']:.1f} dB enlarged."
    )


SECTIONS: Mapping[str, Callable[[Any], str]] = {
    "priors": priors,
    "fed": fed,
    "variations": variations,
    "strips": strips,
    "inversion": inversion,
}
