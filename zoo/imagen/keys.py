"""Parameter names of the base U-Net: ours, and those of DeepFloyd IF in the diffusers layout (see `zoo.keys`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.keys import ADM, MLP, KeyTable, Pairs, inside, rename

POOLING: Pairs = [
    ("norm_in", "norm1"),
    ("query", "pool.positional_embedding"),
    ("to_q", "pool.q_proj"),
    ("to_k", "pool.k_proj"),
    ("to_v", "pool.v_proj"),
    ("to_out", "proj"),
    ("norm_out", "norm2"),
]
IF_PAIRS: Pairs = [
    *ADM,
    ("text", "encoder_hid_proj"),
    *inside("pool", "add_embedding", POOLING),
    *inside("augmentation", "class_embedding", MLP),
]
IF = KeyTable(IF_PAIRS)


def adm_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of DeepFloyd IF's UNet2DConditionModel under our names; a ValueError lists names it cannot place."""
    return rename(state, [IF.ours], "DeepFloyd IF U-Net")


def adm_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our U-Net's tensors under the names of diffusers; a ValueError lists names it cannot place."""
    return rename(state, [IF.theirs], "DeepFloyd IF U-Net")
