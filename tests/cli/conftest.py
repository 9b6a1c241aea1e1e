"""The command line in this process, and models with random weights: a DALL-E 2 beside its CLIP, one for maps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import latent_generator, shaken, text_encoder, vae_decoder
from tests.dalle2.unclip import decoder, prior, towers, write_clip
from zoo import cli
from zoo.data.maps import CLASSES
from zoo.registry import CLIP
from zoo.stable_diffusion.parts import LatentGenerator
from zoo.stable_diffusion.unet import UNet
from zoo.weights import save_model


class Run:
    """The command line in this process: (status, stdout, stderr)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
        self.capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = self.capsys.readouterr()
        return status, out, err


@pytest.fixture(scope="session")
def unclip_models(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """A folder with the model meaning, a DALL-E 2 of 8x8 pictures, and its CLIP under the name of the zoo's own."""
    shelf = tmp_path_factory.mktemp("unclip")
    clip, text = towers(write_clip(shelf / CLIP, vocabulary))
    save_model(
        shelf / "meaning",
        text,
        prior(clip, text.produces),
        decoder(clip, text.produces, loud=0.03),
        image_encoder=clip,
        family="dalle-2",
        resolution=(8, 8),
        summary="Random weights, for tests.",
    )
    return shelf


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """The folder of a Stable Diffusion of 64x64 pictures that takes the maps of scenes."""
    folder = tmp_path_factory.mktemp("painter")
    encoder, vae = text_encoder(vocabulary), vae_decoder()
    config = latent_generator(encoder, vae).config
    unet = config.unet.model_copy(update={"in_channels": config.unet.out_channels + len(CLASSES)})
    network = UNet(unet)
    shaken(network, 3)
    size = (64, 64)
    generator = LatentGenerator.of(
        network, config.model_copy(update={"unet": unet, "classes": CLASSES, "resolution": size})
    )
    save_model(folder, encoder, generator, vae, family="stable-diffusion", resolution=size)
    return folder


@pytest.fixture
def both(unclip_models: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Stable Diffusion and a DALL-E 2 at hand, by name; the latter's folder."""
    monkeypatch.setenv("ZOO_MODELS", f"{unclip_models}{os.pathsep}{tiny_models}")
    return unclip_models / "meaning"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], both: Path) -> Run:
    return Run(monkeypatch, capsys)
