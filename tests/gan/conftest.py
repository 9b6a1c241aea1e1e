"""A whole GAN with random weights: CLIP's text tower, a generator of 16x16 pixels, and nothing after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import shaken, text_encoder
from zoo.gan.discriminator import Discriminator, DiscriminatorConfig
from zoo.gan.generator import FusionGenerator, FusionGeneratorConfig
from zoo.gan.parts import GanConfig, GanGenerator
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import TextSpec
from zoo.weights import save_model

SIZES = {
    "channels": (8, 16),
    "attention": (False, True),
    "context_width": 32,
    "sentence_width": 8,
    "pool_heads": 2,
    "head_width": 8,
    "groups": 4,
}
SIDE = 16


def generator_config(**changes: object) -> FusionGeneratorConfig:
    return FusionGeneratorConfig.model_validate(SIZES | {"noise_width": 6, "hidden_width": 8} | changes)


def generator_network(seed: int = 2, **changes: object) -> FusionGenerator:
    network = FusionGenerator(generator_config(**changes))
    shaken(network, seed)
    for parameter in network.head.parameters():  # so that its pictures stay within [-1, 1]
        parameter.data.mul_(0.002)
    return network


def generator(text: TextSpec, seed: int = 2) -> GanGenerator:
    network = generator_network(seed)
    return GanGenerator(network, GanConfig(network=network.config, text=text))


def discriminator(seed: int = 3) -> Discriminator:
    network = Discriminator(DiscriminatorConfig.model_validate(SIZES))
    shaken(network, seed, scale=0.05)
    return network


@pytest.fixture(scope="session")
def gan_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """The model folder of it."""
    return write_gan(tmp_path_factory.mktemp("models") / "tiny-gan", vocabulary)


def write_gan(folder: Path, vocabulary: bytes) -> Path:
    encoder = text_encoder(vocabulary)
    parts = (encoder, generator(encoder.produces), CascadeDecoder())
    save_model(folder, *parts, family="GAN", resolution=(SIDE, SIDE), defaults={"steps": 1})
    return folder
