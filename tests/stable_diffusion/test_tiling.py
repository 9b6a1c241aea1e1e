"""Big pictures in parts: slices change nothing, tiles are those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from zoo.interface import Representation
from zoo.stable_diffusion import parts
from zoo.stable_diffusion.configs import vae_config_to_diffusers
from zoo.stable_diffusion.keys import vae_to_diffusers
from zoo.stable_diffusion.parts import VaeDecoder
from zoo.stable_diffusion.vae import VAE, VAEConfig


@pytest.fixture
def decoder(shake: Callable[[nn.Module], nn.Module]) -> VaeDecoder:
    vae = VAE(VAEConfig(channels=(8, 16, 16), blocks_per_level=1, groups=4))
    shake(vae)
    return VaeDecoder(vae)


def draw(decoder: VaeDecoder, height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    latents = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(0))
    features: tuple[None, ...] = (None, None, None)
    with torch.no_grad():
        images = decoder.decode(Representation(latents, "latent", decoder.needs.space), *features)  # type: ignore[arg-type]
    return latents, images


@pytest.mark.parametrize(("height", "width"), [(40, 24), (16, 50), (33, 33)])
def test_tiles_are_those_of_the_reference(decoder: VaeDecoder, height: int, width: int) -> None:
    config = {**vae_config_to_diffusers(decoder.vae.config), "sample_size": 64}
    reference = AutoencoderKL.from_config(config).eval()
    reference.load_state_dict(vae_to_diffusers(decoder.vae.state_dict()))
    reference.enable_tiling()
    decoder.tile = 16
    latents, found = draw(decoder, height, width)
    with torch.no_grad():
        expected = reference.decode(decoder.vae.from_diffusion(latents)).sample
    torch.testing.assert_close(found, ((expected + 1) / 2).clamp(0, 1), atol=1e-4, rtol=0)
    decoder.tile = None
    assert (draw(decoder, height, width)[1] - found).abs().max() > 1e-3


def test_a_small_picture_is_one_tile(decoder: VaeDecoder) -> None:
    _, whole = draw(decoder, 16, 16)
    decoder.tile = 16
    assert torch.equal(draw(decoder, 16, 16)[1], whole)


def test_slices_change_nothing(decoder: VaeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = draw(decoder, 8, 8, batch=5)
    sizes: list[int] = []
    decode = decoder.vae.decode
    monkeypatch.setattr(decoder.vae, "decode", lambda latents: sizes.append(len(latents)) or decode(latents))
    monkeypatch.setattr(parts, "AT_ONCE", 2 * 8 * 8)
    _, apart = draw(decoder, 8, 8, batch=5)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [5, 18, 30])
def test_tiles_of_any_side_make_the_whole_picture(decoder: VaeDecoder, tile: int) -> None:
    decoder.tile = tile
    assert draw(decoder, 40, 33)[1].shape == (1, 3, 160, 132)
    decoder.tile = 3
    with pytest.raises(ValueError, match="at least 4 latents, not 3"):
        draw(decoder, 40, 33)


def test_pictures_are_encoded_in_slices_too(decoder: VaeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = decoder.encode(images).data
        sizes: list[int] = []
        encode = decoder.vae.encode
        monkeypatch.setattr(decoder.vae, "encode", lambda some: sizes.append(len(some)) or encode(some))
        monkeypatch.setattr(parts, "AT_ONCE", 2 * 8 * 8)
        torch.testing.assert_close(decoder.encode(images).data, together, atol=1e-5, rtol=0)
    assert sizes == [2, 2, 1]
