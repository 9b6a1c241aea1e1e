"""The U-Net against diffusers' with the same random weights, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

from zoo.interface import Conditioning
from zoo.stable_diffusion.configs import unet_config_from_diffusers, unet_config_to_diffusers
from zoo.stable_diffusion.keys import unet_from_diffusers, unet_to_diffusers
from zoo.stable_diffusion.unet import UNet, UNetConfig

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": [CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
# Every structural option of Stable Diffusion 1 and 2, their inpainting, depth, upscaling and unCLIP models included.
CONFIGS = {
    "v1": SMALL,
    "v1-four-levels": {
        **SMALL,
        "block_out_channels": [16, 32, 48, 48],
        "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
        "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
        "layers_per_block": 2,
    },
    "v2": {**SMALL, "attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
    "inpainting": {**SMALL, "in_channels": 9},
    "depth": {**SMALL, "in_channels": 5, "use_linear_projection": True},
    "upscaler": {
        **SMALL,
        "in_channels": 7,
        "num_class_embeds": 100,
        "only_cross_attention": [True, False],
        "use_linear_projection": True,
    },
    "unclip": {**SMALL, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "deep": {**SMALL, "transformer_layers_per_block": [2, 1], "layers_per_block": [1, 2]},
    "coarse-attention": {
        **SMALL,
        "block_out_channels": [32, 64, 96],
        "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, UP],
        "norm_num_groups": 16,
        "norm_eps": 1e-6,
        "attention_head_dim": [1, 2, 3],
    },
    "lcm": {**SMALL, "time_cond_proj_dim": 256},
    "time-and-variance": {**SMALL, "flip_sin_to_cos": False, "freq_shift": 1, "out_channels": 8},
}


def inputs(config: UNetConfig, batch: int = 2, size: int = 16) -> tuple[Tensor, Tensor, Conditioning]:
    """Noisy latents, times and all that the network asks for; the last three tokens of the first image are masked."""
    generator = torch.Generator().manual_seed(1)
    own = min(4, config.in_channels)
    extra = config.in_channels - own
    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[0, -3:] = False
    conditioning = Conditioning(
        tokens=torch.randn(batch, 7, config.context_width, generator=generator),
        mask=mask,
        concat=torch.randn(batch, extra, size, size, generator=generator) if extra else None,
        vector=torch.randn(batch, config.vector_width, generator=generator) if config.vector_width else None,
        augmentation=torch.tensor([0.2, 0.99] * batch)[:batch] if config.augmentation_levels else None,
        guidance=torch.tensor([4.0, 8.5] * batch)[:batch] if config.guidance_width else None,
    )
    x = torch.randn(batch, own, size, size, generator=generator)
    return x, torch.tensor([7.0, 500.5, 999.0] * batch)[:batch], conditioning


def published_waves(guidance: Tensor, width: int) -> Tensor:
    """The features of the guidance scale that the published pipeline of latent consistency models feeds."""
    return LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, guidance - 1, width)


@pytest.fixture
def small(shake) -> UNet:
    torch.manual_seed(0)
    return shake(UNet(unet_config_from_diffusers(SMALL)))


@pytest.mark.parametrize("name", CONFIGS)
def test_same_output_as_diffusers(name: str, shake) -> None:
    torch.manual_seed(0)
    reference = shake(UNet2DConditionModel(**CONFIGS[name]))
    config = unet_config_from_diffusers(CONFIGS[name])
    network = UNet(config).eval()
    published = reference.state_dict()
    network.load_state_dict(unet_from_diffusers(published))
    x, t, c = inputs(config)
    if config.only_cross_attention:
        c = replace(c, mask=None)  # diffusers leaves the mask out of the first of two attentions to the text
    labels = c.vector if c.augmentation is None else (c.augmentation * 100).round().long()
    with torch.no_grad():
        expected = reference(
            x if c.concat is None else torch.cat([x, c.concat], 1),
            t,
            c.tokens,
            class_labels=labels,
            timestep_cond=None if c.guidance is None else published_waves(c.guidance, config.guidance_width or 0),
            encoder_attention_mask=c.mask,
        ).sample
        found = network(x, t, c)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    back = unet_to_diffusers(network.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_there_and_back(name: str) -> None:
    config = unet_config_from_diffusers(CONFIGS[name])
    assert unet_config_from_diffusers(unet_config_to_diffusers(config)) == config
    assert UNetConfig.model_validate_json(config.model_dump_json()) == config


def test_exported_config_builds_the_same_network() -> None:
    config = UNetConfig(
        channels=(32, 96), blocks_per_level=1, attention=(False, True), head_width=16, groups=16, context_width=24
    )
    reference = UNet2DConditionModel.from_config(unet_config_to_diffusers(config)).eval()
    torch.manual_seed(0)
    network = UNet(config).eval()
    reference.load_state_dict(unet_to_diffusers(network.state_dict()))
    x, t, c = inputs(config)
    with torch.no_grad():
        expected = reference(x, t, c.tokens, encoder_attention_mask=c.mask).sample
        torch.testing.assert_close(network(x, t, c), expected, atol=1e-4, rtol=0)


def test_published_size(published) -> None:
    with torch.device("meta"):
        network = UNet(unet_config_from_diffusers(published["configs"]["unet"]))
    shapes = {key: list(tensor.shape) for key, tensor in unet_to_diffusers(network.state_dict()).items()}
    assert shapes == published["keys"]["unet"]
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == (865_910_724 if network.config.linear_projection else 859_520_964)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("act_fn", "gelu"),
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "timestep"),
        ("cross_attention_dim", [24, 32]),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", DOWN]),
        ("mid_block_type", None),
        ("resnet_time_scale_shift", "scale_shift"),
        ("up_block_types", [UP, UP]),
        ("an_option_of_tomorrow", 3),
    ],
)
def test_options_of_other_networks_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}=.*supported"):
        unet_config_from_diffusers({**SMALL, option: value})


def test_harmless_options_are_ignored() -> None:
    extra = {"sample_size": 64, "_class_name": "UNet2DConditionModel", "dropout": 0.1, "an_option_of_tomorrow": None}
    assert unet_config_from_diffusers({**SMALL, **extra}) == unet_config_from_diffusers(SMALL)


def test_unknown_parameters_are_listed() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 names.*ema\.stem\.weight, vae\.weight"):
        unet_from_diffusers(
            {"conv_in.weight": torch.ones(1), "vae.weight": torch.ones(1), "ema.stem.weight": torch.ones(1)}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (32, 60)}, "multiples of groups"),
        ({"attention": (True,)}, "1 entries"),
        ({"heads": 3}, "divide into heads"),
        ({"head_width": 24}, "divide into heads"),
    ],
)
def test_impossible_configs(change: dict[str, object], message: str) -> None:
    fields = unet_config_from_diffusers(SMALL).model_dump() | change
    with pytest.raises(ValidationError, match=message):
        UNetConfig.model_validate(fields)


def test_wrong_inputs_are_named(small: UNet) -> None:
    x, t, c = inputs(small.config)
    assert c.tokens is not None
    with pytest.raises(ValueError, match=r"\[2, 4, 15, 16\].*multiples of 2"):
        small(x[:, :, :15], t, c)
    with pytest.raises(ValueError, match=r"3 channels.*needs 4"):
        small(x[:, :3], t, c)
    with pytest.raises(ValueError, match="concat 5"):
        small(x, t, replace(c, concat=torch.zeros(2, 5, 16, 16)))
    with pytest.raises(ValueError, match="they differ"):
        small(x[:, :3], t, replace(c, concat=torch.zeros(2, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"times have shape \[1\]"):
        small(x, t[:1], c)
    with pytest.raises(ValueError, match="tokens is missing"):
        small(x, t, replace(c, tokens=None))
    with pytest.raises(ValueError, match=r"needs \[2, length, 24\]"):
        small(x, t, replace(c, tokens=c.tokens[..., :20]))
    with pytest.raises(ValueError, match="mask has shape"):
        small(x, t, replace(c, mask=torch.ones(2, 5, dtype=torch.bool)))
    with pytest.raises(ValueError, match="vector has shape"):
        small(x, t, replace(c, vector=torch.zeros(2, 20)))
    with pytest.raises(ValueError, match="augmentation has shape"):
        small(x, t, replace(c, augmentation=torch.zeros(2)))
    with pytest.raises(ValueError, match="guidance has shape"):
        small(x, t, replace(c, guidance=torch.ones(2)))


def test_missing_port_is_named() -> None:
    network = UNet(unet_config_from_diffusers(CONFIGS["unclip"]))
    x, t, c = inputs(network.config)
    with pytest.raises(ValueError, match=r"vector has shape None; this U-Net was built for \(2, 20\)"):
        network(x, t, replace(c, vector=None))


def test_a_new_guidance_port_changes_nothing_and_then_matters(small: UNet) -> None:
    """A student begins as its teacher; its port shows once the matrix behind it is not zero."""
    network = UNet(small.config.model_copy(update={"guidance_width": 16})).eval()
    assert network.guidance is not None
    network.load_state_dict(small.state_dict() | {"guidance.project.weight": network.guidance.project.weight})
    x, t, c = inputs(network.config)
    with torch.no_grad():
        assert torch.equal(network(x, t, c), small(x, t, replace(c, guidance=None)))
        network.guidance.project.weight += torch.randn(network.guidance.project.weight.shape) / 10
        base = network(x, t, c)
        other = network(x, t, replace(c, guidance=torch.tensor([5.0, 7.0])))
    assert (base - other).abs().flatten(1).amax(1).min() > 1e-3


def test_an_image_does_not_depend_on_its_batch(small: UNet) -> None:
    x, t, c = inputs(small.config, batch=3)
    assert c.tokens is not None
    assert c.mask is not None
    with torch.no_grad():
        together = small(x, t, c)
        for i in range(3):
            one = slice(i, i + 1)
            alone = small(x[one], t[one], Conditioning(tokens=c.tokens[one], mask=c.mask[one]))
            torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


def test_every_input_matters(small: UNet) -> None:
    x, t, c = inputs(small.config)
    assert c.tokens is not None
    with torch.no_grad():
        base = small(x, t, c)
        for other in (small(x + 1, t, c), small(x, t + 40, c), small(x, t, replace(c, tokens=-c.tokens))):
            assert (base - other).abs().flatten(1).amax(1).min() > 1e-3
        tokens = c.tokens.clone()
        tokens[0, -3:] = 100.0  # masked: nobody may notice
        assert torch.equal(small(x, t, replace(c, tokens=tokens)), base)


def test_half_precision(small: UNet) -> None:
    x, t, c = inputs(small.config, size=24)
    with torch.no_grad():
        full = small(x, t, c)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = small(x, t, c)
        half = small.to(torch.bfloat16)(x, t, c)
    assert half.dtype == autocast.dtype == torch.float32  # the precision of x
    for found in (autocast, half):
        assert 0 < (found - full).square().mean().sqrt() < 0.03 * full.std()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_under_autocast(small: UNet, layout: torch.memory_format) -> None:
    x, t, c = inputs(small.config)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def gradients(network: UNet, x: Tensor, autocast: bool) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (network(x, t, c).float() - target).square().mean()
        loss.backward()
        found = [p.grad for p in network.parameters()]
        assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in found)
        return torch.cat([g.flatten() for g in found if g is not None])

    exact = gradients(small, x, autocast=False)
    found = gradients(small.to(memory_format=layout), x.to(memory_format=layout), autocast=True)
    assert torch.cosine_similarity(exact, found, dim=0) > 0.99
