"""The original layout of Stable Diffusion 1 and 2: one file with everything, under CompVis' and Stability's names.

    model.diffusion_model.*                     the U-Net
    first_stage_model.*                         the autoencoder
    cond_stage_model.transformer.*              the text tower of Stable Diffusion 1, in the transformers layout
    cond_stage_model.model.*                    that of Stable Diffusion 2, in the open_clip layout

The file holds no configs: they are read off the tensors' shapes, by the rules below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.keys import PROJECTIONS, KeyTable, Pairs, inside, rename, same
from zoo.stable_diffusion.keys import TRANSFORMER
from zoo.stable_diffusion.unet import UNetConfig
from zoo.stable_diffusion.vae import VAEConfig

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
TRANSFORMERS_TEXT, OPEN_CLIP_TEXT = f"{TEXT}transformer.", f"{TEXT}model."

# What such files hold beside the three networks, and why it may be left out.
IGNORED = {
    r"model_ema\..*": "the moving average of the weights, of which the U-Net's own entries are the copy that is used",
    r"(alphas|sqrt_\w*alphas|log_one_minus_alphas|sqrt_recipm1_alphas)_cumprod(_prev)?": "the schedule, known by name",
    r"betas|posterior_\w+|ddim_\w+|logvar|lvlb_weights": "the same",
    r"cond_stage_model\.(transformer\.)?(text_model\.)?embeddings\.position_ids": "0, 1, 2 ...",
    r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)": "what the text tower adds for CLIP's own use",
    r"first_stage_model\.(loss|discriminator)\..*": "what the autoencoder was trained against",
    r"global_step|epoch|scale_factor": "notes of the training",
}
OPEN_CLIP_LEFT_OUT = 1  # Stable Diffusion 2 takes the layer before the last: the last block is stored but never run

RESIDUAL: Pairs = [
    *[("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time", "emb_layers.1")],
    *[("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("shortcut", "skip_connection")],
]
VAE_RESIDUAL: Pairs = [*same("norm1", "conv1", "norm2", "conv2"), ("shortcut", "nin_shortcut")]
VAE_ATTENTION: Pairs = [
    ("norm", "norm"),
    *(
        (f"attention.{ours}", theirs)
        for (ours, _), theirs in zip(PROJECTIONS, ("q", "k", "v", "proj_out"), strict=True)
    ),
]


def unet_table(config: UNetConfig) -> KeyTable:
    """Names of a U-Net's parameters: here the blocks of all levels are numbered in one row."""
    last = len(config.channels) - 1
    pairs: Pairs = [
        ("stem", "input_blocks.0.0"),
        *[("time.first", "time_embed.0"), ("time.second", "time_embed.2")],
        *[("vector.first", "label_emb.0.0"), ("vector.second", "label_emb.0.2")],
        *inside("middle.first", "middle_block.0", RESIDUAL),
        *inside("middle.transformer", "middle_block.1", TRANSFORMER),
        *inside("middle.second", "middle_block.2", RESIDUAL),
        *[("norm", "out.0"), ("head", "out.2")],
    ]
    place = 1
    for level in range(last + 1):
        for block in range(config.at(config.blocks_per_level, level)):
            pairs += inside(f"down.{level}.blocks.{block}", f"input_blocks.{place}.0", RESIDUAL)
            pairs += inside(f"down.{level}.transformers.{block}", f"input_blocks.{place}.1", TRANSFORMER)
            place += 1
        if level < last:
            pairs.append((f"down.{level}.resample.conv", f"input_blocks.{place}.0.op"))
            place += 1
    place = 0
    for up, level in enumerate(reversed(range(last + 1))):
        for block in range(config.at(config.blocks_per_level, level) + 1):
            pairs += inside(f"up.{up}.blocks.{block}", f"output_blocks.{place}.0", RESIDUAL)
            pairs += inside(f"up.{up}.transformers.{block}", f"output_blocks.{place}.1", TRANSFORMER)
            place += 1
        after = 2 if config.attention[level] else 1
        pairs.append((f"up.{up}.resample.conv", f"output_blocks.{place - 1}.{after}.conv"))
    return KeyTable(pairs)


def vae_table(config: VAEConfig) -> KeyTable:
    """Names of an autoencoder's parameters: here the decoder's levels are numbered from the finest."""
    half: Pairs = [
        ("stem", "conv_in"),
        *inside("middle.first", "mid.block_1", VAE_RESIDUAL),
        *inside("middle.attention", "mid.attn_1", VAE_ATTENTION),
        *inside("middle.second", "mid.block_2", VAE_RESIDUAL),
        *[("norm", "norm_out"), ("head", "conv_out")],
    ]
    pairs: Pairs = [*inside("encoder", "encoder", half), *inside("decoder", "decoder", half)]
    pairs += inside("encoder.levels.{}.blocks.{}", "encoder.down.{}.block.{}", VAE_RESIDUAL)
    pairs += [("encoder.levels.{}.resample.conv", "encoder.down.{}.downsample.conv")]
    for ours, theirs in enumerate(reversed(range(len(config.channels)))):
        pairs += inside(f"decoder.levels.{ours}.blocks.{{}}", f"decoder.up.{theirs}.block.{{}}", VAE_RESIDUAL)
        pairs.append((f"decoder.levels.{ours}.resample.conv", f"decoder.up.{theirs}.upsample.conv"))
    return KeyTable([*pairs, *same("quant_conv", "post_quant_conv")])


def unet_from_original(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The tensors of an original U-Net, named without their prefix, under our names."""
    return rename(state, [unet_table(config).ours], "Stable Diffusion U-Net")


def unet_to_original(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Our U-Net's tensors under the original names, without the prefix."""
    return rename(state, [unet_table(config).theirs], "Stable Diffusion U-Net")


def vae_from_original(state: Mapping[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """The tensors of an original autoencoder, named without their prefix, under our names."""
    renamed = rename(state, [vae_table(config).ours], "Stable Diffusion VAE")
    return {k: v.flatten(1) if ".attention.attention." in k and v.ndim == 4 else v for k, v in renamed.items()}


def vae_to_original(state: Mapping[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """Our autoencoder's tensors under the original names, without the prefix; its projections as 1x1 convolutions."""
    convolved = {k: v[..., None, None] if ".attention.attention." in k and v.ndim == 2 else v for k, v in state.items()}
    return rename(convolved, [vae_table(config).theirs], "Stable Diffusion VAE")


def text_from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip text tower, without the blocks that Stable Diffusion 2 never runs, in the transformers layout."""
    from zoo.clip import APART, BLOCK, FUSED, PLAIN, TOWERS

    ours = "transformer.resblocks."
    numbers = [int(m[1]) for n in state if (m := re.match(rf"{re.escape(ours)}(\d+)\.", n))]
    kept = max(numbers, default=0) + 1 - OPEN_CLIP_LEFT_OUT
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in PLAIN:
            renamed[PLAIN[name]] = tensor
            continue
        match = re.fullmatch(rf"{re.escape(ours)}(\d+)\.(.*)", name)
        if match is None:
            raise ValueError(f"{name} is no parameter of an open_clip text tower")
        if int(match[1]) >= kept:
            continue
        block = f"{TOWERS[ours]}{match[1]}."
        module, _, kind = match[2].rpartition(".")
        if match[2].startswith(FUSED):
            kind = match[2].removeprefix(FUSED)
            parts = zip(APART, tensor.chunk(3), strict=True)
            renamed |= {f"{block}{part}.{kind}": piece for part, piece in parts}
        elif module in BLOCK:
            renamed[f"{block}{BLOCK[module]}.{kind}"] = tensor
        else:
            raise ValueError(f"{name} is no parameter of an open_clip text tower")
    return renamed


def split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A whole file's tensors by their network: prefix -> names without it.

    Raises:
        ValueError: a network is not there, or there is something that belongs to none of them.
    """
    found: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (UNET, VAE, TRANSFORMERS_TEXT, OPEN_CLIP_TEXT)}
    strangers = []
    for name, tensor in state.items():
        if any(re.fullmatch(pattern, name) for pattern in IGNORED):
            continue
        prefix = next((prefix for prefix in found if name.startswith(prefix)), None)
        if prefix is None:
            strangers.append(name)
        else:
            found[prefix][name.removeprefix(prefix)] = tensor
    if strangers:
        raise ValueError(
            f"{len(strangers)} tensors belong to no part of Stable Diffusion: {', '.join(sorted(strangers)[:20])}"
        )
    missing = [prefix for prefix in (UNET, VAE) if not found[prefix]]
    if bool(found[TRANSFORMERS_TEXT]) == bool(found[OPEN_CLIP_TEXT]):
        missing.append(f"{TRANSFORMERS_TEXT} or {OPEN_CLIP_TEXT} (one of them)")
    if missing:
        raise ValueError(f"no Stable Diffusion: nothing is called {', '.join(missing)}")
    return found


def unet_config(state: Mapping[str, Tensor]) -> UNetConfig:
    """The shape of an original U-Net, read off its tensors.

    What shapes do not tell follows the two releases: 8 heads where the transformers are framed by convolutions (1.x),
    heads 64 wide where by linear layers (2.x).

    Raises:
        ValueError: these are no tensors of such a U-Net.
    """
    levels: list[list[tuple[int, int]]] = [[]]  # per level, its blocks: (channels, depth of the transformer)
    for place in range(1, len(state)):
        inner = f"input_blocks.{place}."
        if f"{inner}0.op.weight" in state:
            levels.append([])
        elif f"{inner}0.in_layers.2.weight" in state:
            depths = {m[1] for n in state if (m := re.match(rf"{re.escape(inner)}1\.transformer_blocks\.(\d+)\.", n))}
            levels[-1].append((len(state[f"{inner}0.in_layers.2.weight"]), len(depths)))
        else:
            break
    try:
        if not all(levels) or any(len(set(level)) > 1 for level in levels):
            raise KeyError("input_blocks")
        linear = state["middle_block.1.proj_in.weight"].ndim == 2
        middle = {m[1] for n in state if (m := re.match(r"middle_block\.1\.transformer_blocks\.(\d+)\.", n))}
        stem, head = state["input_blocks.0.0.weight"], state["out.2.weight"]
        vector = state.get("label_emb.0.0.weight")
        return UNetConfig(
            in_channels=stem.shape[1],
            out_channels=head.shape[0],
            channels=tuple(level[0][0] for level in levels),
            blocks_per_level=tuple(len(level) for level in levels),
            attention=tuple(level[0][1] > 0 for level in levels),
            depth=tuple(level[0][1] or len(middle) for level in levels),
            heads=8,
            head_width=64 if linear else None,
            context_width=state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
            linear_projection=linear,
            upcast_attention=linear,
            vector_width=None if vector is None else vector.shape[1],
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"these tensors make no Stable Diffusion U-Net: {error} is missing or odd") from error


def vae_config(state: Mapping[str, Tensor]) -> VAEConfig:
    """The shape of an original autoencoder, read off its tensors.

    Raises:
        ValueError: these are no tensors of such an autoencoder.
    """
    channels: list[int] = []
    blocks: set[int] = set()
    while (first := state.get(f"encoder.down.{len(channels)}.block.0.conv1.weight")) is not None:
        level = {m[1] for n in state if (m := re.match(rf"encoder\.down\.{len(channels)}\.block\.(\d+)\.", n))}
        channels.append(len(first))
        blocks.add(len(level))
    try:
        if len(blocks) != 1:
            raise KeyError("encoder.down")
        return VAEConfig(
            in_channels=state["encoder.conv_in.weight"].shape[1],
            out_channels=state["decoder.conv_out.weight"].shape[0],
            latent_channels=state["decoder.conv_in.weight"].shape[1],
            channels=tuple(channels),
            blocks_per_level=blocks.pop(),
            middle_attention="encoder.mid.attn_1.q.weight" in state,
            quant_conv="quant_conv.weight" in state,
            post_quant_conv="post_quant_conv.weight" in state,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"these tensors make no Stable Diffusion VAE: {error} is missing or odd") from error


def text_options(state: Mapping[str, Tensor], *, open_clip: bool) -> dict[str, object]:
    """The config of a text tower in the transformers layout, read off its tensors; heads are 64 wide in both releases.

    Raises:
        ValueError: these are no tensors of a CLIP text tower.
    """
    try:
        embedding = state["text_model.embeddings.token_embedding.weight"]
        numbers = [int(m[1]) for n in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", n))]
        return {
            "vocab_size": embedding.shape[0],
            "hidden_size": embedding.shape[1],
            "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": max(numbers) + 1,
            "num_attention_heads": max(1, embedding.shape[1] // 64),
            "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "hidden_act": "gelu" if open_clip else "quick_gelu",
            "layer_norm_eps": 1e-5,
        }
    except (KeyError, IndexError) as error:
        raise ValueError(f"these tensors make no CLIP text tower: {error} is missing") from error
