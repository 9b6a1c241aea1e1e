"""The autoencoder against diffusers' with the same random weights, and its own promises."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from pydantic import ValidationError
from torch.distributions import Normal, kl_divergence

from zoo.stable_diffusion.configs import vae_config_from_diffusers, vae_config_to_diffusers
from zoo.stable_diffusion.keys import vae_from_diffusers, vae_to_diffusers
from zoo.stable_diffusion.vae import VAE, Posterior, VAEConfig


def options(*channels: int, **others: object) -> dict[str, object]:
    """diffusers' config of a small autoencoder."""
    return {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "norm_num_groups": 8,
        **others,
    }


CONFIGS = {
    "f8": options(8, 16, 24, 24, layers_per_block=2),
    "f4": options(16, 32, 48, norm_num_groups=16, layers_per_block=1, latent_channels=3),
    "f2": options(16, 16),
    "f1": options(16),
    "one-to-four-channels": options(16, 32, in_channels=1, out_channels=4, latent_channels=6),
    "no-attention": options(16, 32, mid_block_add_attention=False),
    "no-quant": options(16, 32, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.3),
    "upscaler": options(8, 16, 16, layers_per_block=2, scaling_factor=0.08333),
}


@pytest.fixture
def small(shake) -> VAE:
    torch.manual_seed(0)
    return shake(VAE(VAEConfig(channels=(16, 32), groups=8, blocks_per_level=1)))


@pytest.mark.parametrize("name", CONFIGS)
def test_same_output_as_diffusers(name: str, shake) -> None:
    torch.manual_seed(0)
    reference = shake(AutoencoderKL(**CONFIGS[name]))
    vae = VAE(vae_config_from_diffusers(CONFIGS[name])).eval()
    published = reference.state_dict()
    vae.load_state_dict(vae_from_diffusers(published))
    images = torch.rand(2, vae.config.in_channels, 32, 24) * 2 - 1
    with torch.no_grad():
        expected = reference.encode(images).latent_dist
        found = vae.encode(images)
        latents = torch.randn(found.mean.shape)
        torch.testing.assert_close(found.mean, expected.mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.logvar, expected.logvar, atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(latents), reference.decode(latents).sample, atol=1e-4, rtol=0)
    assert expected.mean.std() > 0.05
    assert found.mean.shape[2:] == (32 // vae.downsampling, 24 // vae.downsampling)

    back = vae_to_diffusers(vae.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], published[key]) for key in published)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_there_and_back(name: str) -> None:
    config = vae_config_from_diffusers(CONFIGS[name])
    assert vae_config_from_diffusers(vae_config_to_diffusers(config)) == config
    assert VAEConfig.model_validate_json(config.model_dump_json()) == config
    rebuilt = AutoencoderKL.from_config(vae_config_to_diffusers(config))
    assert vae_from_diffusers(rebuilt.state_dict()).keys() == VAE(config).state_dict().keys()


def test_published_size(published) -> None:
    with torch.device("meta"):
        vae = VAE(vae_config_from_diffusers(published["configs"]["vae"]))
    assert vae.config.scaling_factor == 0.18215
    assert vae.downsampling == 8
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    state = vae.state_dict()
    for spelling, old in (("vae", False), ("vae_old", True)):
        named = vae_to_diffusers(state, old_attention=old)
        assert {key: list(tensor.shape) for key, tensor in named.items()} == published["keys"][spelling]
        assert vae_from_diffusers(named).keys() == state.keys()
    assert published["keys"]["vae"].keys() != published["keys"]["vae_old"].keys()


def test_attention_in_every_published_spelling(small: VAE) -> None:
    state = small.state_dict()
    mixed = vae_to_diffusers(state, old_attention=True)
    new = vae_to_diffusers(state)
    decoder = "decoder.mid_block.attentions.0."
    mixed = {k: v for k, v in mixed.items() if not k.startswith(decoder)}
    mixed |= {k: v[:, :, None, None] if v.ndim == 2 else v for k, v in new.items() if k.startswith(decoder)}
    back = vae_from_diffusers(mixed)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_one_parameter_twice_is_refused(small: VAE) -> None:
    state = small.state_dict()
    with pytest.raises(ValueError, match="two spellings"):
        vae_from_diffusers(vae_to_diffusers(state) | vae_to_diffusers(state, old_attention=True))
    with pytest.raises(ValueError, match=r"1 of 1 names are no parameters.*loss\.discriminator"):
        vae_from_diffusers({"loss.discriminator": torch.ones(1)})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"]),
        ("latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("act_fn", "relu"),
        ("an_option_of_tomorrow", "yes"),
    ],
)
def test_options_of_other_networks_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}=.*supported"):
        vae_config_from_diffusers(options(16, 32) | {option: value})


def test_impossible_config() -> None:
    with pytest.raises(ValidationError, match="multiples of groups=32"):
        VAEConfig(channels=(32, 48))


def test_wrong_inputs_are_named(small: VAE) -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 33, 32\].*multiples of 2"):
        small.encode(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match=r"\[batch, 3,"):
        small.encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"decodes \[batch, 4,"):
        small.decode(torch.zeros(1, 3, 16, 16))


def test_posterior() -> None:
    torch.manual_seed(0)
    mean, logvar, noise = torch.randn(3, 2, 4, 5, 5)
    posterior = Posterior(mean, logvar)
    torch.testing.assert_close(posterior.sample(noise), mean + logvar.exp().sqrt() * noise)
    exact = kl_divergence(Normal(mean, logvar.exp().sqrt()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl(), exact)


def test_diffusion_units(small: VAE) -> None:
    vae = VAE(small.config.model_copy(update={"scaling_factor": 0.5, "shift_factor": 0.25}))
    latents = torch.tensor([0.25, 2.25])
    torch.testing.assert_close(vae.to_diffusion(latents), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(vae.from_diffusion(vae.to_diffusion(latents)), latents)


def test_an_image_does_not_depend_on_its_batch(small: VAE) -> None:
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        together, _ = small(images)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], small(images[i : i + 1])[0], atol=1e-5, rtol=0)


def test_half_precision_and_gradients(small: VAE) -> None:
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    exact, _ = small(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        found, posterior = small(images, noise)
        loss = (found.float() - images).abs().mean() + 1e-3 * posterior.kl().mean()
    assert posterior.mean.dtype == torch.float32
    assert 0 < (found - exact).square().mean().sqrt() < 0.05 * exact.std()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in small.parameters())
