"""Published DeepFloyd IF checkpoints as the parts of a pipeline: stage I makes small pictures, stage II enlarges them.

    zoo.load("if-l")                                64 x 64
    zoo.load("if-l", decoder="if-ii-l/decoder")     256 x 256

Each stage is a folder in the diffusers layout. That of stage II gives a decoder alone: it reads the text that stage I's
T5 has encoded, as the same frozen T5 was used to train both. What a checkpoint leaves unsaid is taken as diffusers
takes it, so that the defaults draw what its own pipelines draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError

from zoo import published, tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, StageConfig
from zoo.diffusion import published as schedulers
from zoo.diffusion.convention import SPACING
from zoo.diffusion.denoiser import Variance
from zoo.imagen.configs import adm_config_from_diffusers
from zoo.imagen.keys import adm_from_diffusers
from zoo.imagen.parts import BaseConfig, CascadeDecoder, PixelGenerator
from zoo.interface import ANY, Sampling, TextSpec
from zoo.published import INDEX, Assembly
from zoo.text import t5
from zoo.text.t5 import T5TextEncoder
from zoo.text.tokenizer import Tokenizer

STAGE_ONE = ("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline")
STAGE_TWO = (
    "IFSuperResolutionPipeline",
    "IFImg2ImgSuperResolutionPipeline",
    "IFInpaintingSuperResolutionPipeline",
)
UNET: dict[str, tuple[str, ...]] = {"unet": ("UNet2DConditionModel",), "scheduler": ()}
COMPONENTS = UNET | {"text_encoder": ("T5EncoderModel",), "tokenizer": ("T5Tokenizer", "T5TokenizerFast")}
ENLARGING = UNET | {"image_noising_scheduler": ("DDPMScheduler",)}
ASIDE = {  # what model_index.json may list beside them
    "safety_checker": "IF's own, with a head for watermarks: not read",
    "feature_extractor": "the safety checker's",
    "watermarker": "puts a mark in a corner of the finished picture: not read",
    "requires_safety_checker": "advice to whoever publishes pictures",
}
ENLARGING_ASIDE = ASIDE | {"text_encoder": "stage I's, once more", "tokenizer": "the same"}
TOKENIZERS = (Path("tokenizer") / "spiece.model", Path("text_encoder") / "spiece.model")
FACTOR = 4  # by which stage II enlarges

# Of diffusers' pipelines; the rest is said by the scheduler. `augmentation` is their noise level, 250 of 1000.
STEPS, GUIDANCE = 100, 7.0
ENLARGING_SAMPLING = Sampling(steps=50, guidance=4.0, augmentation=0.25)


def load_folder(
    folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32, clip_skip: int = 0
) -> Assembly:
    """The pipeline of a diffusers folder of stage I, or the decoder of one of stage II; on the CPU, weights as `dtype`.

    variant: take the files of this variant, such as "fp16", where there are any.

    Raises:
        ValueError: a file is missing, damaged or odd, or says something that is not followed here.
    """
    if clip_skip:
        raise ValueError(f"clip_skip={clip_skip} is for CLIP text towers; {folder} has a T5")
    if published.options(folder, INDEX).get("_class_name") in STAGE_TWO:
        return _stage_two(folder, variant, dtype)
    index = published.classes(folder, STAGE_ONE, COMPONENTS, ASIDE)
    encoder = _text_encoder(folder, variant, dtype)
    text = encoder.produces
    network, schedule, sides = _network(folder, index, variant, dtype)
    told = {
        "unet": network.config,
        "schedule": schedule.schedule,
        "text": text,
        "resolution": sides,
        "prediction": schedule.prediction,
        "variance": _variance(network.config, schedule, 3, folder),
        "convention": schedule.convention,
    }
    try:
        config = BaseConfig.model_validate(told)
    except ValidationError as error:
        raise ValueError(f"{folder / 'unet'} cannot be a generator: {error.errors()[0]['msg']}") from error
    defaults = _sampling(Sampling(steps=STEPS, guidance=GUIDANCE), schedule)
    return Assembly(folder.name, encoder, PixelGenerator.of(network, config), CascadeDecoder(), defaults, sides)


def _stage_two(folder: Path, variant: str | None, dtype: torch.dtype) -> Assembly:
    index = published.classes(folder, STAGE_TWO, ENLARGING, ENLARGING_ASIDE)
    network, schedule, sides = _network(folder, index, variant, dtype)
    _, noising = published.understood(folder / "image_noising_scheduler", "scheduler_config.json", schedulers.read)
    shape = network.config
    if shape.in_channels != 6 or not shape.augmentation or shape.context_width is None:
        raise ValueError(
            f"{folder / 'unet'} does not enlarge pictures: a network of stage II takes 6 channels "
            f"(in_channels={shape.in_channels}), the noise level (class_embed_type='timestep') and text"
        )
    config = StageConfig(
        factor=FACTOR,
        schedule=schedule.schedule,
        prediction=schedule.prediction,
        variance=_variance(shape, schedule, 3, folder),
        text=TextSpec(shape.context_width, ANY),
        augmentation_schedule=noising.schedule,
        align_corners=True,
        sampling=_sampling(ENLARGING_SAMPLING, schedule),
        convention=schedule.convention,
    )
    lacking = (
        "it is a second stage, which enlarges what a first has made. Load that one, with this as its decoder: "
        f"zoo.load('if-l', decoder='{folder}/decoder')"
    )
    decoder = CascadeDecoder([Stage(network, config)])
    return Assembly(folder.name, None, None, decoder, config.sampling, sides, lacking)


def _text_encoder(folder: Path, variant: str | None, dtype: torch.dtype) -> T5TextEncoder:
    """The T5, which is told what is padding while the networks are not, and prompts in small letters."""
    place = folder / "text_encoder"
    said, _ = published.understood(place, "config.json", dict)
    spoken = next((file for file in TOKENIZERS if published.inside(folder, file.as_posix()).is_file()), None)
    if spoken is None:
        raise ValueError(f"{folder} holds no tokenizer: {TOKENIZERS[0]} is needed")
    try:
        words = Tokenizer((folder / spoken).read_bytes(), t5.LENGTH, begin=False)
    except ValueError as error:
        raise ValueError(f"{folder / spoken}: {error}") from error
    stored = published.weights(place, variant)
    return T5TextEncoder.of(said, stored, words, place, lower=True, masked=False, dtype=dtype)


def _network(
    folder: Path, index: Mapping[str, str], variant: str | None, dtype: torch.dtype
) -> tuple[AdmUNet, schedulers.Published, tuple[int, int]]:
    """The U-Net, what its scheduler says, and the height and width of its pictures."""
    place = folder / "unet"
    said, config = published.understood(place, "config.json", adm_config_from_diffusers)
    _, schedule = published.understood(
        folder / "scheduler", "scheduler_config.json", lambda told: schedulers.read(told, index["scheduler"])
    )
    side = published.side(place, said, config.downsampling)
    network = tensors.on_meta(lambda: AdmUNet(config))
    tensors.assign(network, published.renamed(place, variant, adm_from_diffusers), source=place, dtype=dtype)
    return network, schedule, (side, side)


def _variance(config: AdmUNetConfig, schedule: schedulers.Published, channels: int, folder: Path) -> Variance:
    """Where the variance comes from: a network that learned it says it always, for those samplers that listen."""
    learned = config.out_channels == 2 * channels
    if learned and schedule.variance not in ("learned", "learned_range") and schedule.sampler != "ddpm":
        return "learned_range"
    if learned != (schedule.variance in ("learned", "learned_range")):
        raise ValueError(
            f"{folder}: out_channels={config.out_channels} of the U-Net and variance {schedule.variance!r} of the "
            f"scheduler do not fit: {2 * channels} channels go with a learned variance, {channels} with a fixed one"
        )
    return schedule.variance


def _sampling(usual: Sampling, schedule: schedulers.Published) -> Sampling:
    said = {"sampler": schedule.sampler, "threshold": schedule.threshold, "cap": schedule.cap}
    return replace(usual, spacing=SPACING, **said)  # type: ignore[arg-type]
