"""DF-GAN (arXiv 2008.05865): text and noise to a picture in one pass, learned against a discriminator."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.gan.discriminator import Discriminator, DiscriminatorConfig
    from zoo.gan.generator import FusionGenerator, FusionGeneratorConfig
    from zoo.gan.parts import GanConfig, GanGenerator

# Name: the module it lives in, imported when the name is first used.
_EXPORTS = {
    "Discriminator": "zoo.gan.discriminator",
    "DiscriminatorConfig": "zoo.gan.discriminator",
    "FusionGenerator": "zoo.gan.generator",
    "FusionGeneratorConfig": "zoo.gan.generator",
    "GanConfig": "zoo.gan.parts",
    "GanGenerator": "zoo.gan.parts",
}

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "FusionGenerator",
    "FusionGeneratorConfig",
    "GanConfig",
    "GanGenerator",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'zoo.gan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
