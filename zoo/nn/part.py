"""Which images of a batch a network is given, where it is given only some at a time: said by what cuts the batch.

Whatever acts on each image in its own way, as adapters do, has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHOWN: ContextVar[slice | None] = ContextVar("zoo.nn.part", default=None)


@contextmanager
def of(start: int, stop: int) -> Iterator[None]:
    """Within the block, networks are given the images `start` to `stop` (exclusive) of their batch alone."""
    token = _SHOWN.set(slice(start, stop))
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown() -> slice | None:
    """Those images; None where networks are given all."""
    return _SHOWN.get()
