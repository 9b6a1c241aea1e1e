"""Parameter names: ours, and those of published checkpoints in the diffusers layout.

A table is a list of pairs (our module, their module), with {} for numbers; the parameter's own name (weight, bias) is
the same on both sides. Every pair is used in both directions, so what can be loaded can be exported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Pairs = list[tuple[str, str]]


def inside(ours: str, theirs: str, pairs: Pairs) -> Pairs:
    """The pairs of a block, as they are called within that block's place in the network."""
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in pairs]


def same(*names: str) -> Pairs:
    """Modules that both sides call the same."""
    return [(name, name) for name in names]


RESIDUAL: Pairs = [*same("norm1", "conv1", "norm2", "conv2"), ("time", "time_emb_proj"), ("shortcut", "conv_shortcut")]
MLP: Pairs = [("first", "linear_1"), ("second", "linear_2")]
PROJECTIONS: Pairs = [*same("to_q", "to_k", "to_v"), ("to_out", "to_out.0")]
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


class KeyTable:
    """Renames parameters, or modules, by a list of pairs: `theirs` exports, `ours` imports."""

    def __init__(self, pairs: Pairs) -> None:
        self._rules = [(_pattern(ours), _template(theirs), _pattern(theirs), _template(ours)) for ours, theirs in pairs]

    def theirs(self, name: str) -> str | None:
        """The published name of our parameter or module; None if the table knows no such name."""
        return next((m.expand(template) for ours, template, _, _ in self._rules if (m := ours.fullmatch(name))), None)

    def ours(self, name: str) -> str | None:
        """Our name of a published parameter or module; None if the table knows no such name."""
        return next(
            (m.expand(template) for _, _, theirs, template in self._rules if (m := theirs.fullmatch(name))), None
        )


def _pattern(module: str) -> re.Pattern[str]:
    return re.compile(re.escape(module).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias|)")


def _template(module: str) -> str:
    parts = module.split("{}")
    numbered = "".join(f"{part}\\g<{i}>" for i, part in enumerate(parts[:-1], start=1))
    return f"{numbered}{parts[-1]}\\g<{len(parts)}>"


UNET = KeyTable(UNET_PAIRS)
VAE = KeyTable(vae_pairs(ATTENTION))
VAE_OLD = KeyTable(vae_pairs(OLD_ATTENTION))


def unet_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a diffusers UNet2DConditionModel under our names; a ValueError lists names it cannot place."""
    return _rename(state, [UNET.ours], "U-Net")


def unet_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our U-Net's tensors under the names of diffusers; a ValueError lists names it cannot place."""
    return _rename(state, [UNET.theirs], "U-Net")


def vae_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a diffusers AutoencoderKL under our names; a ValueError lists names it cannot place.

    Attention may be named the new way or the old; its weights may be stored as 1x1 convolutions.
    """
    renamed = _rename(state, [VAE.ours, VAE_OLD.ours], "VAE")
    return {k: v.flatten(1) if ".attention.attention." in k and v.ndim == 4 else v for k, v in renamed.items()}


def vae_to_diffusers(state: Mapping[str, Tensor], *, old_attention: bool = False) -> dict[str, Tensor]:
    """Our VAE's tensors under the names of diffusers, or of diffusers before 0.17 (`old_attention`)."""
    return _rename(state, [(VAE_OLD if old_attention else VAE).theirs], "VAE")


def _rename(
    state: Mapping[str, Tensor], readings: Sequence[Callable[[str], str | None]], part: str
) -> dict[str, Tensor]:
    """Every tensor under the first reading of its name that succeeds."""
    names = {key: next((new for read in readings if (new := read(key)) is not None), None) for key in state}
    unknown = sorted(key for key, new in names.items() if new is None)
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(names)} names are no parameters of a Stable Diffusion {part}: "
            f"{', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}"
        )
    renamed = {new: state[key] for key, new in names.items() if new is not None}
    if len(renamed) < len(names):
        raise ValueError(f"the {part}'s tensors hold the same parameter under two spellings: keep one of them")
    return renamed
