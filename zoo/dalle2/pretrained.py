"""The published Karlo (unCLIP, arXiv 2204.06125) as the parts of a pipeline: CLIP text tower, prior, decoder.

`load_folder` reads the diffusers layout. Karlo's scheduler is DDPM on a cosine schedule, at times spread evenly over it
with both ends, which is the sampler "ddpm" with the spacing "linspace" here. A folder for variations of pictures has no
prior: it gives text encoder and decoder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from zoo import published, tensors
from zoo.cascade import StageConfig
from zoo.dalle2.configs import (
    decoder_config_from_diffusers,
    projection_config_from_diffusers,
    upsampler_config_from_diffusers,
)
from zoo.dalle2.decoder import UnclipConfig, UnclipDecoder, UnclipNetwork, UnclipNetworkConfig
from zoo.dalle2.karlo import KarloDecoder, KarloUpsampler, LastStep
from zoo.dalle2.keys import projection_from_diffusers, unet_from_diffusers
from zoo.dalle2.prior import DiffusionPrior, DiffusionPriorConfig, PriorTransformer
from zoo.dalle2.prior_keys import prior_config_from_diffusers, prior_from_diffusers
from zoo.diffusion import published as schedulers
from zoo.interface import Sampling, TextSpec
from zoo.published import INDEX, Assembly
from zoo.text.clip import ClipTextEncoder
from zoo.text.pretrained import PublishedTokenizer

PIPELINE, VARIATIONS = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
SCHEDULER = "UnCLIPScheduler"
DECODING: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_proj": ("UnCLIPTextProjModel",),
    "decoder": ("UNet2DConditionModel",),
    "decoder_scheduler": (SCHEDULER,),
    "super_res_first": ("UNet2DModel",),
    "super_res_last": ("UNet2DModel",),
    "super_res_scheduler": (SCHEDULER,),
}
COMPONENTS = DECODING | {"prior": ("PriorTransformer",), "prior_scheduler": (SCHEDULER,)}
ASIDE = {
    "image_encoder": "the CLIP image tower, whose embeddings the caller brings",
    "feature_extractor": "its pictures' preparation",
}

# Of diffusers' pipelines.
PRIOR = Sampling(steps=25, guidance=4.0, sampler="ddpm", spacing="linspace")
DECODER = Sampling(steps=25, guidance=8.0, sampler="ddpm", spacing="linspace")
UPSAMPLER = Sampling(steps=7, sampler="ddpm", spacing="linspace")

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_folder(
    folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32, clip_skip: int = 0
) -> Assembly:
    """The pipeline of a diffusers folder, on the CPU, its weights as `dtype`.

    variant: take the files of this variant, such as "fp16", where there are any.

    Raises:
        ValueError: a file is missing, damaged or odd, or says something that is not followed here.
    """
    if clip_skip:
        raise ValueError(f"clip_skip={clip_skip}: Karlo reads the last layer of its text tower; leave it out")
    whole = published.options(folder, INDEX).get("_class_name") == PIPELINE
    published.classes(folder, (PIPELINE, VARIATIONS), COMPONENTS if whole else DECODING, {} if whole else ASIDE)
    encoder = _text_encoder(folder, variant, dtype)
    text = encoder.produces
    # Of the CLIP that the text tower belongs to; its embeddings of pictures as projected, not as unit vectors.
    space = f"{text.space}-image"
    prior = _prior(folder, text, space, variant, dtype) if whole else None
    decoder = _decoder(folder, text, space, variant, dtype)
    lacking = "it makes variations of pictures. Load a Karlo with a prior, with this as its decoder, or call its parts"
    return Assembly(folder.name, encoder, prior, decoder, PRIOR, decoder.size, lacking)


def _text_encoder(folder: Path, variant: str | None, dtype: torch.dtype) -> ClipTextEncoder:
    """The text tower, which looks at padding itself, while prior and decoder are told what it is."""
    place = folder / "text_encoder"
    said, _ = published.understood(place, "config.json", dict)
    longest = said.get("max_position_embeddings", 77)
    if not isinstance(longest, int):
        raise ValueError(f"{place / 'config.json'}: max_position_embeddings is no whole number but {longest!r}")
    words = PublishedTokenizer.load(folder / "tokenizer", "CLIPTokenizer", longest)
    return ClipTextEncoder.of(said, published.weights(place, variant), words, place, masked=True, dtype=dtype)


def _prior(folder: Path, text: TextSpec, space: str, variant: str | None, dtype: torch.dtype) -> DiffusionPrior:
    place = folder / "prior"
    _, shape = published.understood(place, "config.json", prior_config_from_diffusers)
    # Its bound is no picture's: that of estimates of embeddings, in deviations.
    said, schedule = published.understood(
        folder / "prior_scheduler",
        "scheduler_config.json",
        lambda told: schedulers.read(told | {"clip_sample": False}, SCHEDULER),
    )
    told = {
        **{"network": shape, "schedule": schedule.schedule, "text": text, "image_space": space},
        **{"prediction": schedule.prediction, "variance": schedule.variance, "candidates": 1, "unit": False},
        "clamp": said.get("clip_sample_range", 1.0) if said.get("clip_sample", True) else None,
    }
    config = _fitting(DiffusionPriorConfig, told, place)
    network = tensors.on_meta(lambda: PriorTransformer(shape))
    tensors.assign(network, published.renamed(place, variant, prior_from_diffusers), source=place, dtype=dtype)
    return DiffusionPrior.of(network, config)


def _decoder(folder: Path, text: TextSpec, space: str, variant: str | None, dtype: torch.dtype) -> UnclipDecoder:
    place = folder / "decoder"
    options, unet = published.understood(place, "config.json", decoder_config_from_diffusers)
    _, projection = published.understood(folder / "text_proj", "config.json", projection_config_from_diffusers)
    schedule, side = _schedule(folder / "decoder_scheduler"), published.side(place, options, unet.downsampling)
    shape = _fitting(UnclipNetworkConfig, {"unet": unet, "projection": projection}, place)
    told = {
        **{"network": shape, "schedule": schedule.schedule, "text": text, "image_space": space},
        **{"prediction": schedule.prediction, "variance": schedule.variance, "resolution": (side, side)},
        "sampling": replace(DECODER, threshold=schedule.threshold),
    }
    config = _fitting(UnclipConfig, told, place)
    network = tensors.on_meta(lambda: UnclipNetwork(shape))
    width = projection.embedding_width
    stored = {
        **_inside("unet", published.renamed(place, variant, unet_from_diffusers)),
        **_inside("projection", published.renamed(folder / "text_proj", variant, projection_from_diffusers)),
        **{"mean": torch.zeros(width), "std": torch.ones(width)},
    }
    tensors.assign(network, stored, source=f"{place} with {folder / 'text_proj'}", dtype=dtype)
    return KarloDecoder.of(network, config, [_upsampler(folder, side, variant, dtype)])


def _upsampler(folder: Path, side: int, variant: str | None, dtype: torch.dtype) -> KarloUpsampler:
    first, last = folder / "super_res_first", folder / "super_res_last"
    options, shape = published.understood(first, "config.json", upsampler_config_from_diffusers)
    _, other = published.understood(last, "config.json", upsampler_config_from_diffusers)
    if other != shape:
        raise ValueError(f"{first} and {last} are networks of two shapes: one is expected")
    schedule = _schedule(folder / "super_res_scheduler")
    large = published.side(first, options, shape.downsampling)
    if large % side or large == side or shape.in_channels != 6 or shape.out_channels != 3:
        raise ValueError(
            f"{first} does not enlarge the decoder's pictures: from {side} to {large} pixels, with "
            f"in_channels={shape.in_channels} and out_channels={shape.out_channels}; expected are a multiple, 6 and 3"
        )
    if schedule.variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"{folder / 'super_res_scheduler'}: {schedule.variance!r} needs a network that learned it")
    config = StageConfig(
        factor=large // side,
        schedule=schedule.schedule,
        prediction=schedule.prediction,
        variance=schedule.variance,
        sampling=replace(UPSAMPLER, threshold=schedule.threshold),
    )
    network = tensors.on_meta(lambda: LastStep(shape))
    stored = {
        **_inside("first", published.renamed(first, variant, unet_from_diffusers)),
        **_inside("last", published.renamed(last, variant, unet_from_diffusers)),
    }
    tensors.assign(network, stored, source=f"{first} with {last}", dtype=dtype)
    return KarloUpsampler(network, config)


def _schedule(place: Path) -> schedulers.Published:
    _, found = published.understood(place, "scheduler_config.json", lambda told: schedulers.read(told, SCHEDULER))
    return found


def _inside(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{inner}": tensor for inner, tensor in state.items()}


def _fitting(kind: type[ConfigT], told: dict[str, object], place: Path) -> ConfigT:
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise ValueError(f"{place} does not fit the parts around it: {error.errors()[0]['msg']}") from error
