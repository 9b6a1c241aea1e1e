"""Imagen (arXiv 2205.11487): a text-conditional U-Net over small pixels, and the networks that enlarge its images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.adm import AdmUNet, AdmUNetConfig
    from zoo.efficient_unet import EfficientUNet, EfficientUNetConfig
    from zoo.imagen.configs import adm_config_from_diffusers

# Name: the module it lives in, imported when the name is first used.
_EXPORTS = {
    "AdmUNet": "zoo.adm",
    "AdmUNetConfig": "zoo.adm",
    "EfficientUNet": "zoo.efficient_unet",
    "EfficientUNetConfig": "zoo.efficient_unet",
    "adm_config_from_diffusers": "zoo.imagen.configs",
}

__all__ = [
    "AdmUNet",
    "AdmUNetConfig",
    "EfficientUNet",
    "EfficientUNetConfig",
    "adm_config_from_diffusers",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'zoo.imagen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
