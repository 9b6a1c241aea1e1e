"""What the commands of this room have in common: a mistake of the user's is told in a line, not as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.train import TrainingError


@contextmanager
def mistakes_told() -> Iterator[None]:
    """End the program with status 1 and the message of what a user can mend."""
    try:
        yield
    except (ValueError, OSError, TrainingError) as error:
        sys.exit(f"error: {error}")
