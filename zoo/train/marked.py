"""Tables in pages that people write: what stands between two marks is rendered, everything else is left alone."""

from __future__ import annotations

from pathlib import Path

from zoo.train.checkpoint import replacing


def filled(text: str, begin: str, end: str, table: str) -> str:
    """The text with `table` between the marks; as it is where it has no such marks."""
    head, found, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}" if found else text


def fill(page: Path, begin: str, end: str, table: str) -> None:
    """Put a table between a page's marks, where there is such a page and it has them."""
    if page.is_file():
        text = filled(page.read_text("utf-8"), begin, end, table)
        with replacing(page) as temporary:
            temporary.write_text(text, "utf-8")


def stale(page: Path, begin: str, end: str, table: str) -> bool:
    """Whether a page has something else between its marks than this table."""
    text = page.read_text("utf-8") if page.is_file() else ""
    return filled(text, begin, end, table) != text
