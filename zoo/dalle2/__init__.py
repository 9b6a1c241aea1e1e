"""DALL-E 2 (arXiv 2204.06125): a prior makes a CLIP image embedding, a U-Net decodes it, and others enlarge it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.adm import AdmUNet, AdmUNetConfig
    from zoo.dalle2.autoregressive_prior import (
        AutoregressiveConfig,
        AutoregressivePrior,
        AutoregressivePriorConfig,
        AutoregressiveTransformer,
    )
    from zoo.dalle2.configs import decoder_config_from_diffusers, upsampler_config_from_diffusers
    from zoo.dalle2.decoder import UnclipConfig, UnclipDecoder, UnclipNetwork, UnclipNetworkConfig
    from zoo.dalle2.edit import Inversion, interpolate, invert, regenerate, text_diff, variations
    from zoo.dalle2.one_step_prior import OneStepPrior, OneStepPriorConfig
    from zoo.dalle2.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig, PriorTransformer
    from zoo.dalle2.prior_keys import (
        prior_config_from_diffusers,
        prior_config_to_diffusers,
        prior_from_diffusers,
        prior_to_diffusers,
    )
    from zoo.dalle2.projection import ImageProjection
    from zoo.dalle2.quantiser import EmbeddingQuantiser

# Name: the module it lives in, imported when the name is first used.
_EXPORTS = {
    "AdmUNet": "zoo.adm",
    "AdmUNetConfig": "zoo.adm",
    "AutoregressiveConfig": "zoo.dalle2.autoregressive_prior",
    "AutoregressivePrior": "zoo.dalle2.autoregressive_prior",
    "AutoregressivePriorConfig": "zoo.dalle2.autoregressive_prior",
    "AutoregressiveTransformer": "zoo.dalle2.autoregressive_prior",
    "DiffusionPrior": "zoo.dalle2.prior",
    "DiffusionPriorConfig": "zoo.dalle2.prior",
    "EmbeddingQuantiser": "zoo.dalle2.quantiser",
    "ImageProjection": "zoo.dalle2.projection",
    "Inversion": "zoo.dalle2.edit",
    "OneStepPrior": "zoo.dalle2.one_step_prior",
    "OneStepPriorConfig": "zoo.dalle2.one_step_prior",
    "PriorConfig": "zoo.dalle2.prior",
    "PriorTransformer": "zoo.dalle2.prior",
    "UnclipConfig": "zoo.dalle2.decoder",
    "UnclipDecoder": "zoo.dalle2.decoder",
    "UnclipNetwork": "zoo.dalle2.decoder",
    "UnclipNetworkConfig": "zoo.dalle2.decoder",
    "decoder_config_from_diffusers": "zoo.dalle2.configs",
    "interpolate": "zoo.dalle2.edit",
    "invert": "zoo.dalle2.edit",
    "prior_config_from_diffusers": "zoo.dalle2.prior_keys",
    "prior_config_to_diffusers": "zoo.dalle2.prior_keys",
    "prior_from_diffusers": "zoo.dalle2.prior_keys",
    "prior_to_diffusers": "zoo.dalle2.prior_keys",
    "regenerate": "zoo.dalle2.edit",
    "text_diff": "zoo.dalle2.edit",
    "upsampler_config_from_diffusers": "zoo.dalle2.configs",
    "variations": "zoo.dalle2.edit",
}

__all__ = [
    "AdmUNet",
    "AdmUNetConfig",
    "AutoregressiveConfig",
    "AutoregressivePrior",
    "AutoregressivePriorConfig",
    "AutoregressiveTransformer",
    "DiffusionPrior",
    "DiffusionPriorConfig",
    "EmbeddingQuantiser",
    "ImageProjection",
    "Inversion",
    "OneStepPrior",
    "OneStepPriorConfig",
    "PriorConfig",
    "PriorTransformer",
    "UnclipConfig",
    "UnclipDecoder",
    "UnclipNetwork",
    "UnclipNetworkConfig",
    "decoder_config_from_diffusers",
    "interpolate",
    "invert",
    "prior_config_from_diffusers",
    "prior_config_to_diffusers",
    "prior_from_diffusers",
    "prior_to_diffusers",
    "regenerate",
    "text_diff",
    "upsampler_config_from_diffusers",
    "variations",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'zoo.dalle2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
