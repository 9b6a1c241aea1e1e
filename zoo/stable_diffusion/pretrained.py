"""Published Stable Diffusion checkpoints (1.x, 2.x, inpainting, Taiyi) as the parts of a pipeline.

`load_folder` reads the diffusers layout, `load_file` one original file. What a checkpoint leaves unsaid is taken as
diffusers takes it, so that the defaults draw what its own pipeline draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor

from zoo import published, tensors
from zoo.diffusion import published as schedulers
from zoo.diffusion.convention import SPACING
from zoo.diffusion.denoiser import Target
from zoo.interface import Sampling
from zoo.published import INDEX, Assembly
from zoo.stable_diffusion import original
from zoo.stable_diffusion.configs import unet_config_from_diffusers, vae_config_from_diffusers
from zoo.stable_diffusion.keys import unet_from_diffusers, vae_from_diffusers
from zoo.stable_diffusion.parts import GeneratorConfig, LatentGenerator, VaeDecoder
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE, VAEConfig
from zoo.text.bert import BertTextEncoder
from zoo.text.clip import ClipTextEncoder
from zoo.text.pretrained import PublishedTokenizer

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)
COMPONENTS: dict[str, tuple[str, ...]] = {  # and the classes that load, where no table of its own has them
    **{"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",)},
    **dict.fromkeys(("text_encoder", "tokenizer", "scheduler"), ()),
}
ASIDE = {  # what model_index.json may list beside them
    "safety_checker": "asked for by zoo.load(..., safety_checker='published')",
    "feature_extractor": "the safety checker's",
    "image_encoder": "of adapters that take pictures; empty in these pipelines",
    "requires_safety_checker": "advice to whoever publishes pictures",
}
STEPS, GUIDANCE = 50, 7.5  # of diffusers' pipelines
FORCED = {"steps_offset": 1, "clip_sample": False}  # which its pipelines set right in old scheduler configs
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # the one that both releases of original files were trained with
OPEN_CLIP_PADDING = "!"  # of Stable Diffusion 2: id 0

Encoder: TypeAlias = ClipTextEncoder | BertTextEncoder
TEXT_ENCODERS = {
    "CLIPTextModel": ClipTextEncoder,
    "CLIPTextModelWithProjection": ClipTextEncoder,
    "BertModel": BertTextEncoder,
}


def load_folder(
    folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32, clip_skip: int = 0
) -> Assembly:
    """The pipeline of a diffusers folder, on the CPU, its weights as `dtype`.

    variant: take the files of this variant, such as "fp16", where there are any. clip_skip: layers of a CLIP text tower
    to leave out at its end.

    Raises:
        ValueError: a file is missing, damaged or odd, or says something that is not followed here.
    """
    index = published.classes(folder, PIPELINES, COMPONENTS, ASIDE)
    encoder = _text_encoder(folder, index, variant, clip_skip, dtype)
    decoder = load_decoder(folder / "vae", variant, dtype)
    spaces = encoder.produces, decoder.needs.space

    _, unet = published.understood(folder / "unet", "config.json", unet_config_from_diffusers)
    _, schedule = published.understood(
        folder / "scheduler",
        "scheduler_config.json",
        lambda told: schedulers.read(told | FORCED | _mended(folder), str(index["scheduler"])),
    )
    stored = published.renamed(folder / "unet", variant, unet_from_diffusers)
    factor = decoder.vae.downsampling
    _, sides = published.understood(folder / "unet", "config.json", lambda told: _sides(told, factor))
    generator = _generator(unet, stored, schedule, spaces, factor, sides, folder / "unet", dtype)
    return _assembly(folder.name, encoder, generator, decoder, schedule)


def load_file(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    prediction: Target | None = None,
    tokenizer: Callable[[], Path] | None = None,
    clip_skip: int = 0,
) -> Assembly:
    """The pipeline of one original file, .safetensors or .ckpt, on the CPU, its weights as `dtype`.

    prediction: what the network predicts, where the file cannot tell: "v" for Stable Diffusion 2's 768 pixels,
    "epsilon" for its 512. tokenizer: gives the folder of CLIP's tokenizer, unless `tokenizer/` lies beside the file.

    Raises:
        ValueError: the file is damaged or no Stable Diffusion, or a question is left open.
    """
    state = tensors.read(path) if path.suffix == ".safetensors" else tensors.read_pickle(path)
    try:
        parts = original.split(state)
        open_clip = bool(parts[original.OPEN_CLIP_TEXT])
        unet, vae = original.unet_config(parts[original.UNET]), original.vae_config(parts[original.VAE])
        stored = original.unet_from_original(parts[original.UNET], unet)
        autoencoder = original.vae_from_original(parts[original.VAE], vae)
        text = original.text_from_open_clip(parts[original.OPEN_CLIP_TEXT]) if open_clip else {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    text = text or parts[original.TRANSFORMERS_TEXT]
    if "embeddings.word_embeddings.weight" in text:
        raise ValueError(f"{path} holds a BERT, whose vocabulary such a file does not tell: load its diffusers folder")
    if prediction is None and open_clip:
        raise ValueError(
            f"{path} does not say whether its network predicts noise or v: pass prediction='v' (Stable Diffusion 2 for "
            "768 pixels) or prediction='epsilon' (for 512)"
        )
    beside = path.parent / "tokenizer"
    if not beside.is_dir() and tokenizer is None:
        raise ValueError(f"{path} holds no tokenizer: put the folder tokenizer/ of {CLIP_TOKENIZER} beside it")
    spoken = beside if beside.is_dir() or tokenizer is None else tokenizer()
    options = original.text_options(text, open_clip=open_clip)
    words = PublishedTokenizer.load(spoken, "CLIPTokenizer", int(str(options["max_position_embeddings"])))
    if open_clip:
        words.tokenizer.pad_token = OPEN_CLIP_PADDING
    encoder = ClipTextEncoder.of(options, text, words, path, layer=-1 - clip_skip, dtype=dtype)
    decoder = _autoencoder(vae, autoencoder, path, dtype)
    spaces = encoder.produces, decoder.needs.space

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    kinds = {ours: theirs for theirs, ours in schedulers.PREDICTIONS.items()}
    name = "DDIMScheduler" if prediction == "v" else "PNDMScheduler"  # as the two releases were published
    said = {**betas, **FORCED, "set_alpha_to_one": False, "skip_prk_steps": True}
    schedule = schedulers.read(said | {"prediction_type": kinds[prediction or "epsilon"]}, name)
    side = 96 if prediction == "v" else 64
    sides = side * decoder.vae.downsampling, side * decoder.vae.downsampling
    generator = _generator(unet, stored, schedule, spaces, decoder.vae.downsampling, sides, path, dtype)
    return _assembly(path.stem, encoder, generator, decoder, schedule)


def _text_encoder(
    folder: Path, index: Mapping[str, object], variant: str | None, clip_skip: int, dtype: torch.dtype
) -> Encoder:
    kind = TEXT_ENCODERS.get(str(index["text_encoder"]))
    if kind is None:
        known = ", ".join(TEXT_ENCODERS)
        raise ValueError(f"the text encoder in {folder / INDEX} is a {index['text_encoder']}: supported is {known}")
    place = folder / "text_encoder"
    said, _ = published.understood(place, "config.json", dict)
    longest = said.get("max_position_embeddings", 77 if kind is ClipTextEncoder else 512)
    if not isinstance(longest, int):
        raise ValueError(f"{place / 'config.json'}: max_position_embeddings is no whole number but {longest!r}")
    words = PublishedTokenizer.load(folder / "tokenizer", str(index["tokenizer"]), longest)
    stored = published.weights(place, variant)
    if kind is ClipTextEncoder:
        return ClipTextEncoder.of(said, stored, words, place, layer=-1 - clip_skip, dtype=dtype)
    if clip_skip:
        raise ValueError(f"clip_skip={clip_skip} is for CLIP text towers; {folder} has a {index['text_encoder']}")
    return BertTextEncoder.of(said, stored, words, place, dtype=dtype)


def load_decoder(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> VaeDecoder:
    """The autoencoder of a published folder `vae/`, on the CPU, its weights as `dtype`.

    Raises:
        ValueError: a file is missing, damaged or odd.
    """
    _, config = published.understood(folder, "config.json", vae_config_from_diffusers)
    return _autoencoder(config, published.renamed(folder, variant, vae_from_diffusers), folder, dtype)


def _mended(folder: Path) -> dict[str, object]:
    """What diffusers' inpainting pipeline sets right beside `FORCED`."""
    inpaints = "Inpaint" in str(published.options(folder, INDEX)["_class_name"])
    return {"skip_prk_steps": True} if inpaints else {}


def _autoencoder(config: VAEConfig, stored: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> VaeDecoder:
    vae = tensors.on_meta(lambda: VAE(config))
    tensors.assign(vae, stored, source=source, dtype=dtype)
    found = VaeDecoder(vae)
    if dtype != torch.float32:  # which rounds nothing: the space is named by what was stored
        plain = tensors.on_meta(lambda: VAE(config))
        plain.load_state_dict(stored, assign=True)
        found.spaces = {"latents": VaeDecoder(plain).fingerprint}
    return found


def _generator(
    unet: UNetConfig,
    stored: Mapping[str, Tensor],
    schedule: schedulers.Published,
    spaces: tuple[object, str],
    factor: int,
    resolution: tuple[int, int],
    source: Path,
    dtype: torch.dtype,
) -> LatentGenerator:
    network = tensors.on_meta(lambda: UNet(unet))
    tensors.assign(network, stored, source=source, dtype=dtype)
    told = {
        "unet": unet,
        "schedule": schedule.schedule,
        "text": spaces[0],
        "latent_space": spaces[1],
        "factor": factor,
        "resolution": resolution,
        "prediction": schedule.prediction,
        "variance": schedule.variance,
        "convention": schedule.convention,
    }
    try:
        return LatentGenerator.of(network, GeneratorConfig.model_validate(told))
    except ValidationError as error:
        raise ValueError(f"{source} cannot be a generator: {error.errors()[0]['msg']}") from error


def _assembly(
    name: str, encoder: Encoder, generator: LatentGenerator, decoder: VaeDecoder, schedule: schedulers.Published
) -> Assembly:
    defaults = Sampling(
        steps=STEPS,
        sampler=schedule.sampler,
        spacing=SPACING,
        guidance=GUIDANCE,
        threshold=schedule.threshold,
        cap=schedule.cap,
    )
    return Assembly(name, encoder, generator, decoder, defaults, generator.config.resolution)


def _sides(said: Mapping[str, object], factor: int) -> tuple[int, int]:
    """The height and width in pixels that a U-Net's config names."""
    size = said.get("sample_size") or 64
    sides = [side for side in (size if isinstance(size, list) else [size, size]) if isinstance(side, int) and side > 0]
    if len(sides) != 2:
        raise ValueError(f"sample_size={size!r} of a U-Net is no size: a whole number is expected, or two")
    return sides[0] * factor, sides[1] * factor
