"""Markdown as model cards and comparisons write it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers with a fraction are written with three digits."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """What stands in a cell; None is a dash."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A share with its interval in brackets."""
    return cell(value) + (f" ({interval[0]:.2f}–{interval[1]:.2f})" if interval else "")
