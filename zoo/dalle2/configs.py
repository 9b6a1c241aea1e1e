"""The shapes of DALL-E 2's decoder and upsamplers: the paper's, and those of Karlo's configs.

python -m zoo.dalle2.configs        how many parameters the paper's have, by component
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.adm import AdmUNetConfig
from zoo.adm_options import config_to_diffusers, plain_config_from_diffusers, text_config_from_diffusers
from zoo.adm_size import parameter_table
from zoo.dalle2.projection import ImageProjection, ImageProjectionConfig
from zoo.options import Options

# arXiv 2204.06125, table 3. The decoder learns its variance; its text comes from a Transformer trained with it.
DECODER_64 = AdmUNetConfig(
    out_channels=6,
    channels=(512, 1024, 1536, 2048),
    blocks_per_level=3,
    attention=(False, True, True, True),
    head_width=64,
    context_width=2048,
    vector=True,
    dropout=0.1,
)
UPSAMPLER_256 = AdmUNetConfig(
    in_channels=6,
    channels=(320, 640, 960, 1280),
    blocks_per_level=3,
    attention=(False,) * 4,
    dropout=0.1,
)
UPSAMPLER_1024 = AdmUNetConfig(
    in_channels=6,
    channels=(192, 192, 384, 384, 768, 768),
    blocks_per_level=2,
    attention=(False,) * 6,
)
PROJECTION = ImageProjectionConfig(embedding_width=1024, context_width=2048, time_width=2048, text_channels=2048)
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 2048, 24, 32  # the decoder's own text Transformer
PUBLISHED = {"decoder": 3_500_000_000, "upsampler 256": 700_000_000, "upsampler 1024": 300_000_000}  # parameters


def decoder_config_from_diffusers(options: Options) -> AdmUNetConfig:
    """The config of Karlo's decoder (UNet2DConditionModel). Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    return text_config_from_diffusers(options, "Karlo's decoder", ("identity",))


def upsampler_config_from_diffusers(options: Options) -> AdmUNetConfig:
    """The config of one of Karlo's upsamplers (UNet2DModel). Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    return plain_config_from_diffusers(options, "Karlo's upsampler")


def unet_config_to_diffusers(config: AdmUNetConfig) -> dict[str, object]:
    """The options of a diffusers UNet2DConditionModel (decoder) or UNet2DModel (upsampler); a ValueError if none is."""
    return config_to_diffusers(config)


def projection_config_from_diffusers(options: Options) -> ImageProjectionConfig:
    """The config of Karlo's UnCLIPTextProjModel.

    Raises:
        ValueError: an option is unknown or missing.
    """
    options = {name: value for name, value in options.items() if not name.startswith("_")}
    known = {"clip_extra_context_tokens", "clip_embeddings_dim", "time_embed_dim", "cross_attention_dim"}
    needed = {"time_embed_dim", "cross_attention_dim"}
    if options.keys() - known or needed - options.keys():
        raise ValueError(f"the projection has options {sorted(options)}: supported are {sorted(known)}")
    width = options.get("clip_embeddings_dim", 768)
    return ImageProjectionConfig.model_validate(
        {
            "embedding_width": width,
            "context_width": width,
            "time_width": options["time_embed_dim"],
            "text_channels": options["cross_attention_dim"],
            "tokens": options.get("clip_extra_context_tokens", 4),
        }
    )


def sizes() -> str:
    """The paper's three networks, counted by component; the upsamplers also without scale and shift, as Karlo's."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(TEXT_WIDTH, TEXT_HEADS, 4 * TEXT_WIDTH)
        beside = {
            "text Transformer, no embeddings": TEXT_LAYERS * _count(layer),
            "projection of CLIP embeddings": _count(ImageProjection(PROJECTION)),
        }
    tables = [parameter_table("DALL-E 2 decoder 64", DECODER_64, PUBLISHED["decoder"], beside=beside)]
    for name, config in (("upsampler 256", UPSAMPLER_256), ("upsampler 1024", UPSAMPLER_1024)):
        added = {"time added, not scale and shift": config.model_copy(update={"scale_shift": False})}
        tables.append(parameter_table(f"DALL-E 2 {name}", config, PUBLISHED[name], variants=added))
    return "\n\n".join(tables)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    print(sizes())
