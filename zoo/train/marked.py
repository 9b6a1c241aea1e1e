"""Tables in pages that people write: what stands between two marks is rendered, everything else is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.atomic import write_text


def filled(text: str, begin: str, end: str, table: str) -> str:
    """The text with `table` between the marks; as it is where it has no such marks."""
    head, found, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}" if found else text


def fill(page: Path, begin: str, end: str, table: str) -> None:
    """Put a table between a page's marks, where there is such a page and it has them."""
    if page.is_file():
        text = filled(page.read_text("utf-8"), begin, end, table)
        write_text(page, text)


def stale(page: Path, begin: str, end: str, table: str) -> bool:
    """Whether a page has something else between its marks than this table."""
    text = page.read_text("utf-8") if page.is_file() else ""
    return filled(text, begin, end, table) != text


@dataclass(frozen=True)
class Saved:
    """A table of a page that is rendered from measurements that were saved as JSON, both below a checkout's root."""

    file: Path
    page: Path
    name: str
    render: Callable[[Any], str]

    @property
    def marks(self) -> tuple[str, str]:
        """Between which it stands."""
        return f"<!-- {self.name}: written by `make results` -->\n", f"<!-- end of {self.name} -->"

    def write(self, root: Path) -> None:
        """Write the table anew, in a checkout that has something saved."""
        if (root / self.file).is_file():
            fill(root / self.page, *self.marks, self._table(root))

    def stale(self, root: Path) -> bool:
        """Whether the page of a checkout says other than what is saved."""
        return (root / self.file).is_file() and stale(root / self.page, *self.marks, self._table(root))

    def _table(self, root: Path) -> str:
        return self.render(json.loads((root / self.file).read_text("utf-8")))
