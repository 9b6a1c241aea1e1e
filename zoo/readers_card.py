"""The section of a card that says how well its generator learns to read each text encoder (`zoo.train.swap`)."""

from __future__ import annotations

from typing import Any

from zoo.data.captions import LANGUAGES
from zoo.markdown import table
from zoo.shares import HEAD, cells

BINDING = "colour attribution"  # the task that asks most of a text encoder: which colour is whose
COLUMNS = ("reads", *HEAD, *(f"{BINDING}, seen, {language}" for language in LANGUAGES), "images seen", "minutes")


def rows(found: Any) -> list[tuple[object, ...]]:
    """A row for each text encoder."""
    return [
        (
            name,
            *cells(one["overall"], one["intervals"]["overall"]),
            *(one["tasks"][BINDING]["seen"][language] for language in LANGUAGES),
            one["images"],
            round(one["minutes"]),
        )
        for name, one in found["encoders"].items()
    ]


def section(found: Any) -> str:
    """The card's section."""
    return (
        "### Which text encoder\n\n"
        "The generator's weights that read text begin at random, for its own encoder as well, and learn on the same "
        f"budget each; scored are {found['per_task']} scenes a task, split and language (held out: the "
        f"{found['heldout']} half). [docs/text-encoders.md](../../docs/text-encoders.md) has both families.\n\n"
        + table(COLUMNS, rows(found))
    )
