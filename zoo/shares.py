"""Shares of right pictures as cards and pages show them: a column a split and language, intervals in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from zoo.data.captions import LANGUAGES
from zoo.markdown import with_interval

SPLITS = {"seen": "seen", "held_out": "held out"}  # as scores know them, and as they are called
COLUMNS = [(split, language) for split in SPLITS for language in LANGUAGES]
HEAD = [f"{SPLITS[split]}, {language}" for split, language in COLUMNS]

Shares: TypeAlias = Mapping[str, Mapping[str, float | None]]  # by split and language
Intervals: TypeAlias = Mapping[str, Mapping[str, Sequence[float] | None]]


def cells(shares: Shares, intervals: Intervals) -> list[str]:
    """What stands below `HEAD`; dashes where nothing was measured."""
    return [
        with_interval(shares.get(split, {}).get(language), intervals.get(split, {}).get(language))
        for split, language in COLUMNS
    ]
