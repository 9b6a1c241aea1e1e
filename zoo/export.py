"""Models of the zoo for others to use: a diffusers folder, an original single file, a repository on the hub.

    to_diffusers(zoo.load("stable-diffusion-small"), "exported")
    StableDiffusionPipeline.from_pretrained("exported")  # draws the same pictures

What diffusers has no place for stays behind: how the model is called by default is told in the README, the interval of
guidance as what is otherwise there. Adapters that are not merged are files of their own, which diffusers reads too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from zoo import hub, tensors
from zoo.atomic import replacing
from zoo.diffusion import published
from zoo.diffusion.convention import SPACING
from zoo.interface import Sampling
from zoo.pipeline import Pipeline
from zoo.published import INDEX
from zoo.stable_diffusion import original
from zoo.stable_diffusion.configs import unet_config_to_diffusers, vae_config_to_diffusers
from zoo.stable_diffusion.keys import unet_to_diffusers, vae_to_diffusers
from zoo.stable_diffusion.parts import GeneratorConfig, LatentGenerator, VaeDecoder
from zoo.stable_diffusion.unet import UNet
from zoo.text.bert import BertTextEncoder
from zoo.text.clip import PROJECTION, ClipTextEncoder
from zoo.text.export import as_transformers
from zoo.text.pretrained import PublishedTokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.35.0"  # of diffusers, whose layout this is
TARGETS = ("diffusers", "single-file")
INPAINTING = "StableDiffusionInpaintPipeline"

# Our sampler: the scheduler that draws the same, and its settings.
SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_1": ("UniPCMultistepScheduler", {"solver_order": 1}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "plms_v": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
}
PREDICTIONS = {ours: theirs for theirs, ours in published.PREDICTIONS.items()}
CLIPPERS = ("DDIMScheduler", "DDPMScheduler")
THRESHOLDERS = (*CLIPPERS, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
UNBOUNDED = 1e6  # a greatest value that no clean estimate reaches


def to_diffusers(pipeline: Pipeline, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write a Stable Diffusion of the zoo as a folder that `StableDiffusionPipeline.from_pretrained` reads.

    Tensors are stored as `dtype`, by default as they are. The folder appears when it is whole.

    Raises:
        ValueError: the folder is there already and not empty, or the model has something that diffusers cannot hold.
    """
    target = Path(folder)
    generator, decoder = _parts(pipeline)
    config = generator.config
    if config.classes:
        raise ValueError(f"{pipeline.name} takes painted maps, which diffusers' pipelines have no place for")
    scheduler = scheduler_config(config, pipeline.defaults)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: give a folder that is new or empty")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as making:
        words = _write_text(making, pipeline.text_encoder, dtype)
        sides = [side // config.factor for side in config.resolution]
        size: object = sides[0] if sides[0] == sides[1] else sides
        unet, vae = cast(UNet, generator.denoiser.network), decoder.vae
        _write_part(making / "unet", {**unet_config_to_diffusers(unet.config), "sample_size": size})
        tensors.write(making / "unet" / WEIGHTS, unet_to_diffusers(unet.state_dict()), dtype)
        _write_part(making / "vae", {**vae_config_to_diffusers(vae.config), "sample_size": max(config.resolution)})
        tensors.write(making / "vae" / WEIGHTS, vae_to_diffusers(vae.state_dict()), dtype)
        _write_json(making / "scheduler" / "scheduler_config.json", scheduler)
        kind = INPAINTING if generator.inpaints else "StableDiffusionPipeline"
        parts: dict[str, object] = {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            **words,
        }
        parts |= {"scheduler": ["diffusers", scheduler["_class_name"]]}
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
        told = {"_class_name": kind, "_diffusers_version": VERSION, **parts, "requires_safety_checker": False}
        _write_json(making / INDEX, told)
        (making / "README.md").write_text(_readme(pipeline, kind), "utf-8")
        if target.is_dir():
            target.rmdir()  # fails if somebody has put something there meanwhile
    return target


def to_single_file(pipeline: Pipeline, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write U-Net and autoencoder as one file in the original layout; the text encoder goes without.

    Raises:
        ValueError: the path does not end in .safetensors, or the model is no Stable Diffusion.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target} is to be a file of tensors: let its name end in .safetensors")
    generator, decoder = _parts(pipeline)
    unet, vae = cast(UNet, generator.denoiser.network), decoder.vae
    named = {original.UNET + n: t for n, t in original.unet_to_original(unet.state_dict(), unet.config).items()}
    named |= {original.VAE + n: t for n, t in original.vae_to_original(vae.state_dict(), vae.config).items()}
    shape = {"unet": unet.config.model_dump_json(), "vae": vae.config.model_dump_json()}
    tensors.write(target, named, dtype, metadata={"format": "pt", "prediction": generator.config.prediction, **shape})
    return target


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    api: Any = None,
) -> str:
    """Upload an exported folder, or a model folder, to a hub repository `owner/name`; returns its address.

    api: a `huggingface_hub.HfApi`, by default one with the account that is logged in.

    Raises:
        ValueError: there is no such folder, or the hub refuses; the reason is told.
    """
    from huggingface_hub import HfApi

    source = Path(folder)
    if not any((source / name).is_file() for name in (INDEX, "config.json")):
        raise ValueError(f"{source} is no model folder to upload: it has neither {INDEX} nor config.json")
    hub_api = HfApi() if api is None else api

    def upload() -> str:
        address = hub_api.create_repo(repository, private=private, exist_ok=True)
        hub_api.upload_folder(
            repo_id=repository,
            folder_path=str(source),
            revision=revision,
            commit_message=f"Upload {source.name}",
            ignore_patterns=[".*", "*.tmp"],
        )
        return str(address)

    return hub.asked(repository, upload, otherwise="cannot be uploaded to")


def scheduler_config(config: GeneratorConfig, defaults: Sampling) -> dict[str, object]:
    """The diffusers scheduler that walks as `defaults` say.

    Raises:
        ValueError: a sampler, a spacing or a threshold that diffusers has none like.
    """
    if defaults.sampler not in SCHEDULERS:
        raise ValueError(f"diffusers has no scheduler like {defaults.sampler!r}; it has {', '.join(SCHEDULERS)}")
    kind, settings = SCHEDULERS[defaults.sampler]
    told: dict[str, object] = {"_class_name": kind, "_diffusers_version": VERSION}
    told |= {**config.schedule.to_diffusers(), "prediction_type": PREDICTIONS[config.prediction], **settings}
    told |= _bounds(kind, defaults)
    if defaults.spacing == SPACING and config.convention is not None:
        own = config.convention
        told |= {"timestep_spacing": own.spread, "steps_offset": own.offset}
        told |= {} if own.levels == "spaced" else {f"use_{own.levels}_sigmas": True}
        told |= {} if own.to_data else {"set_alpha_to_one": False, "final_sigmas_type": "sigma_min"}
        told |= {} if own.least_lambda is None else {"lambda_min_clipped": own.least_lambda}
        return told
    spread, _, offset = defaults.spacing.partition("+")  # with a factor, "trailing*2", it is none of diffusers'
    if spread == "karras":
        return told | {"use_karras_sigmas": True, "timestep_spacing": "linspace", "steps_offset": 1}
    if spread not in ("leading", "linspace", "trailing"):
        raise ValueError(
            f"diffusers has no spacing like {defaults.spacing!r}: it has leading, linspace, trailing, karras"
        )
    # Its pipelines take every other offset for an old mistake, and leading alone heeds it.
    return told | {"timestep_spacing": spread, "steps_offset": int(offset or 0) if spread == "leading" else 1}


def _bounds(kind: str, defaults: Sampling) -> dict[str, object]:
    """How a scheduler is told to keep the clean estimate in bounds."""
    if defaults.threshold is None:
        return {}
    if defaults.threshold == 1 and kind in CLIPPERS:
        return {"clip_sample": True, "clip_sample_range": 1.0}
    if kind not in THRESHOLDERS:
        raise ValueError(f"diffusers' {kind} bounds no clean estimates: leave threshold at None, or take ddim")
    if defaults.threshold == 1:  # whatever the quantile, nothing above 1 is let through
        return {"thresholding": True, "sample_max_value": 1.0}
    most = UNBOUNDED if defaults.cap is None else defaults.cap
    return {"thresholding": True, "dynamic_thresholding_ratio": defaults.threshold, "sample_max_value": most}


def _parts(pipeline: Pipeline) -> tuple[LatentGenerator, VaeDecoder]:
    generator, decoder = pipeline.generator, pipeline.decoder
    if not isinstance(generator, LatentGenerator) or not isinstance(decoder, VaeDecoder):
        raise ValueError(
            f"{pipeline.name} is made of {type(generator).__name__} and {type(decoder).__name__}: what can be exported "
            "is Stable Diffusion, a LatentGenerator and a VaeDecoder"
        )
    return generator, decoder


def _write_text(folder: Path, encoder: object, dtype: torch.dtype | None) -> dict[str, object]:
    """Text encoder and tokenizer as transformers reads them; returns their classes."""
    if not isinstance(encoder, (ClipTextEncoder, BertTextEncoder)):
        raise ValueError(f"a {type(encoder).__name__} cannot be exported: a ClipTextEncoder or BertTextEncoder can")
    tokenizer = encoder.tokenizer
    words = tokenizer.tokenizer if isinstance(tokenizer, PublishedTokenizer) else as_transformers(tokenizer)
    words.save_pretrained(folder / "tokenizer")
    kind = "BertModel"
    said = encoder.model.config.to_dict()
    state = encoder.model.state_dict()
    if isinstance(encoder, ClipTextEncoder):
        kind = "CLIPTextModel"
        # What transformers gives is the last layer's: those after the layer that is read are left out.
        kept = said["num_hidden_layers"] + 1 + encoder.layer
        layers = cast(nn.ModuleList, encoder.model.text_model.encoder.layers)
        unread = tuple(f"text_model.encoder.layers.{i}." for i in range(kept, len(layers)))
        state = {n: t for n, t in state.items() if n != PROJECTION and not n.startswith(unread)}
        said |= {"num_hidden_layers": kept}
    told = {**said, "architectures": [kind], "dtype": str(dtype or next(encoder.parameters()).dtype).split(".")[-1]}
    _write_json(folder / "text_encoder" / "config.json", told)
    tensors.write(folder / "text_encoder" / "model.safetensors", state, dtype)
    name = type(words).__name__
    published = {"TokenizersBackend": "PreTrainedTokenizerFast"}.get(name, name)
    return {"text_encoder": ["transformers", kind], "tokenizer": ["transformers", published]}


def _write_part(folder: Path, config: Mapping[str, object]) -> None:
    _write_json(folder / "config.json", {**config, "_diffusers_version": VERSION})


def _write_json(path: Path, said: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n", "utf-8")


def _readme(pipeline: Pipeline, kind: str) -> str:
    usual = pipeline.defaults
    given = {"num_inference_steps": usual.steps, "guidance_scale": f"{usual.guidance:g}"}
    given |= {"guidance_rescale": f"{usual.rescale:g}"} if usual.rescale and kind != INPAINTING else {}
    given |= {"eta": f"{usual.eta:g}"} if usual.eta else {}
    given |= {"image": "picture", "mask_image": "mask"} if kind == INPAINTING else {}
    lines = [
        f"# {pipeline.name}",
        "",
        "```python",
        f"from diffusers import {kind}",
        "",
        f'pipe = {kind}.from_pretrained("this folder")',
        f'pipe("a prompt", {", ".join(f"{name}={value}" for name, value in given.items())}).images[0]',
        "```",
    ]
    if kind == INPAINTING:
        lines += ["", "`picture` and `mask` are PIL images of one size; what is white in the mask is drawn anew."]
    if usual.interval is not None:
        low, high = usual.interval
        lines += [
            "",
            f"In the zoo, guidance acts where sigma / alpha lies in ({low:g}, {high:g}]; here it acts throughout.",
        ]
    return "\n".join(lines) + "\n"
