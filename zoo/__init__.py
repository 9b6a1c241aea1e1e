"""A zoo of text-to-image models behind one interface.

    import zoo

    pipe = zoo.load("stable-diffusion-small")
    pipe("a large pink butterfly, cartoon").save("outputs")

`import zoo` is instant: torch is imported when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.registry import card, list_models

if TYPE_CHECKING:
    from zoo.pipeline import Pipeline, Result, load

__version__ = "0.1.0"
__all__ = ["Pipeline", "Result", "card", "list_models", "load"]


def __getattr__(name: str) -> object:
    if name in ("Pipeline", "Result", "load"):
        from zoo import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
