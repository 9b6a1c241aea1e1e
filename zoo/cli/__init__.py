"""The command `zoo`: one file for each group of commands.

A command is one function with `@app.command()` in the file of its group; a new file is one more name in `GROUPS`. Heavy
libraries are imported inside the commands, after what can be checked without them.
"""

from __future__ import annotations

import importlib
import warnings

from zoo.cli.shared import app, fail, note

__all__ = ["app", "main"]

GROUPS = ("models", "generate", "edit", "adapt", "train", "evaluate", "compare", "page")  # as `zoo --help` lists them

for group in GROUPS:
    importlib.import_module(f"zoo.cli.{group}")


def main() -> None:
    """The command line; bad input ends in one line on stderr and status 2."""
    warnings.showwarning = note
    try:
        app(prog_name="zoo")
    except (ValueError, OSError) as error:
        fail(error, 2)
    except RuntimeError as error:
        if "out of memory" not in str(error):  # which torch need not be imported to be told by
            raise
        fail(ValueError(f"{str(error).splitlines()[0]} Try fewer images at once, a smaller size, or --device cpu."), 2)
