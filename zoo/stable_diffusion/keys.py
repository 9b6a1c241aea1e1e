"""Parameter names: ours, and those of published checkpoints in the diffusers layout (see `zoo.keys`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.keys import MLP, PROJECTIONS, RESIDUAL, KeyTable, Pairs, inside, rename, same

TRANSFORMER: Pairs = [
    *same("norm", "proj_in", "proj_out"),
    *inside("blocks.{}", "transformer_blocks.{}", same("norm1", "norm2", "norm3")),
    *inside("blocks.{}.attention", "transformer_blocks.{}.attn1", PROJECTIONS),
    *inside("blocks.{}.cross_attention", "transformer_blocks.{}.attn2", PROJECTIONS),
    ("blocks.{}.feed_forward.widen", "transformer_blocks.{}.ff.net.0.proj"),
    ("blocks.{}.feed_forward.out", "transformer_blocks.{}.ff.net.2"),
]
UNET_PAIRS: Pairs = [
    ("stem", "conv_in"),
    *inside("time", "time_embedding", MLP),
    ("guidance.project", "time_embedding.cond_proj"),
    *inside("vector", "class_embedding", MLP),
    ("augmentation", "class_embedding"),
    *inside("down.{}.blocks.{}", "down_blocks.{}.resnets.{}", RESIDUAL),
    *inside("down.{}.transformers.{}", "down_blocks.{}.attentions.{}", TRANSFORMER),
    ("down.{}.resample.conv", "down_blocks.{}.downsamplers.0.conv"),
    *inside("middle.first", "mid_block.resnets.0", RESIDUAL),
    *inside("middle.transformer", "mid_block.attentions.0", TRANSFORMER),
    *inside("middle.second", "mid_block.resnets.1", RESIDUAL),
    *inside("up.{}.blocks.{}", "up_blocks.{}.resnets.{}", RESIDUAL),
    *inside("up.{}.transformers.{}", "up_blocks.{}.attentions.{}", TRANSFORMER),
    ("up.{}.resample.conv", "up_blocks.{}.upsamplers.0.conv"),
    ("norm", "conv_norm_out"),
    ("head", "conv_out"),
]


def vae_pairs(attention: Pairs) -> Pairs:
    """The autoencoder's table, given how the modules of its middle attention are called."""
    half = [
        ("stem", "conv_in"),
        *inside("middle.first", "mid_block.resnets.0", RESIDUAL),
        *inside("middle.attention", "mid_block.attentions.0", attention),
        *inside("middle.second", "mid_block.resnets.1", RESIDUAL),
        ("norm", "conv_norm_out"),
        ("head", "conv_out"),
    ]
    return [
        *inside("encoder", "encoder", half),
        *inside("encoder.levels.{}.blocks.{}", "encoder.down_blocks.{}.resnets.{}", RESIDUAL),
        ("encoder.levels.{}.resample.conv", "encoder.down_blocks.{}.downsamplers.0.conv"),
        *same("quant_conv", "post_quant_conv"),
        *inside("decoder", "decoder", half),
        *inside("decoder.levels.{}.blocks.{}", "decoder.up_blocks.{}.resnets.{}", RESIDUAL),
        ("decoder.levels.{}.resample.conv", "decoder.up_blocks.{}.upsamplers.0.conv"),
    ]


ATTENTION: Pairs = [("norm", "group_norm"), *((f"attention.{ours}", theirs) for ours, theirs in PROJECTIONS)]
OLD_ATTENTION: Pairs = [  # as written before diffusers 0.17, and still in most published files
    ("norm", "group_norm"),
    ("attention.to_q", "query"),
    ("attention.to_k", "key"),
    ("attention.to_v", "value"),
    ("attention.to_out", "proj_attn"),
]

UNET = KeyTable(UNET_PAIRS)
VAE = KeyTable(vae_pairs(ATTENTION))
VAE_OLD = KeyTable(vae_pairs(OLD_ATTENTION))


def unet_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a diffusers UNet2DConditionModel under our names; a ValueError lists names it cannot place."""
    return rename(state, [UNET.ours], "Stable Diffusion U-Net")


def unet_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our U-Net's tensors under the names of diffusers; a ValueError lists names it cannot place."""
    return rename(state, [UNET.theirs], "Stable Diffusion U-Net")


def vae_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a diffusers AutoencoderKL under our names; a ValueError lists names it cannot place.

    Attention may be named the new way or the old; its weights may be stored as 1x1 convolutions.
    """
    renamed = rename(state, [VAE.ours, VAE_OLD.ours], "Stable Diffusion VAE")
    return {k: v.flatten(1) if ".attention.attention." in k and v.ndim == 4 else v for k, v in renamed.items()}


def vae_to_diffusers(state: Mapping[str, Tensor], *, old_attention: bool = False) -> dict[str, Tensor]:
    """Our VAE's tensors under the names of diffusers, or of diffusers before 0.17 (`old_attention`)."""
    return rename(state, [(VAE_OLD if old_attention else VAE).theirs], "Stable Diffusion VAE")
