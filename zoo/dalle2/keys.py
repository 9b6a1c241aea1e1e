"""Parameter names of decoder, upsamplers and projection: ours, and Karlo's in the diffusers layout (see `zoo.keys`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.keys import ADM, KeyTable, Pairs, rename

PROJECTION_PAIRS: Pairs = [
    ("null", "learned_classifier_free_guidance_embeddings"),
    ("image_time", "clip_image_embeddings_project_to_time_embeddings"),
    ("text_time", "embedding_proj"),
    ("image_tokens", "clip_extra_context_tokens_proj"),
    ("text_tokens", "encoder_hidden_states_proj"),
    ("text_norm", "text_encoder_hidden_states_norm"),
]
UNET = KeyTable(ADM)
PROJECTION = KeyTable(PROJECTION_PAIRS)


def unet_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of Karlo's decoder (UNet2DConditionModel) or upsampler (UNet2DModel) under our names.

    Raises:
        ValueError: listing names that are no parameters of these.
    """
    return rename(state, [UNET.ours], "Karlo U-Net")


def unet_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of our decoder or upsampler under the names of diffusers; a ValueError lists unknown names."""
    return rename(state, [UNET.theirs], "Karlo U-Net")


def projection_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of Karlo's UnCLIPTextProjModel as those of an `ImageProjection`; a ValueError lists unknown names."""
    return rename(state, [PROJECTION.ours], "Karlo projection")


def projection_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an `ImageProjection` under the names of diffusers; a ValueError lists unknown names."""
    return rename(state, [PROJECTION.theirs], "Karlo projection")
