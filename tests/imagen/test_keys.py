"""The base U-Net against diffusers' as DeepFloyd IF builds it, with equal random weights; published names and sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.imagen.configs import BASE_64, adm_config_from_diffusers, adm_config_to_diffusers, sizes
from zoo.imagen.keys import adm_from_diffusers, adm_to_diffusers
from zoo.interface import Conditioning

PUBLISHED = Path(__file__).parent.parent / "data" / "published"
DOWN, JOINT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, JOINT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"

STAGE_ONE = {
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [32, 64],
    "down_block_types": [DOWN, JOINT_DOWN],
    "up_block_types": [JOINT_UP, UP],
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "cross_attention_norm": "group_norm",
    "attention_head_dim": 16,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": 48,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
}
STAGE_TWO = {
    **STAGE_ONE,
    "in_channels": 6,
    "block_out_channels": [32, 64, 96],
    "down_block_types": [DOWN, DOWN, JOINT_DOWN],
    "up_block_types": [JOINT_UP, UP, UP],
    "layers_per_block": [1, 2, 3],
    "class_embed_type": "timestep",
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 80,
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
}
# Every structural option of both stages, together and one by one.
CONFIGS = {
    "stage-one": STAGE_ONE,
    "stage-one-four-levels": {
        **STAGE_ONE,
        "block_out_channels": [32, 64, 96, 128],
        "down_block_types": [DOWN, JOINT_DOWN, JOINT_DOWN, JOINT_DOWN],
        "up_block_types": [JOINT_UP, JOINT_UP, JOINT_UP, UP],
        "layers_per_block": 3,
    },
    "stage-two": STAGE_TWO,
    "without-pooling": {**STAGE_ONE, "addition_embed_type": None},
    "without-projection": {**STAGE_ONE, "encoder_hid_dim": None, "encoder_hid_dim_type": None},
    "without-norm": {**STAGE_ONE, "cross_attention_norm": None, "norm_num_groups": 16, "addition_embed_type": None},
    "attention-everywhere": {**STAGE_ONE, "down_block_types": [JOINT_DOWN] * 2, "up_block_types": [JOINT_UP] * 2},
    "silu-and-added-time": {**STAGE_TWO, "act_fn": "silu", "time_embedding_act_fn": "silu"}
    | {"resnet_time_scale_shift": "default"},
    "widths-of-their-own": {**STAGE_TWO, "resnet_skip_time_act": False, "time_embedding_act_fn": None},
}
PARAMETERS = {
    "if-i-m-v1.0": 371_605_830,
    "if-i-l-v1.0": 935_365_830,
    "if-i-xl-v1.0": 4_304_695_110,
    "if-ii-l-v1.0": 1_243_277_190,
}


def inputs(config: AdmUNetConfig, *, masked: bool) -> tuple[Tensor, Tensor, Conditioning]:
    """Two noisy images, their times and all that the network asks for; three tokens of the first may be masked."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, -3:] = False
    conditioning = Conditioning(
        tokens=torch.randn(2, 7, config.context_width or 0, generator=generator),
        mask=mask if masked else None,
        concat=torch.randn(2, 3, 16, 16, generator=generator) if config.in_channels == 6 else None,
        augmentation=torch.tensor([0.25, 0.9]) if config.augmentation else None,
    )
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([7.0, 999.0]), conditioning


@pytest.mark.parametrize("name", CONFIGS)
def test_same_output_as_diffusers(name: str, shake) -> None:
    torch.manual_seed(0)
    reference = shake(UNet2DConditionModel(**CONFIGS[name]))
    config = adm_config_from_diffusers(CONFIGS[name])
    network = AdmUNet(config).eval()
    published = reference.state_dict()
    network.load_state_dict(adm_from_diffusers(published))
    # Their pooling has no mask: see `zoo.adm`.
    x, t, c = inputs(config, masked=config.pool_heads is None)
    with torch.no_grad():
        expected = reference(
            x if c.concat is None else torch.cat([x, c.concat], 1),
            t,
            c.tokens,
            class_labels=None if c.augmentation is None else (1000 * c.augmentation).round(),
            encoder_attention_mask=c.mask,
        ).sample
        found = network(x, t, c)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    back = adm_to_diffusers(network.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_there_and_back(name: str) -> None:
    config = adm_config_from_diffusers(CONFIGS[name])
    back = adm_config_from_diffusers(adm_config_to_diffusers(config))
    assert back.residual_scale == pytest.approx(config.residual_scale, rel=1e-12)
    assert back.model_copy(update={"residual_scale": config.residual_scale}) == config
    assert AdmUNetConfig.model_validate_json(config.model_dump_json()) == config


def test_exported_config_builds_the_same_network() -> None:
    config = adm_config_from_diffusers(STAGE_TWO).model_copy(update={"dropout": 0.1, "head_width": 32})
    reference = UNet2DConditionModel.from_config(adm_config_to_diffusers(config))
    exported = adm_to_diffusers(AdmUNet(config).state_dict())
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in exported.items()} == shapes


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_size(name: str) -> None:
    published = json.loads(gzip.decompress((PUBLISHED / f"{name}.json.gz").read_bytes()))
    with torch.device("meta"):
        network = AdmUNet(adm_config_from_diffusers(published["configs"]["unet"]))
    shapes = {key: list(tensor.shape) for key, tensor in adm_to_diffusers(network.state_dict()).items()}
    assert shapes == published["keys"]["unet"]
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("act_fn", "mish"),
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "identity"),
        ("cross_attention_norm", "layer_norm"),
        ("down_block_types", ["CrossAttnDownBlock2D", JOINT_DOWN]),
        ("down_block_types", [DOWN, DOWN]),
        ("encoder_hid_dim_type", "image_proj"),
        ("mid_block_scale_factor", 2),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("norm_num_groups", 16),
        ("only_cross_attention", True),
        ("resnet_skip_time_act", True),
        ("resnet_time_scale_shift", "ada_group"),
        ("up_block_types", [UP, UP]),
        ("an_option_of_tomorrow", 3),
    ],
)
def test_options_of_other_networks_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}=.*supported"):
        adm_config_from_diffusers({**STAGE_ONE, option: value})


def test_a_middle_with_attention_needs_it_at_the_coarsest_level() -> None:
    with pytest.raises(ValueError, match="the middle has attention too"):
        adm_config_from_diffusers(
            {**STAGE_ONE, "down_block_types": [JOINT_DOWN, DOWN], "up_block_types": [UP, JOINT_UP]}
        )


def test_what_diffusers_cannot_build_is_not_exported() -> None:
    with pytest.raises(ValueError, match="without a LayerNorm"):
        adm_config_to_diffusers(BASE_64)
    with pytest.raises(ValueError, match="in 32 groups"):
        adm_config_to_diffusers(adm_config_from_diffusers(STAGE_ONE).model_copy(update={"groups": 16}))


def test_unknown_parameters_are_listed() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 names.*DeepFloyd IF.*ema\.stem\.weight, vae\.weight"):
        adm_from_diffusers(dict.fromkeys(("conv_in.weight", "vae.weight", "ema.stem.weight"), torch.ones(1)))


def test_the_papers_size_is_counted() -> None:
    table = sizes()
    assert "Imagen base 64" in table
    assert "2305.4   published 2000: +305.4 (+15.3%)" in table
