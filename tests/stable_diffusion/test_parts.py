"""What a generator's config promises about its inputs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from zoo.diffusion.schedule import Schedule
from zoo.interface import TextSpec
from zoo.stable_diffusion.parts import GeneratorConfig, LatentGenerator
from zoo.stable_diffusion.unet import UNet, UNetConfig

SMALL = {"channels": (8, 16), "blocks_per_level": 1, "attention": (False, True), "heads": 2, "groups": 4}


def config(width: int | None, guided: tuple[float, float] | None) -> GeneratorConfig:
    unet = UNetConfig.model_validate(SMALL | {"context_width": 12, "guidance_width": width})
    text = TextSpec(12, "text")
    return GeneratorConfig(
        unet=unet,
        schedule=Schedule(),
        text=text,
        latent_space="vae",
        factor=4,
        resolution=(32, 32),
        guidance_range=guided,
    )


def test_a_distilled_generator_says_its_range_of_guidance() -> None:
    said = config(16, (1.0, 7.0))
    assert GeneratorConfig.model_validate_json(said.model_dump_json()) == said
    assert LatentGenerator.of(UNet(said.unet), said).denoiser.guidance_range == (1.0, 7.0)
    assert LatentGenerator.of(UNet(config(None, None).unet), config(None, None)).denoiser.guidance_range is None


@pytest.mark.parametrize(("width", "guided"), [(16, None), (None, (1.0, 7.0))])
def test_a_range_and_its_port_come_together(width: int | None, guided: tuple[float, float] | None) -> None:
    with pytest.raises(ValidationError, match="for which range"):
        config(width, guided)
