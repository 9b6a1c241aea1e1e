"""A zoo of text-to-image models behind one interface.

    import zoo

    pipe = zoo.load("stable-diffusion-small")
    pipe("a large pink butterfly, cartoon").save("outputs")

`import zoo` is instant: torch is imported when a model is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from zoo.registry import card, list_models

if TYPE_CHECKING:
    from zoo.comparison.run import compare
    from zoo.loading import load
    from zoo.pipeline import Pipeline
    from zoo.result import Result

__version__ = "0.1.0"
__all__ = ["Pipeline", "Result", "card", "compare", "list_models", "load"]


_HOMES = {
    "Pipeline": "zoo.pipeline",
    "Result": "zoo.result",
    "compare": "zoo.comparison.run",
    "load": "zoo.loading",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
