"""For griffe, which reads the docstrings: the comment at the end of a field's line is what the reference says of it."""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives attributes without a docstring the comment that ends their first or last line."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        if attr.docstring is None and attr.lineno is not None and attr.endlineno is not None:
            lines = attr.lines_collection[attr.filepath][attr.lineno - 1 : attr.endlineno]
            if said := _comment(lines[-1]) or _comment(lines[0]):
                attr.docstring = griffe.Docstring(said, lineno=attr.lineno, endlineno=attr.endlineno, parent=attr)


def _comment(line: str) -> str:
    """A line's comment, as a sentence; none if it is for tools."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError):  # one line of several that belong together
        return ""
    said = next((token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT), "")
    return "" if said.startswith(("type:", "noqa")) else said[:1].upper() + said[1:]
