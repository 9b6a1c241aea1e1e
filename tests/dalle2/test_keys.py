"""Decoder, upsamplers and projection against diffusers' as Karlo builds them; published names and sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.dalle2.configs import (
    decoder_config_from_diffusers,
    projection_config_from_diffusers,
    sizes,
    unet_config_to_diffusers,
    upsampler_config_from_diffusers,
)
from zoo.dalle2.keys import (
    projection_from_diffusers,
    projection_to_diffusers,
    unet_from_diffusers,
    unet_to_diffusers,
)
from zoo.dalle2.projection import ImageProjection, ImageProjectionConfig
from zoo.interface import Conditioning

try:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
except ImportError:  # before diffusers 0.42
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

PUBLISHED = Path(__file__).parent.parent / "data" / "published"
DOWN, JOINT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, JOINT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"

DECODER = {
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [16, 32],
    "down_block_types": [DOWN, JOINT_DOWN],
    "up_block_types": [JOINT_UP, UP],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "class_embed_type": "identity",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
UPSAMPLER = {
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "down_block_types": [DOWN] * 2,
    "up_block_types": [UP] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "add_attention": False,
}
DECODERS = {
    "decoder": DECODER,
    "decoder-four-levels": {
        **DECODER,
        "block_out_channels": [16, 24, 32, 40],
        "down_block_types": [DOWN, JOINT_DOWN, JOINT_DOWN, JOINT_DOWN],
        "up_block_types": [JOINT_UP, JOINT_UP, JOINT_UP, UP],
        "layers_per_block": 3,
    },
}
UPSAMPLERS = {
    "upsampler": UPSAMPLER,
    "upsampler-four-levels": {
        **UPSAMPLER,
        "block_out_channels": [16, 24, 32, 40],
        "down_block_types": [DOWN] * 4,
        "up_block_types": [UP] * 4,
        "layers_per_block": 3,
    },
    "upsampler-scale-shift": {**UPSAMPLER, "resnet_time_scale_shift": "scale_shift", "act_fn": "swish"},
}
PROJECTION = {
    "clip_extra_context_tokens": 4,
    "clip_embeddings_dim": 20,
    "time_embed_dim": 64,
    "cross_attention_dim": 24,
}


def noisy(seed: int = 1) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([7.0, 999.0]), generator


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_gives_what_diffusers_gives(name: str, shake) -> None:
    torch.manual_seed(0)
    reference = shake(UNet2DConditionModel(**DECODERS[name]))
    network = AdmUNet(decoder_config_from_diffusers(DECODERS[name])).eval()
    published = reference.state_dict()
    network.load_state_dict(unet_from_diffusers(published))
    x, t, generator = noisy()
    tokens, vector = torch.randn(2, 7, 24, generator=generator), torch.randn(2, 64, generator=generator)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, -3:] = False
    with torch.no_grad():
        # Karlo's pipeline hands the text's mask in as `attention_mask`.
        expected = reference(x, t, tokens, class_labels=vector, attention_mask=mask).sample
        found = network(x, t, Conditioning(tokens=tokens, mask=mask, vector=vector))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    back = unet_to_diffusers(network.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_upsampler_gives_what_diffusers_gives(name: str, shake) -> None:
    torch.manual_seed(0)
    reference = shake(UNet2DModel(**UPSAMPLERS[name]))
    network = AdmUNet(upsampler_config_from_diffusers(UPSAMPLERS[name])).eval()
    published = reference.state_dict()
    network.load_state_dict(unet_from_diffusers(published))
    x, t, generator = noisy()
    low = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        expected = reference(torch.cat([x, low], 1), t).sample
        found = network(x, t, Conditioning(concat=low))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    back = unet_to_diffusers(network.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


@pytest.fixture
def projections(shake) -> tuple[UnCLIPTextProjModel, ImageProjection]:
    """Theirs and ours with the same random weights."""
    torch.manual_seed(0)
    reference = shake(UnCLIPTextProjModel(**PROJECTION))
    projection = ImageProjection(projection_config_from_diffusers(PROJECTION)).eval()
    projection.load_state_dict(projection_from_diffusers(reference.state_dict()))
    return reference, projection


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of three images and texts, and the texts' tokens."""
    generator = torch.Generator().manual_seed(1)
    image, pooled = torch.randn(2, 3, 20, generator=generator)
    return image, pooled, torch.randn(3, 7, 20, generator=generator)


def test_projection_gives_what_diffusers_gives(projections: tuple[UnCLIPTextProjModel, ImageProjection]) -> None:
    reference, projection = projections
    image, pooled, tokens = embeddings()
    said = {"prompt_embeds": pooled, "text_encoder_hidden_states": tokens, "do_classifier_free_guidance": False}
    with torch.no_grad():
        expected = reference(image_embeddings=image, **said)
        found = projection(image, pooled, tokens)
        torch.testing.assert_close((found.tokens, found.vector), expected)
        left_out = image.clone()
        left_out[1] = projection.null
        expected = reference(image_embeddings=left_out, **said)
        found = projection(image, pooled, tokens, drop=torch.tensor([False, True, False]))
        torch.testing.assert_close((found.tokens, found.vector), expected)
    published = reference.state_dict()
    back = projection_to_diffusers(projection.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


def test_projected_tokens_of_the_image_are_always_seen(
    projections: tuple[UnCLIPTextProjModel, ImageProjection],
) -> None:
    image, pooled, tokens = embeddings()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[2, 0] = True
    found = projections[1](image, pooled, tokens, mask)
    assert found.mask is not None
    assert torch.equal(found.mask, torch.cat([torch.ones(3, 4, dtype=torch.bool), mask], 1))


def test_gradient_reaches_every_parameter_of_the_projection(
    projections: tuple[UnCLIPTextProjModel, ImageProjection],
) -> None:
    _, projection = projections
    found = projection(*embeddings(), drop=torch.tensor([True, False, False]))
    (found.tokens.pow(2).sum() + found.vector.pow(2).sum()).backward()
    assert [name for name, p in projection.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["image", "pooled", "tokens", "mask", "drop"])
def test_projection_names_wrong_inputs(name: str, projections: tuple[UnCLIPTextProjModel, ImageProjection]) -> None:
    image, pooled, tokens = embeddings()
    given = {"image": image, "pooled": pooled, "tokens": tokens, "mask": torch.ones(3, 7), "drop": torch.ones(3).bool()}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        projections[1](**given | {name: given[name][..., :-1]})


@pytest.mark.parametrize("name", [*DECODERS, *UPSAMPLERS])
def test_config_there_and_back(name: str) -> None:
    read = decoder_config_from_diffusers if name in DECODERS else upsampler_config_from_diffusers
    config = read((DECODERS | UPSAMPLERS)[name])
    assert read(unet_config_to_diffusers(config)) == config
    assert AdmUNetConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", ["decoder", "super_res_first", "super_res_last", "text_proj"])
def test_published_size(name: str) -> None:
    published = json.loads(gzip.decompress((PUBLISHED / "karlo-v1-alpha.json.gz").read_bytes()))
    options, expected = published["configs"][name], published["keys"][name]
    with torch.device("meta"):
        if name == "text_proj":
            network = ImageProjection(projection_config_from_diffusers(options))
            assert network.config == ImageProjectionConfig()
            exported = projection_to_diffusers(network.state_dict())
        else:
            read = decoder_config_from_diffusers if name == "decoder" else upsampler_config_from_diffusers
            exported = unet_to_diffusers(AdmUNet(read(options)).state_dict())
    assert {key: list(tensor.shape) for key, tensor in exported.items()} == expected
    parameters = {"decoder": 885_439_686, "text_proj": 7_878_400}.get(name, 691_579_523)
    assert sum(tensor.numel() for tensor in exported.values()) == parameters


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("act_fn", "mish"),
        ("class_embed_type", None),
        ("class_embed_type", "timestep"),
        ("down_block_types", ["CrossAttnDownBlock2D", JOINT_DOWN]),
        ("mid_block_type", None),
        ("norm_eps", 1e-6),
        ("an_option_of_tomorrow", 3),
    ],
)
def test_options_of_other_decoders_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}=.*supported"):
        decoder_config_from_diffusers({**DECODER, option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("add_attention", True),
        ("down_block_types", [DOWN, "AttnDownBlock2D"]),
        ("mid_block_scale_factor", 2),
        ("resnet_time_scale_shift", "spatial"),
        ("class_embed_type", "timestep"),
    ],
)
def test_options_of_other_upsamplers_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}=.*supported"):
        upsampler_config_from_diffusers({**UPSAMPLER, option: value})


def test_an_upsampler_that_does_not_say_it_is_without_attention_has_it() -> None:
    with pytest.raises(ValueError, match="add_attention=True.*supported is False"):
        upsampler_config_from_diffusers({key: value for key, value in UPSAMPLER.items() if key != "add_attention"})


def test_options_of_other_projections_are_refused() -> None:
    with pytest.raises(ValueError, match="supported are"):
        projection_config_from_diffusers({**PROJECTION, "depth": 2})
    with pytest.raises(ValueError, match="supported are"):
        projection_config_from_diffusers({"clip_embeddings_dim": 20})


def test_what_diffusers_cannot_build_is_not_exported() -> None:
    config = upsampler_config_from_diffusers(UPSAMPLER)
    for change in ({"augmentation": True}, {"residual_scale": 0.5}, {"blocks_per_level": (1, 1)}, {"vector": True}):
        with pytest.raises(ValueError, match="without text only"):
            unet_config_to_diffusers(config.model_copy(update=change))


def test_unknown_parameters_are_listed() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 names.*Karlo.*add_embedding\.norm1\.weight"):
        unet_from_diffusers(dict.fromkeys(("conv_in.weight", "add_embedding.norm1.weight"), torch.ones(1)))


def test_the_papers_sizes_are_counted() -> None:
    table = sizes()
    for line in ("3463.6   published 3500: -36.4", "729.7   published 700: +29.7", "282.1   published 300: -17.9"):
        assert line in table
